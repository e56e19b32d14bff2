#!/usr/bin/env bash
# Hydra: a short git commit given on the command line can become the number infinity, and so two runs share a folder.
# Versions: hydra-core==1.3.8
#
# Words of the command line are typed by Hydra's grammar: digits, an e and digits are a float. Of the 7 characters of a
# short commit, 1.9 % have that form (3.7 % are digits alone, and become whole numbers). Most of those exponents are
# beyond what a float holds: commit=7e09161 and commit=85e7348 are both inf. A run folder named after the commit is the
# same for both, so the second run writes over the first one's; the record says `commit: .inf`. Quoting for the shell
# does not help, as the shell removes the quotes: it takes commit="'7e09161'".
#
# Seen, on a CPU with Python 3.11:
#   commit=7e09161: float inf, in runs/inf
#   commit=85e7348: float inf, in runs/inf
#   commit=3c09161: str 3c09161, in runs/3c09161
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
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    print(f"{type(cfg.commit).__name__} {cfg.commit}, in runs/{folder.name}")


if __name__ == "__main__":
    main()
PYTHON
cat > "$work/config.yaml" <<'YAML'
commit: unknown
hydra: {run: {dir: "runs/${commit}"}}
YAML
cd "$work"
"$env/bin/python" -c 'import hydra; print("hydra-core", hydra.__version__)'
for commit in 7e09161 85e7348 3c09161; do
  said=$("$env/bin/python" app.py commit=$commit)
  echo "commit=$commit: $said"
  all="${all:-}$said;"
done
folders=$(ls runs | wc -l)
[[ $all == "float inf, in runs/inf;float inf, in runs/inf;str 3c09161, in runs/3c09161;" && $folders == 2 ]] ||
  { echo "changed: expected two commits in the folder inf" >&2; exit 1; }
