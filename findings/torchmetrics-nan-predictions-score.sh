#!/usr/bin/env bash
# A network that puts out nothing but NaN gets an ordinary accuracy and an ordinary AUROC.
# Versions: torch==2.15.0, numpy==2.4.6, torchmetrics==1.9.0
#
# argmax of NaN logits is class 0, so MulticlassAccuracy reports the share of class 0, as a classifier would have that
# always says class 0. BinaryAUROC reports 0.5. Both validate their input by default (validate_args=True) and say
# nothing. Mean squared error, by contrast, becomes NaN. A diverged run thus ends with a plausible number.
#
# Seen, on a CPU with Python 3.11:
#   of NaN predictions: accuracy 0.75  AUROC 0.5  MSE nan
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
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy

nan = float("nan")
accuracy = float(MulticlassAccuracy(3, average="micro")(torch.full((4, 3), nan), torch.tensor([0, 0, 0, 1])))
auroc = float(BinaryAUROC()(torch.full((4,), nan), torch.tensor([0, 1, 1, 0])))
mse = float(torchmetrics.MeanSquaredError()(torch.full((4,), nan), torch.zeros(4)))
print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
print("of NaN predictions: accuracy", accuracy, " AUROC", auroc, " MSE", mse)
assert (accuracy, auroc) == (0.75, 0.5), "changed: NaN predictions no longer score"
assert mse != mse
PYTHON
