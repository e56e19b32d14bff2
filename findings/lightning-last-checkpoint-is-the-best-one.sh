#!/usr/bin/env bash
# Lightning: last.ckpt is not the last epoch's. With monitor and save_last=True it is the best epoch's so far.
# Versions: torch==2.15.0, numpy==2.4.6, pytorch-lightning==2.6.6
#
# ModelCheckpoint(monitor=..., save_top_k=1, save_last=True) is the usual pair "best and last". last.ckpt is written
# only when another checkpoint is: where the first of five epochs scores best, last.ckpt holds the first epoch at the
# end. A resume from it trains four epochs again, and "the last weights" that a table reports are the best ones. With
# every_n_epochs=2 the last of five epochs is in no file. Two ModelCheckpoints, one without monitor, do what is meant.
#
# Seen, on a CPU with Python 3.11:
#   monitor, save_last=True: last.ckpt holds epoch 0 of 0 to 4
#   every_n_epochs=2, save_last=True: last.ckpt holds epoch 3 of 0 to 4
#   no monitor, save_last=True: last.ckpt holds epoch 4 of 0 to 4
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"; [[ -n ${FINDINGS_ENV:-} ]] || rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6 pytorch-lightning==2.6.6
cd "$work"
"$env/bin/python" -W ignore - <<'PYTHON'
import logging

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, _):
        return self.layer(batch).mean()

    def validation_step(self, batch, _):
        self.log("error", float(self.current_epoch))  # the first epoch is the best one


def last_epoch(folder, **settings):
    trainer = pl.Trainer(max_epochs=5, callbacks=[ModelCheckpoint(folder, save_last=True, **settings)], logger=False,
                         enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    data = torch.utils.data.DataLoader(torch.ones(4, 1))
    trainer.fit(Model(), data, data)
    return torch.load(f"{folder}/last.ckpt", weights_only=True)["epoch"]


epochs = {
    "monitor": last_epoch("best", monitor="error", mode="min", save_top_k=1),
    "every_n_epochs=2": last_epoch("second", every_n_epochs=2),
    "no monitor": last_epoch("each"),
}
print("torch", torch.__version__, "pytorch-lightning", pl.__version__)
for name, epoch in epochs.items():
    print(f"{name}, save_last=True: last.ckpt holds epoch {epoch} of 0 to 4")
assert list(epochs.values()) == [0, 3, 4], "changed: last.ckpt is of another epoch"
PYTHON
