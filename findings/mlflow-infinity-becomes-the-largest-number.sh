#!/usr/bin/env bash
# MLflow: a metric logged as inf is read back as 1.7976931348623157e308, a finite number; nan stays nan.
# Versions: mlflow-skinny==3.17.2, sqlalchemy==2.0.49, alembic==1.18.4
#
# An optimizer that diverges often shows it as an infinite loss. MLflow's SQL store (its default) replaces inf by the
# largest double and says nothing, so a program that filters runs by math.isfinite keeps the diverged one, and a mean
# over seeds becomes about 1e308 instead of inf. `min` and `max` of the history are finite as well.
#
# Seen, on a CPU with Python 3.11:
#   logged inf: read back 1.7976931348623157e+308, finite True
#   logged -inf: read back -1.7976931348623157e+308, finite True
#   logged nan: read back nan, finite False
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
work=$(mktemp -d)
trap 'rm -rf "$work"; [[ -n ${FINDINGS_ENV:-} ]] || rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  mlflow-skinny==3.17.2 sqlalchemy==2.0.49 alembic==1.18.4
cd "$work"
MLFLOW_DISABLE_TELEMETRY=true "$env/bin/python" - 2>/dev/null <<'PYTHON'
import math
import sys

from mlflow import MlflowClient

client = MlflowClient("sqlite:///runs.db")
run = client.create_run(client.create_experiment("seeds", artifact_location="artifacts")).info.run_id
seen = {}
for name, value in (("inf", math.inf), ("-inf", -math.inf), ("nan", math.nan)):
    key = name.replace("-", "minus_")
    client.log_metric(run, key, value)
    seen[name] = client.get_run(run).data.metrics[key]
    print(f"logged {name}: read back {seen[name]!r}, finite {math.isfinite(seen[name])}")
expected = seen["inf"] == sys.float_info.max and seen["-inf"] == -sys.float_info.max and math.isnan(seen["nan"])
sys.exit(not expected)
PYTHON
