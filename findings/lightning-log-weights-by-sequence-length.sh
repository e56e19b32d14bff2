#!/usr/bin/env bash
# Lightning: the epoch's mean of self.log is weighted by the sequence length where batches are (time, batch).
# Versions: torch==2.15.0, numpy==2.4.6, pytorch-lightning==2.6.6
#
# self.log(..., on_epoch=True) averages over the batches, weighted by a batch size that Lightning guesses: the first
# dimension of the first tensor. torch's recurrent layers read (time, batch, feature) unless batch_first=True, and
# batches padded to their longest text differ in that first dimension. Long batches count more: of two batches of two
# documents with losses 10 and 90 (of 10 and of 90 words), the mean is 82, not 50. No warning: for one tensor the guess
# is not called ambiguous. A longer text usually has a larger loss, so the curve and every monitor on it are too high.
#
# Seen, on a CPU with Python 3.11:
#   epoch mean as logged 82.0, with batch_size=2 given 50.0; warnings of a guessed batch size: 0
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6 pytorch-lightning==2.6.6
"$env/bin/python" - <<'PYTHON'
import logging
import warnings

import pytorch_lightning as pl
import torch

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Model(pl.LightningModule):
    def __init__(self, **given):
        super().__init__()
        self.given, self.layer = given, torch.nn.Linear(1, 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, tokens_TB, _):
        loss = 0 * self.layer.weight.sum() + len(tokens_TB)  # 10 and 90
        self.log("loss", loss, on_step=False, on_epoch=True, **self.given)
        return loss


def mean(**given):
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, accelerator="cpu")
    batches = torch.utils.data.DataLoader([torch.zeros(10, 2), torch.zeros(90, 2)], batch_size=None)
    trainer.fit(Model(**given), batches)
    return float(trainer.callback_metrics["loss"])


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    logged = mean()
about = [w for w in caught if "batch_size" in str(w.message) or "batch size" in str(w.message)]
warnings.simplefilter("ignore")
right = mean(batch_size=2)
print("torch", torch.__version__, "pytorch-lightning", pl.__version__)
print(f"epoch mean as logged {logged}, with batch_size=2 given {right}; warnings of a guessed batch size: {len(about)}")
assert (logged, right, len(about)) == (82.0, 50.0, 0), "changed: the mean is no longer weighted by the length"
PYTHON
