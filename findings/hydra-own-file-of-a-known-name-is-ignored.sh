#!/usr/bin/env bash
# Hydra: a file in --config-dir with the name of one in the program's own config_path is never read, and nothing is said.
# Versions: hydra-core==1.3.2, omegaconf==2.3.0
#
# --config-dir adds a folder to the search path, behind the program's own. A person who copies optimizer/sgd.yaml into a
# folder of theirs, changes the momentum there and passes --config-dir trains with the program's momentum, under the name
# `sgd`, and publishes it as theirs. A new name (optimizer/mine.yaml) in the same folder works.
#
# Seen, on a CPU with Python 3.11:
#   optimizer=sgd, own sgd.yaml says 0.9: momentum 0.0
#   optimizer=mine, own mine.yaml says 0.9: momentum 0.9
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"; [[ -n ${FINDINGS_ENV:-} ]] || rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check hydra-core==1.3.2 omegaconf==2.3.0
cd "$work"
mkdir -p conf/optimizer own/optimizer
echo "momentum: 0.0" > conf/optimizer/sgd.yaml
echo "momentum: 0.9" | tee own/optimizer/sgd.yaml > own/optimizer/mine.yaml
cat > conf/config.yaml <<'YAML'
defaults: [{optimizer: sgd}, _self_, {override hydra/job_logging: none}, {override hydra/hydra_logging: none}]
hydra: {output_subdir: null, run: {dir: .}}
YAML
cat > train.py <<'PYTHON'
import hydra


@hydra.main(version_base=None, config_path="conf", config_name="config")
def train(cfg):
    print(cfg.optimizer.momentum)


train()
PYTHON
shadowed=$("$env/bin/python" train.py --config-dir own optimizer=sgd)
new=$("$env/bin/python" train.py --config-dir own optimizer=mine)
echo "optimizer=sgd, own sgd.yaml says 0.9: momentum $shadowed"
echo "optimizer=mine, own mine.yaml says 0.9: momentum $new"
[[ $shadowed == 0.0 && $new == 0.9 ]]
