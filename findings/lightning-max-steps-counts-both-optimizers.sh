#!/usr/bin/env bash
# Lightning: a GAN with max_steps=100 trains 50 batches: the steps of both optimizers are added up.
# Versions: torch==2.15.0, numpy==2.4.6, pytorch-lightning==2.6.6
#
# trainer.global_step grows by one with every step() of every optimizer of manual optimization. max_steps, the step in
# the names of checkpoints and the axis of the curves follow it. The same number of steps for a GAN and for a
# classifier thus trains the GAN on half of the batches, and a discriminator that takes five steps a batch on a sixth.
#
# Seen, on a CPU with Python 3.11:
#   1 optimizer: 100 batches at global_step 100
#   2 optimizers: 50 batches at global_step 100
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6 pytorch-lightning==2.6.6
"$env/bin/python" -W ignore - <<'PYTHON'
import logging

import pytorch_lightning as pl
import torch

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Model(pl.LightningModule):
    automatic_optimization = False

    def __init__(self, players):
        super().__init__()
        self.layers, self.batches = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(players)), 0

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in self.layers]

    def training_step(self, batch, _):
        self.batches += 1
        for optimizer, layer in zip(self.optimizers(use_pl_optimizer=True) if len(self.layers) > 1
                                    else [self.optimizers()], self.layers):
            optimizer.zero_grad()
            self.manual_backward(layer(batch).mean())
            optimizer.step()


print("torch", torch.__version__, "pytorch-lightning", pl.__version__)
counted = []
for players in (1, 2):
    model = Model(players)
    trainer = pl.Trainer(max_steps=100, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, accelerator="cpu")
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(4, 1)))
    print(f"{players} optimizer{'s'[: players - 1]}: {model.batches} batches at global_step {trainer.global_step}")
    counted += [(model.batches, trainer.global_step)]
assert counted == [(100, 100), (50, 100)], "changed: max_steps no longer counts the steps of all optimizers"
PYTHON
