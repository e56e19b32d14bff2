#!/usr/bin/env bash
# A MetricCollection silently replaces one metric by another if their states happen to agree after the first update.
# Versions: torch==2.15.0, numpy==2.4.6, torchmetrics==1.9.0
#
# MetricCollection finds its `compute_groups` by comparing the values of the states after the first batch. Two metrics
# that share state names but count different things (here the same accuracy at two thresholds) are merged for good if
# the first batch gives both the same counts, as an easy first batch does. From then on only the first is updated, and
# its value is reported for both, also after reset(). compute_groups=False avoids it.
#
# Seen, on a CPU with Python 3.11:
#   default              {'at_50': 1.0, 'at_90': 1.0}        (the truth of at_90: 0.1667)
#   compute_groups=False {'at_50': 1.0, 'at_90': 0.1667}
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
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy

batches = [(torch.tensor([0.95, 0.05]), torch.tensor([1, 0])),       # both thresholds say the same here
           (torch.full((10,), 0.7), torch.ones(10, dtype=torch.int))]  # 0.5 says 1, 0.9 says 0


def measured(**how):
    metrics = MetricCollection({"at_50": BinaryAccuracy(0.5), "at_90": BinaryAccuracy(0.9)}, **how)
    for preds, target in batches:
        metrics.update(preds, target)
    return {name: round(float(value), 4) for name, value in metrics.compute().items()}


merged, alone = measured(), measured(compute_groups=False)
print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
print("default             ", merged)
print("compute_groups=False", alone)
assert alone == {"at_50": 1.0, "at_90": round(2 / 12, 4)}, "expected the true accuracies without groups"
assert merged == {"at_50": 1.0, "at_90": 1.0}, "changed: the second metric is no longer replaced by the first"
PYTHON
