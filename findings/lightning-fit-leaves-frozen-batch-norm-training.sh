#!/usr/bin/env bash
# A batch norm frozen by overriding train(), as is usual for fine-tuning, is not frozen in a Trainer.fit.
# Versions: torch==2.15.0, numpy==2.4.6, torchmetrics==1.9.0, pytorch-lightning==2.6.6
#
# Networks for detection and segmentation keep batch norm as it was pretrained by a train() that sends these layers back
# to evaluation. A loop in plain torch calls train() and gets that. Trainer.fit never calls it: it keeps the mode in which
# the module was constructed, and after each validation sets `training` of every submodule to what it was before. So the
# layers normalise by the batch, and their running statistics move, in every epoch and without a word.
#
# Seen, on a CPU with Python 3.11:
#   batch norm trains, after train(): False; in the steps of two epochs of fit: [True, True, True, True]
#   its running mean has moved: True
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6 torchmetrics==1.9.0 pytorch-lightning==2.6.6
"$env/bin/python" -W ignore - <<'PYTHON'
import logging
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Frozen(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.modes = Frozen(nn.Linear(2, 2), nn.BatchNorm1d(2)), []

    def training_step(self, batch, index):
        self.modes.append(self.net[1].training)
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


plain = Frozen(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
model = Model()
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
batches = DataLoader(TensorDataset(torch.arange(16.0).view(8, 2)), batch_size=4)
pl.Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(model, batches, batches)
moved = bool(model.net[1].running_mean.abs().max() > 0)
print("torch", torch.__version__, "pytorch-lightning", pl.__version__)
print(f"batch norm trains, after train(): {plain[1].training}; in the steps of two epochs of fit: {model.modes}")
print("its running mean has moved:", moved)
assert not plain[1].training and model.modes == [True] * 4 and moved, "changed: fit respects an overridden train()"
PYTHON
