#!/usr/bin/env bash
# pytorch_optimizer's Muon ignores weight_decay for everything that it leaves to its AdamW part.
# Versions: torch==2.15.0, numpy==2.4.6, pytorch-optimizer==4.1.0
#
# Muon steps matrices; biases, norms, tables and heads go to a group with use_muon=False, which AdamW steps. The
# argument weight_decay is given to the matrices alone. The other group reads adamw_wd, whose default is 0. A
# comparison "AdamW against Muon, the same weight_decay" thus regularises the whole network in one and a part of it in
# the other.
#
# Seen, on a CPU with Python 3.11:
#   a weight of 1 after a step of lr 0.1 and weight_decay 0.5, without a gradient
#   matrix: 0.95  vector: 1.0  vector with adamw_wd=0.5: 0.95
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6 pytorch-optimizer==4.1.0
"$env/bin/python" -W ignore - <<'PYTHON'
import torch
from importlib.metadata import version
from pytorch_optimizer import Muon


def after(shape, use_muon, **settings):
    p = torch.nn.Parameter(torch.ones(shape))
    group = {"params": [p], "use_muon": use_muon}
    optimizer = Muon([group], lr=0.1, adamw_lr=0.1, weight_decay=0.5, **settings)
    p.grad = torch.zeros(shape)  # nothing but the decay can move it
    optimizer.step()
    return round(float(p.detach().flatten()[0]), 4)


matrix, vector, told = after((4, 4), True), after((4,), False), after((4,), False, adamw_wd=0.5)
print("torch", torch.__version__, "pytorch_optimizer", version("pytorch_optimizer"))
print("a weight of 1 after a step of lr 0.1 and weight_decay 0.5, without a gradient")
print("matrix:", matrix, " vector:", vector, " vector with adamw_wd=0.5:", told)
assert matrix == 0.95 and told == 0.95
assert vector == 1.0, "changed: weight_decay now reaches the vectors"
PYTHON
