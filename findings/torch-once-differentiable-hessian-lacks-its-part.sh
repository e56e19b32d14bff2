#!/usr/bin/env bash
# A Hessian lacks, without a word, what goes through an operation that is marked as differentiable once only.
# Versions: torch==2.15.0, numpy==2.4.6
#
# torch.autograd.function.once_differentiable marks the backward of a custom function that has no second derivative; who
# differentiates it twice is to be told "trying to differentiate twice a function that was marked with @once_differentiable".
# backward() says so, but only where the loss is not linear in the function's output: else the marked gradient has no graph at
# all. torch.autograd.grad(gradient, x), which asks for the gradient of x alone, never says so: the node that would raise does
# not lead to x, so it is left out, and with it the second derivative. Where anything else in the loss (a penalty, another
# layer) depends on x, a number comes back, and it is wrong; torch.autograd.functional.hessian and hvp return it as well.
# Curvature, Hessian-vector products and influence functions of a network with such a layer lack that layer's part.
#
# Seen, on a CPU with Python 3.11, at x = 2, with y = x^3 once differentiable:
#   y + x^2   second derivative 14; grad of grad 2, functional.hessian 2, functional.hvp 2; backward() of the gradient 2
#   y^2 + x^2 second derivative 482; grad of grad 2, functional.hessian 2, functional.hvp 2; backward() of the gradient
#             raises "trying to differentiate twice ..."
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
"$env/bin/python" - <<'PYTHON'
import torch
from torch.autograd.function import once_differentiable


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2


LOSSES = {"y + x^2": lambda x, y: (y + x**2).sum(), "y^2 + x^2": lambda x, y: (y**2 + x**2).sum()}


def found(loss):
    """The second derivative at 2 by each way; what backward() of the gradient leaves, or raises."""

    def marked(x):
        return loss(x, Cube.apply(x))

    def gradient(of):
        x = torch.tensor([2.0], requires_grad=True)
        return x, torch.autograd.grad(of(x), x, create_graph=True)[0].sum()

    x, g = gradient(lambda x: loss(x, x**3))
    plain = torch.autograd.grad(g, x)[0].item()
    x, g = gradient(marked)
    twice = torch.autograd.grad(g, x)[0].item()
    hessian = torch.autograd.functional.hessian(marked, torch.tensor([2.0])).item()
    product = torch.autograd.functional.hvp(marked, torch.tensor([2.0]), torch.tensor([1.0]))[1].item()
    x, g = gradient(marked)
    try:
        g.backward()
        told = x.grad.item()
    except RuntimeError as error:
        told = str(error)
    return plain, twice, hessian, product, told


results = {name: found(loss) for name, loss in LOSSES.items()}
for name, (plain, twice, hessian, product, told) in results.items():
    print(f"{name}: plain {plain:g}; grad of grad {twice:g}, hessian {hessian:g}, hvp {product:g}; backward(): {told}")
as_described = results["y + x^2"] == (14, 2, 2, 2, 2)
as_described &= results["y^2 + x^2"][:4] == (482, 2, 2, 2) and "differentiate twice" in str(results["y^2 + x^2"][4])
raise SystemExit(0 if as_described else 1)
PYTHON
