#!/usr/bin/env bash
# Hydra: on_multirun_end is never called when one job of a sweep has failed, and code after main() does not run
# either.
# Versions: hydra-core==1.3.8
#
# The other jobs do run, to the end, and on_job_end is called for each. Then the sweep ends with exit status 1 without
# the callback that is documented for its end. Whoever uploads, summarises or frees something there loses the results
# of all the jobs that went well, in just the sweeps in which something went wrong.
#
# Seen, on a CPU with Python 3.11:
#   fails=9: jobs ended 3, on_multirun_end called 1 times, exit status 0    (no job fails)
#   fails=1: jobs ended 3, on_multirun_end called 0 times, exit status 1
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check hydra-core==1.3.8
work=$(mktemp -d)
cat > "$work/app.py" <<'PYTHON'
import hydra
from hydra.experimental.callback import Callback


class Tell(Callback):
    def on_job_end(self, config, job_return, **kwargs):
        print("job ended", flush=True)

    def on_multirun_end(self, config, **kwargs):
        print("multirun ended", flush=True)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    if cfg.x == cfg.fails:
        raise ValueError("one job fails")


if __name__ == "__main__":
    main()
PYTHON
cat > "$work/config.yaml" <<YAML
x: 0
fails: 9
hydra: {callbacks: {tell: {_target_: app.Tell}}, sweep: {dir: "$work/out"}}
YAML
cd "$work"
"$env/bin/python" -c 'import hydra; print("hydra-core", hydra.__version__)'
for fails in 9 1; do
  status=0
  said=$(PYTHONPATH=$work "$env/bin/python" app.py -m x=0,1,2 fails=$fails 2>"$work/stderr") || status=$?
  jobs=$(grep -c "job ended" <<<"$said" || true)
  ends=$(grep -c "multirun ended" <<<"$said" || true)
  echo "fails=$fails: jobs ended $jobs, on_multirun_end called $ends times, exit status $status"
  result="${result:-}$jobs $ends $status;"
done
[[ ${result} == "3 1 0;3 0 1;" ]] || cat "$work/stderr" >&2
rm -rf "$work"
[[ $result == "3 1 0;3 0 1;" ]] || { echo "changed: expected 3 jobs, and the end told only without a failure" >&2; exit 1; }
