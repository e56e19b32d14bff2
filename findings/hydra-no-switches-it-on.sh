#!/usr/bin/env bash
# Hydra: nesterov=no on the command line switches Nesterov momentum on; the same word in the YAML switches it off.
# Versions: hydra-core==1.3.8, torch==2.15.0, numpy==2.4.6
#
# In a YAML file no and off are False, as YAML 1.1 has it. Words of the command line are read by
# Hydra's own grammar, which knows true and false alone: no and off stay text, also where they replace a value that was
# a boolean, and a text that is not empty counts as true. torch.optim.SGD takes it without a word. The run's record says
# `nesterov: 'no'`, while Nesterov momentum was used.
#
# Seen, on a CPU with Python 3.11:
#   '': bool False, weight 0.7100    (the YAML says no)
#   'optimizer.nesterov=no': str no, weight 0.5390
#   'optimizer.nesterov=false': bool False, weight 0.7100
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"; [[ -n ${FINDINGS_ENV:-} ]] || rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check hydra-core==1.3.8 torch==2.15.0 numpy==2.4.6
cat > "$work/app.py" <<'PYTHON'
import hydra
import torch
from hydra.utils import instantiate


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = instantiate(cfg.optimizer, params=[weight])
    for _ in range(2):
        weight.grad = torch.ones(1)
        optimizer.step()
    nesterov = cfg.optimizer.nesterov
    print(f"{type(nesterov).__name__} {nesterov}, weight {weight.item():.4f}")


if __name__ == "__main__":
    main()
PYTHON
cat > "$work/config.yaml" <<'YAML'
optimizer: {_target_: torch.optim.SGD, lr: 0.1, momentum: 0.9, nesterov: no}
hydra: {run: {dir: .}, output_subdir: null}
YAML
cd "$work"
"$env/bin/python" -c 'import hydra, torch; print("hydra-core", hydra.__version__, "torch", torch.__version__)'
for words in "" "optimizer.nesterov=no" "optimizer.nesterov=false"; do
  said=$("$env/bin/python" app.py $words)
  echo "'$words': $said"
  all="${all:-}$said;"
done
[[ $all == "bool False, weight 0.7100;str no, weight 0.5390;bool False, weight 0.7100;" ]] ||
  { echo "changed: the word no on the command line no longer switches it on" >&2; exit 1; }
