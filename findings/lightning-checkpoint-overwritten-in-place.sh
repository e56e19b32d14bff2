#!/usr/bin/env bash
# trainer.save_checkpoint overwrites the old checkpoint in place, where the temporary folder is another file system.
# Versions: torch==2.15.0, numpy==2.4.6, torchmetrics==1.9.0, pytorch-lightning==2.6.6
#
# Its writer is called atomic: it writes a temporary file and moves it over the target. The temporary file is made in
# TMPDIR. Where that is on another file system, as on most clusters (node-local scratch or tmpfs) and in many
# containers, a move is a copy into the existing file. A kill in that moment leaves half a checkpoint under the only
# name there was, and a run that keeps one `last.ckpt` has then nothing to resume from. With TMPDIR beside the target
# it is a rename.
#
# Seen, on a CPU with Python 3.11:
#   a new file takes the name: with the temporary folder beside it True ; on another file system False
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

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
target = os.path.join(tempfile.mkdtemp(), "last.ckpt")


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))


quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False,
             enable_model_summary=False)
trainer = pl.Trainer(accelerator="cpu", **quiet)
trainer.strategy.connect(Model())
trainer.save_checkpoint(target)


def replaced(folder):
    tempfile.tempdir = folder
    with open(target, "rb") as held:  # the old file cannot go away and give its number to the new one
        trainer.save_checkpoint(target)
        return os.fstat(held.fileno()).st_ino != os.stat(target).st_ino


other, same = "/dev/shm", os.path.dirname(target)
if os.stat(other).st_dev == os.stat(same).st_dev:
    raise SystemExit("this machine has no second file system at /dev/shm: nothing to see")
near, far = replaced(same), replaced(other)
print("torch", torch.__version__, "pytorch-lightning", pl.__version__)
print("a new file takes the name: with the temporary folder beside it", near, "; on another file system", far)
assert near
assert not far, "changed: the old checkpoint is no longer written over in place"
PYTHON
