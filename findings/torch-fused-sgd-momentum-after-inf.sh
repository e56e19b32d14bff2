#!/usr/bin/env bash
# SGD(momentum, fused=True) under a GradScaler reads uninitialised memory if the very first step is skipped.
# Versions: torch==2.15.0, numpy==2.4.6
#
# A GradScaler skips a step whose gradient is not finite, which is usual in the first steps of mixed precision while
# the scale is still too large. The fused kernel creates the momentum buffers as empty memory in that first step, does
# not fill them because the step is skipped, and takes them for real buffers in the next one. Weights then jump by
# whatever was in memory: from nothing at all to 1e15, differently in each run. foreach=True and the plain loop are
# right.
#
# Seen, on a CPU with Python 3.11:
#   plain loop: right in 50 of 50 trials
#   fused     : right in 0 of 50 trials; largest error 2.791301320365489e+33 (differs from run to run)
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


def weights_after(fused, trial):
    junk = [torch.full((1000,), 1e3 * (trial + 1)) for _ in range(200)]  # memory that was used before, as always
    del junk
    p = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9, fused=fused, foreach=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for gradient in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((p * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    return p.detach()


right = torch.full((1000,), 0.9)  # one step of 0.1 * 1; the other was skipped
plain = [torch.allclose(weights_after(False, trial), right) for trial in range(50)]
fused = [weights_after(True, trial) for trial in range(50)]
wrong = [w for w in fused if not torch.allclose(w, right)]
print("torch", torch.__version__)
print("plain loop: right in", sum(plain), "of 50 trials")
print("fused     : right in", 50 - len(wrong), "of 50 trials;",
      "largest error", max((float((w - right).abs().max()) for w in wrong), default=0.0))
assert all(plain)
assert wrong, "changed: the fused kernel no longer uses the buffer of a skipped first step"
PYTHON
