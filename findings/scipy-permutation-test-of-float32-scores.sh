#!/usr/bin/env bash
# The exact p of the same accuracies is another one at another level: permutation_test loses ties of float32 scores.
# Versions: numpy==2.4.6, scipy==1.17.1
#
# An accuracy is a count over a count, and metric libraries give it as float32. Paired differences of such scores are
# then equal only to about 1e-7. scipy.stats.permutation_test counts a permuted statistic as "as extreme" within a
# relative 1e-14, so ties that are exact in the counts are broken by the rounding, one way or the other, depending on
# the level of the scores. The differences below are the same eight numbers of right answers each time; p is 0.047 or
# 0.063, on both sides of 0.05. Differences as whole numbers (or rounded to the metric's resolution) give 0.0625 each
# time.
#
# Seen, on a CPU with Python 3.11:
#   p of the counts: 0.0625  of float32 accuracies, against 1500 right: 0.046875; 1501 right: 0.0625;
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 scipy==1.17.1
"$env/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import scipy
from scipy import stats

counts = np.array([3, 1, 7, 2, -2, 3, 7, 0])  # more right answers of 2,189, on eight seeds


def p(differences):
    return float(stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999).pvalue)


def as_float32(base):
    return ((base + counts) / 2189).astype(np.float32).astype(float) - float(np.float32(base / 2189))


found = {base: p(as_float32(base)) for base in (1500, 1501)}
print("numpy", np.__version__, "scipy", scipy.__version__)
print("p of the counts:", p(counts), " of float32 accuracies, against", *(f"{b} right: {v};" for b, v in found.items()))
assert p(counts) == 0.0625
assert min(found.values()) < 0.05 < max(found.values()), "changed: float32 ties no longer decide"
PYTHON
