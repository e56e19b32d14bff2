#!/usr/bin/env bash
# pytorch_optimizer's ScalableShampoo does not precondition a layer of up to block_size numbers: it is Nesterov SGD
# there.
# Versions: torch==2.15.0, numpy==2.4.6, pytorch-optimizer==4.1.0
#
# With its defaults (shape_interpretation=True, block_size=512) the dimensions of a layer are merged while their
# product stays within the block size. A matrix of up to 512 numbers, such as a classifier's head, thus becomes a
# vector, and vectors have no preconditioner. A small network is trained by SGD with Nesterov momentum alone under the
# name of Shampoo. shape_interpretation=False gives a preconditioner to each dimension, as published.
#
# Seen, on a CPU with Python 3.11:
#   preconditioners of layers ((16, 8), (32, 16), (64, 32))
#   default                   : [0, 0, 2]
#   shape_interpretation=False: [2, 2, 2]
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
from pytorch_optimizer import ScalableShampoo


def preconditioners(shape, **settings):
    w = torch.nn.Parameter(torch.randn(shape))
    optimizer = ScalableShampoo([w], lr=0.1, **settings)
    w.grad = torch.randn(shape)
    optimizer.step()
    return len(optimizer.state[w]["pre_conditioner"].pre_conditioners)


shapes = ((16, 8), (32, 16), (64, 32))
default = [preconditioners(shape) for shape in shapes]
published = [preconditioners(shape, shape_interpretation=False) for shape in shapes]
print("torch", torch.__version__, "pytorch_optimizer", version("pytorch_optimizer"))
print("preconditioners of layers", shapes)
print("default                   :", default)
print("shape_interpretation=False:", published)
assert published == [2, 2, 2]
assert default[:2] == [0, 0] and default[2] > 0, "changed: small layers are preconditioned"
PYTHON
