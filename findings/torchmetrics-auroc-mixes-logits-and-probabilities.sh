#!/usr/bin/env bash
# BinaryAUROC fed with logits gives another number for another cutting into batches, and loses the order of large
# logits.
# Versions: torch==2.15.0, numpy==2.4.6, torchmetrics==1.9.0
#
# Its documentation takes logits: they are passed through a sigmoid if a value lies outside [0, 1]. That is decided
# for each update() by itself. A batch whose logits all lie in [0, 1] is kept as it is, beside batches that went
# through the sigmoid, and the area is then taken over both scales. The sigmoid is taken in float32: logits above
# about 17 all become 1.0, so a confident network's ranking is lost in ties.
#
# Seen, on a CPU with Python 3.11:
#   one batch: 0.75  the same logits in two batches: 1.0
#   perfectly ordered logits from 18 to 25: 0.5
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6 torchmetrics==1.9.0
"$env/bin/python" -W ignore - <<'PYTHON'
import torch, torchmetrics
from torchmetrics.classification import BinaryAUROC

logits, target = torch.tensor([0.6, 0.5, -3.0, 2.5]), torch.tensor([0, 1, 0, 1])


def auroc(*parts):
    metric = BinaryAUROC()
    for part in parts:
        metric.update(logits[part], target[part])
    return float(metric.compute())


whole, cut = auroc(slice(0, 4)), auroc(slice(0, 1), slice(1, 4))
print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
print("one batch:", whole, " the same logits in two batches:", cut)
large = torch.arange(18.0, 26.0)  # the order is perfect: the later, the larger, the more positive
sure = float(BinaryAUROC()(large, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])))
print("perfectly ordered logits from 18 to 25:", sure)
assert whole == 0.75, "expected 3 of 4 pairs in order"
assert cut == 1.0, "changed: the cutting into batches no longer matters as described"
assert sure == 0.5, "changed: large logits no longer tie"
PYTHON
