#!/usr/bin/env bash
# A run resumed from an end-of-epoch checkpoint sees the first epoch's batches again in place of the next epoch's.
# Versions: torch==2.15.0, numpy==2.4.6, torchmetrics==1.9.0, pytorch-lightning==2.6.6
#
# Lightning's checkpoint holds no state of the random generators. A script that calls seed_everything, as it should,
# and resumes with ckpt_path after epoch 1 shuffles epoch 2 with the generator as it was before epoch 1: the order of
# the first epoch is trained twice, and the last epochs of the whole run never come. Weights and the epoch counter are
# right, so nothing shows it; a cluster that restarts its jobs trains on other data than a machine that does not.
#
# Seen, on a CPU with Python 3.11:
#   never stopped: [[0, 1, 4, 3, 2, 5], [4, 2, 0, 5, 1, 3], [3, 4, 0, 5, 1, 2]]
#   stopped and resumed after epoch 1: [[0, 1, 4, 3, 2, 5], [0, 1, 4, 3, 2, 5], [4, 2, 0, 5, 1, 3]]
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
import logging, os, tempfile
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
file = os.path.join(tempfile.mkdtemp(), "last.ckpt")


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.w, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def training_step(self, batch, index):
        self.seen += [int(x) for x in batch[0]]
        return (self.w * batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(epochs, resume=None, save=None):
    pl.seed_everything(1, verbose=False)
    model, data = Model(), TensorDataset(torch.arange(6.0)[:, None])
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False,
                 enable_model_summary=False)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", **quiet)
    trainer.fit(model, DataLoader(data, batch_size=3, shuffle=True), ckpt_path=resume)
    if save:
        trainer.save_checkpoint(save)
    return [model.seen[i : i + 6] for i in range(0, len(model.seen), 6)]


whole, first = trained(3), trained(1, save=file)
rest = trained(3, resume=file)
print("torch", torch.__version__, "pytorch-lightning", pl.__version__)
print("never stopped:", whole)
print("stopped and resumed after epoch 1:", first + rest)
assert first == whole[:1]
assert rest == whole[:2], "changed: the resumed run no longer replays the first epoch"
assert rest != whole[1:]
PYTHON
