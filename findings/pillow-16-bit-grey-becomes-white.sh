#!/usr/bin/env bash
# Image.open(...).convert("RGB") of a 16-bit grey PNG clips all values above 255: nearly every pixel becomes white.
# Versions: torch==2.15.0, numpy==2.4.6, torchvision==0.29.2, pillow==13.0.0
#
# It is the line that torchvision's ImageFolder and most data sets read pictures with. No warning; 8-bit files beside
# it are right. torchvision.io.decode_image scales them, so two loaders of one stack disagree about the same file.
#
# Seen, on a CPU with Python 3.11:
#   white pixels of an even ramp of 256: ImageFolder's loader 255 ; decode_image 1
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6 torchvision==0.29.2 pillow==13.0.0
"$env/bin/python" -W ignore - <<'PYTHON'
import os, tempfile
import numpy as np
import PIL, torchvision
from PIL import Image
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image

file = os.path.join(tempfile.mkdtemp(), "ramp.png")
Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None]).save(file)  # an even ramp from black to white
by_loader = np.array(default_loader(file))[0, :, 0]
scaled = decode_image(file, ImageReadMode.RGB)[0, 0].numpy() // 257
print("pillow", PIL.__version__, "torchvision", torchvision.__version__)
print("white pixels of an even ramp of 256: ImageFolder's loader", int((by_loader == 255).sum()),
      "; decode_image", int((scaled == 255).sum()))
assert (by_loader == 255).sum() == 255, "changed: 16-bit grey is no longer clipped"
assert (scaled == 255).sum() == 1
PYTHON
