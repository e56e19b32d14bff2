#!/usr/bin/env bash
# safetensors: the same tensors with the same metadata are written as another file at each call, as soon as there are two
# entries of metadata: their order in the header is drawn anew. So a sha256 tells equal checkpoints apart.
# Versions: safetensors==0.8.0, torch==2.15.0, numpy==2.4.6
#
# Tensors come in a fixed order, whatever the order of the dict, so that files look reproducible; libraries that save
# one entry of metadata, {"format": "pt"}, get the same bytes each time. Whoever adds the commit, the seed and the step
# and compares digests, to see whether a run was repeated bitwise or a mirror holds the published weights, is told no. One
# entry that holds all as JSON is written alike.
#
# Seen, on a CPU with Python 3.11:
#   no metadata: 1 digest in 20 calls
#   one entry: 1 digest in 20 calls
#   six entries: 20 digests in 20 calls; the tensors in them are equal
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 torch==2.15.0 numpy==2.4.6
"$env/bin/python" -W ignore - <<'PYTHON'
import hashlib

import safetensors
import torch
from safetensors.torch import load, save

print("safetensors", safetensors.__version__, "torch", torch.__version__)
tensors = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(3)}
six = {"format": "pt", "commit": "1a2b3c", "seed": "0", "step": "1000", "task": "r8", "lr": "0.01"}
found = {}
for name, metadata in (("no metadata", None), ("one entry", {"format": "pt"}), ("six entries", six)):
    files = [save(tensors, metadata) for _ in range(20)]
    found[name] = len({hashlib.sha256(content).hexdigest() for content in files})
    same = all(torch.equal(load(content)[key], tensors[key]) for content in files for key in tensors)
    print(f"{name}: {found[name]} digest{'s' * (found[name] > 1)} in 20 calls; the tensors in them are "
          f"{'equal' if same else 'not equal'}")
assert found["no metadata"] == found["one entry"] == 1 < found["six entries"], "changed: the digest follows the content"
PYTHON
