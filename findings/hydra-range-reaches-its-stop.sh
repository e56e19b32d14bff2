#!/usr/bin/env bash
# Hydra: range(0.1,0.4,0.1) of a sweep includes its stop value, range(0.1,0.5,0.1) does not.
# Versions: hydra-core==1.3.8
#
# The documentation gives range(start,stop,step) with the stop left out. With a fractional step each value is the last
# one plus the step, and the rounding errors of the sums decide whether the last value is still below the stop: a
# sweep over a rate, a share or a momentum sometimes gets one job more than was asked for, at a value outside of the
# range, and the values themselves are 0.30000000000000004 and 0.7999999999999999 in folder names and records, so a
# later sweep that lists 0.3 finds no such run.
#
# Seen, on a CPU with Python 3.11:
#   range(0.1,0.4,0.1): 0.1 0.2 0.30000000000000004 0.4
#   range(0.1,0.5,0.1): 0.1 0.2 0.30000000000000004 0.4
#   range(0.7,1.0,0.1): 0.7 0.7999999999999999 0.8999999999999999 1.0
#   range(1,4): 1 2 3
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"; [[ -n ${FINDINGS_ENV:-} ]] || rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check hydra-core==1.3.8
cat > "$work/app.py" <<'PYTHON'
import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    print("value", cfg.x)


if __name__ == "__main__":
    main()
PYTHON
cd "$work"
"$env/bin/python" -c 'import hydra; print("hydra-core", hydra.__version__)'
for range in "range(0.1,0.4,0.1)" "range(0.1,0.5,0.1)" "range(0.7,1.0,0.1)" "range(1,4)"; do
  values=$("$env/bin/python" app.py -m "+x=$range" hydra.sweep.dir="$work/out" | sed -n 's/^value //p' | paste -sd' ')
  echo "$range: $values"
  all="${all:-}$values;"
done
expected="0.1 0.2 0.30000000000000004 0.4;0.1 0.2 0.30000000000000004 0.4;"
expected+="0.7 0.7999999999999999 0.8999999999999999 1.0;1 2 3;"
[[ $all == "$expected" ]] || { echo "changed: expected the stop value in the first and the third range alone" >&2; exit 1; }
