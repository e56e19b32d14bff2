#!/usr/bin/env bash
# Evaluating more often changes what is trained: starting to iterate any DataLoader draws from torch's global
# generator.
# Versions: torch==2.15.0, numpy==2.4.6
#
# Also with shuffle=False and num_workers=0, where nothing random happens, each `for batch in loader` draws a base
# seed from the global generator, unless the loader has a generator of its own. Dropout, noise and the training
# loader's own shuffling come from the same generator. So two runs with the same seed that differ only in how often
# they look at the validation set see other batches and other dropout, and are not paired.
#
# Seen, on a CPU with Python 3.11:
#   second epoch's order, never evaluated: [0, 3, 7, 1, 6, 2, 5, 4]
#                         evaluated once : [6, 1, 3, 4, 7, 0, 5, 2]
#                         once, own generator in the validation loader: [0, 3, 7, 1, 6, 2, 5, 4]
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
from torch.utils.data import DataLoader, TensorDataset


def training_order(evaluations, **how):
    torch.manual_seed(0)
    data = TensorDataset(torch.arange(8))
    train, validation = DataLoader(data, shuffle=True, batch_size=8), DataLoader(data, batch_size=8, **how)
    first = next(iter(train))[0].tolist()
    for _ in range(evaluations):
        for _ in validation:
            pass
    return first, next(iter(train))[0].tolist()


none, once = training_order(0), training_order(1)
own = training_order(1, generator=torch.Generator())
print("torch", torch.__version__)
print("second epoch's order, never evaluated:", none[1])
print("                      evaluated once :", once[1])
print("                      once, own generator in the validation loader:", own[1])
assert none[0] == once[0]
assert none[1] != once[1], "changed: evaluation no longer changes the order of training"
assert own[1] == none[1]
PYTHON
