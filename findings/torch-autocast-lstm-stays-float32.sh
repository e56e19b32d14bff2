#!/usr/bin/env bash
# Under torch.autocast("cpu", torch.bfloat16) an LSTM silently computes in float32 where oneDNN is off.
# Versions: torch==2.15.0, numpy==2.4.6
#
# Linear layers and convolutions follow autocast with or without oneDNN; the LSTM follows it only with oneDNN. Without
# it (torch.backends.mkldnn disabled, a build without it, or switched off because a processor has no bf16 LSTM in
# oneDNN, which is an error there) the same program runs the recurrent part in float32, and nothing says so. A result
# labelled bf16 is then of mixed kind, and differs between machines for another reason than rounding.
#
# Seen, on a CPU with Python 3.11:
#   without oneDNN: LSTM torch.float32  linear layer torch.bfloat16
#   with oneDNN   : LSTM torch.bfloat16   (on a processor with AVX-512; an error on one without)
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6
"$env/bin/python" -W ignore - <<'PYTHON'
import torch

torch.manual_seed(0)
lstm, linear, x = torch.nn.LSTM(8, 8, batch_first=True), torch.nn.Linear(8, 8), torch.randn(2, 5, 8)
with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
    of_lstm, of_linear = lstm(x)[0].dtype, linear(x).dtype
try:
    with torch.autocast("cpu", torch.bfloat16):
        with_onednn = str(lstm(x)[0].dtype)
except RuntimeError as error:  # a processor without AVX-512
    with_onednn = str(error)[:60]
print("torch", torch.__version__)
print("without oneDNN: LSTM", of_lstm, " linear layer", of_linear)
print("with oneDNN   : LSTM", with_onednn)
assert of_linear == torch.bfloat16
assert of_lstm == torch.float32, "changed: the LSTM follows autocast without oneDNN"
PYTHON
