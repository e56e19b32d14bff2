#!/usr/bin/env bash
# pytorch_optimizer's ApolloDQN ignores the learning rates of its parameter groups, and every scheduler, for its first
# 499 updates.
# Versions: torch==2.15.0, numpy==2.4.6, pytorch-optimizer==4.1.0
#
# The warm-up (500 updates by default) goes up to the rate that the constructor was given; param_groups[i]["lr"] is
# read only when it is over. A group with a rate of its own, lr=0 for a frozen head or a smaller one for a backbone, is
# trained at the constructor's rate until then, and a run of up to 499 updates never sees it. Until then a scheduler
# changes what is logged (get_last_lr) and nothing else, so that a sweep over its settings compares equal runs. The
# authors' code does so as well.
#
# Seen, on a CPU with Python 3.11:
#   moved in 499 updates: group of lr=0.01 249.7495, group of lr=0 249.7495
#   with the rate set to 0 after 100 updates, by a scheduler: logged 0.0, moved in the next 300: 150.4497
#   moved in 20 updates after the warm-up: group of lr=0 0.0
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
from pytorch_optimizer import ApolloDQN


def steps(optimizer, tensors, number, scheduler=None):
    """How far each tensor moves, on the same slope."""
    before = [p.detach().clone() for p in tensors]
    for _ in range(number):
        for p in tensors:
            p.grad = torch.ones(4)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return [round(float((p.detach() - old).abs().max()), 4) for p, old in zip(tensors, before)]


print("torch", torch.__version__, "pytorch_optimizer", version("pytorch_optimizer"))
own, frozen = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
optimizer = ApolloDQN([{"params": [own]}, {"params": [frozen], "lr": 0.0}], lr=0.01)
moved = steps(optimizer, (own, frozen), 499)
print(f"moved in 499 updates: group of lr=0.01 {moved[0]}, group of lr=0 {moved[1]}")
_, after = steps(optimizer, (own, frozen), 20)

p = torch.nn.Parameter(torch.zeros(4))
optimizer = ApolloDQN([p], lr=0.01)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: float(update < 100))
steps(optimizer, [p], 100, scheduler)
(late,) = steps(optimizer, [p], 300, scheduler)
logged = scheduler.get_last_lr()[0]
print(f"with the rate set to 0 after 100 updates, by a scheduler: logged {logged}, moved in the next 300: {late}")
print(f"moved in 20 updates after the warm-up: group of lr=0 {after}")
assert moved[0] == moved[1] > 0.1, "changed: a group's own rate counts in the warm-up"
assert logged == 0 and late > 0.1, "changed: a scheduler counts in the warm-up"
assert after == 0, "changed: a group's own rate does not count after the warm-up either"
PYTHON
