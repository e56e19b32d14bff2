#!/usr/bin/env bash
# torchmetrics: model.to(torch.bfloat16), and Lightning's precision="bf16-true", make the metrics in the model add up in
# bfloat16, which stops at 256: a mean squared error of 1 is reported as 0.256. model.bfloat16() does not.
# Versions: torch==2.15.0, numpy==2.4.6, pytorch-lightning==2.6.6, torchmetrics==1.9.0
#
# A metric is to keep the type of its sums unless set_dtype is called, so that a model's precision does not change what
# is measured. That holds for .half(), .float() and .bfloat16(), and not for .to(dtype), which means the same to torch.
# 256 + 1 is 256 in bfloat16; the count beside the sum is a whole number and goes on, so the mean shrinks with every
# example: over 10,000 of them it would be 0.0256. There is no warning, and more test data make
# it better.
#
# Seen, on a CPU with Python 3.11, over 1,000 examples with an error of 1 each:
#   model.bfloat16(): mean squared error 1.0, summed in torch.float32
#   model.to(torch.bfloat16): mean squared error 0.255859375, summed in torch.bfloat16
#   Trainer(precision="bf16-true"): mean squared error 0.255859375, summed in torch.bfloat16
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6 pytorch-lightning==2.6.6 torchmetrics==1.9.0
"$env/bin/python" -W ignore - <<'PYTHON'
import logging

import pytorch_lightning as pl
import torch
import torchmetrics

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
data = torch.utils.data.DataLoader(torch.ones(1000, 1))


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.error = torch.nn.Linear(1, 1), torchmetrics.MeanSquaredError()

    def test_step(self, batch, _):
        self.error.update(torch.zeros(1), torch.ones(1))


def by_hand(model):
    for number, batch in enumerate(data):
        model.test_step(batch, number)
    return model


def by_lightning(model):
    trainer = pl.Trainer(precision="bf16-true", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, accelerator="cpu")
    trainer.test(model, data, verbose=False)
    return model


print("torch", torch.__version__, "pytorch-lightning", pl.__version__, "torchmetrics", torchmetrics.__version__)
models = {
    "model.bfloat16()": by_hand(Model().bfloat16()),
    "model.to(torch.bfloat16)": by_hand(Model().to(torch.bfloat16)),
    'Trainer(precision="bf16-true")': by_lightning(Model()),
}
errors = [float(model.error.compute()) for model in models.values()]
for (name, model), error in zip(models.items(), errors):
    print(f"{name}: mean squared error {error}, summed in {model.error.sum_squared_error.dtype}")
assert errors[0] == 1 and max(errors[1:]) < 0.257, "changed: the sum no longer stops at 256"
PYTHON
