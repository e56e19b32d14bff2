#!/usr/bin/env bash
# accumulate_grad_batches=N: the last optimizer step of an epoch is too short if N does not divide the batches.
# Versions: torch==2.15.0, numpy==2.4.6, torchmetrics==1.9.0, pytorch-lightning==2.6.6
#
# The loss of each batch is divided by N. When an epoch ends inside a window, the step is taken with fewer batches,
# whose losses were still divided by N: with 10 equal batches and N = 4 the third step has half the gradient of the
# others. Once an epoch, in every epoch, the rate is silently another one.
#
# Seen, on a CPU with Python 3.11:
#   gradients of the steps of 4, 4 and 2 equal batches: [1.0, 1.0, 0.5]
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
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.w, self.gradients = torch.nn.Parameter(torch.zeros(1)), []

    def training_step(self, batch, index):
        return (self.w * batch[0]).mean()  # its gradient is 1 for every batch

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append(float(self.w.grad))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


model = Model()
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False,
             enable_model_summary=False)
trainer = pl.Trainer(max_epochs=1, accumulate_grad_batches=4, accelerator="cpu", **quiet)
trainer.fit(model, DataLoader(TensorDataset(torch.ones(10, 1)), batch_size=1))
print("torch", torch.__version__, "pytorch-lightning", pl.__version__)
print("gradients of the steps of 4, 4 and 2 equal batches:", model.gradients)
assert model.gradients == [1.0, 1.0, 0.5], "changed: the last step's gradient is no longer half"
PYTHON
