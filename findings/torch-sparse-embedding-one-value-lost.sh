#!/usr/bin/env bash
# SGD loses the step of nn.Embedding(n, 1, sparse=True) when one row was read and the loss is its plain sum.
# Versions: torch==2.15.0, numpy==2.4.6
#
# The gradient is printed as it should be (one row, one value, 1.0), and the step moves nothing. Two rows, or two
# columns, or any other loss move the weights. It is the shape of the linear ("wide") part of a click model, and of
# the smallest test one would write for it.
#
# Seen, on a CPU with Python 3.11:
#   one row, one column, plain sum: weights moved by 0.0 (the gradient is 1.0, lr 1.0)
#   others: {'two rows': 2.0, 'two columns': 2.0, 'loss 1.0 * sum': 1.0}
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6
"$env/bin/python" -W ignore - <<'PYTHON'
import torch


def moved(rows, columns, loss):
    torch.manual_seed(0)
    table = torch.nn.Embedding(5, columns, sparse=True)
    before = table.weight.detach().clone()
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    loss(table(torch.tensor(rows))).backward()
    assert table.weight.grad.coalesce().values().abs().sum() > 0
    optimizer.step()
    return round(float((table.weight.detach() - before).abs().sum()), 4)


one = moved([2], 1, torch.sum)
others = {"two rows": moved([2, 3], 1, torch.sum), "two columns": moved([2], 2, torch.sum),
          "loss 1.0 * sum": moved([2], 1, lambda x: (1.0 * x).sum())}
print("torch", torch.__version__)
print("one row, one column, plain sum: weights moved by", one, "(the gradient is 1.0, lr 1.0)")
print("others:", others)
assert one == 0.0, "changed: the step is no longer lost"
assert all(amount >= 1.0 for amount in others.values())
PYTHON
