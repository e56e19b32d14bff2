#!/usr/bin/env bash
# Optuna 5: trials that a kill left RUNNING steer what a resumed study suggests.
# Versions: optuna==5.0.0
#
# TPESampler has constant_liar=True by default: running trials count as bad ones, so that parallel workers spread out.
# A trial whose process was killed stays RUNNING in the storage for ever. A study resumed after a kill therefore
# suggests other points than one that was never killed, with the same sampler seed and the same finished trials.
# Ending such trials (tell(state=FAIL)) or constant_liar=False restores the suggestions.
#
# Seen, on a CPU with Python 3.11:
#   never killed 0.2838  three dead trials 0.2696  the same, ended as FAIL 0.2838
#   constant_liar=False: the same with and without dead trials
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check optuna==5.0.0
"$env/bin/python" -W ignore - <<'PYTHON'
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)


def suggestion(dead, end=False, **settings):
    study = optuna.create_study()
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for i in range(30):
        x = 0.1 + 0.8 * (i * 37 % 30) / 30
        study.add_trial(optuna.trial.create_trial(params={"x": x}, distributions=space, value=(x - 0.3) ** 2))
    for number in range(dead):
        study.sampler = optuna.samplers.TPESampler(seed=100 + number, **settings)
        trial = study.ask(space)  # its process is killed here
        if end:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    study.sampler = optuna.samplers.TPESampler(seed=7, **settings)
    return study.ask(space).params["x"]


never, killed, ended = suggestion(0), suggestion(3), suggestion(3, end=True)
honest = [suggestion(dead, constant_liar=False) for dead in (0, 3)]
print("optuna", optuna.__version__)
print("never killed", never, " three dead trials", killed, " the same, ended as FAIL", ended)
print("constant_liar=False: never killed", honest[0], " three dead trials", honest[1])
assert killed != never, "changed: dead trials no longer steer the sampler"
assert ended == never and honest[0] == honest[1]
PYTHON
