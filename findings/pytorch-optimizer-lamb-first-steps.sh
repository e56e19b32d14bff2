#!/usr/bin/env bash
# pytorch_optimizer's Lamb takes a first step of ten times the learning rate by default.
# Versions: torch==2.15.0, numpy==2.4.6, pytorch-optimizer==4.1.0
#
# The published method (You et al. 2019, Algorithm 2) corrects the bias of both moments inside the update, whose size
# the trust ratio then sets to that of the weights. By default (adam_debias=False) the class divides the rate by 1 -
# 0.9^t after the trust ratio has done its work: the first steps are 10, 5.3, 3.7 ... times lr. With adam_debias=True
# they are lr. Comparisons of LAMB at a given rate, above all short ones, are comparisons at another one.
#
# Seen, on a CPU with Python 3.11:
#   step / weight at lr=0.01, a constant gradient
#   default         : [0.1, 0.0526, 0.0369, 0.0291, 0.0244, 0.0213, 0.0192, 0.0176]
#   adam_debias=True: [0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01]
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
from pytorch_optimizer import Lamb


def relative_steps(**settings):
    p = torch.nn.Parameter(torch.full((4,), 2.0))
    optimizer, steps = Lamb([p], lr=0.01, **settings), []
    for _ in range(8):
        before = p.detach().clone()
        p.grad = torch.ones(4)
        optimizer.step()
        steps.append(round(float((p.detach() - before).norm() / before.norm()), 4))
    return steps


default, published = relative_steps(), relative_steps(adam_debias=True)
print("torch", torch.__version__, "pytorch_optimizer", version("pytorch_optimizer"))
print("step / weight at lr=0.01, a constant gradient")
print("default         :", default)
print("adam_debias=True:", published)
assert published == [0.01] * 8, "expected the rate itself, which a layer-wise trust ratio gives"
assert default[0] == 0.1 and default[-1] > 0.015, "changed: the first steps are no longer so large"
PYTHON
