#!/usr/bin/env bash
# Lightning's CSVLogger: a metric that is called `step` is replaced by the logger's own step, which counts log calls.
# Versions: torch==2.15.0, numpy==2.4.6, torchmetrics==1.9.0, pytorch-lightning==2.6.6
#
# A program that logs once an epoch and gives the optimizer's step as a metric finds 0, 1, 2, ... in the column `step` of
# metrics.csv: whoever draws the loss against that column, or compares two batch sizes by it, has epochs under the name of
# steps. Nothing is said.
#
# Seen, on a CPU with Python 3.11:
#   logged {'step': 1097, 'loss': 0.5}: metrics.csv has step 0
#   logged {'step': 2194, 'loss': 0.4}: metrics.csv has step 1
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"; [[ -n ${FINDINGS_ENV:-} ]] || rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6 torchmetrics==1.9.0 pytorch-lightning==2.6.6
cd "$work"
"$env/bin/python" - 2>/dev/null <<'PYTHON'
import csv
import sys
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger

logged = [{"step": 1097, "loss": 0.5}, {"step": 2194, "loss": 0.4}]
logger = CSVLogger(".", name="runs", version=0)
for epoch, metrics in enumerate(logged):
    logger.log_metrics(dict(metrics), step=epoch)
logger.save()
with Path("runs/version_0/metrics.csv").open() as file:
    rows = list(csv.DictReader(file))
for metrics, row in zip(logged, rows, strict=True):
    print(f"logged {metrics}: metrics.csv has step {row['step']}")
sys.exit([row["step"] for row in rows] != ["0", "1"])
PYTHON
