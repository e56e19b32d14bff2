"""Why a verdict may not be taken at its word: what its runs, the tuning before them, and earlier judgements show."""

import math
from typing import Any

import polars as pl

from ..config.settle import Settings, flat
from ..config.values import is_number
from ..errors import DataError, count
from ..files import loads, read
from ..report.contents import Report
from ..report.formats import unit
from ..report.paper import entry_of, printed
from ..tune.plan import FOLDER as TUNE
from .evidence import Evidence
from .ledger import Ledger
from .plan import Contender

STILL_FALLING = 0.03  # share of a loss's whole fall, in the last tenth of a run; a line falls by 0.1
EDGE = 0.05  # share of a range, from either end
FAR_BELOW = 0.05  # share of the published value


def alarms_of(evidence: Evidence, ledger: Ledger, report: Report, methods: Settings) -> list[Settings]:
    """Each alarm as its kind and a sentence."""
    found = [
        *_of_failures(evidence), *_of_curves(evidence, report, methods), *_of_tuning(evidence),
        *weak_baseline(report), *_of_the_ledger(evidence, ledger),
    ]  # fmt: skip
    return [{"kind": kind, "text": text} for kind, text in found]


Found = list[tuple[str, str]]


def _of_failures(evidence: Evidence) -> Found:
    found = Found()
    for name, own in evidence.failed.items():
        if own:
            seeds, first = ", ".join(map(str, own)), next(iter(own.values())).splitlines()[0]
            words = f"{name}: no pair with seed {seeds}, since the run failed ({first}); the same command tries again"
            found.append(("failed", words))
    return found


# ---- the end of the curves


def _of_curves(evidence: Evidence, report: Report, methods: Settings) -> Found:
    """A loss that still falls in the last tenth of the run, and a ranking that crosses there."""
    completed = report.runs.runs.filter(pl.col("status") == "completed").select("run", "optimizer", "seed")
    curves = report.runs.curves.join(completed, on="run")
    means = curves.group_by("optimizer", "epoch").agg(pl.col("loss", "metric").mean()).sort("epoch")
    by_method = {name: means.filter(pl.col("optimizer") == name) for name in evidence.results}
    epochs = evidence.plan.baseline.cfg["epochs"]
    tenth = max(1, round(epochs / 10))
    where = f"in the last {'epoch' if tenth == 1 else f'{tenth} epochs'} of {epochs}"
    found, sign = Found(), report.runs.problems[0].sign
    if epochs <= 2 * tenth:
        return found
    for name, mean in by_method.items():
        loss = dict(mean.drop_nulls("loss").select("epoch", "loss").rows())
        if {1, epochs - tenth, epochs} <= loss.keys() and loss[1] > loss[epochs]:
            share = (loss[epochs - tenth] - loss[epochs]) / (loss[1] - loss[epochs])
            if share > STILL_FALLING:
                words = f"{name}'s training loss still falls {where}, by {share:.0%} of its whole fall"
                found.append(("still falling", f"{words}; longer runs may end otherwise"))
    base = dict(by_method[evidence.plan.baseline.name].drop_nulls("metric").select("epoch", "metric").rows())
    for name in methods:
        own = dict(by_method[name].drop_nulls("metric").select("epoch", "metric").rows())
        gaps = [sign * (own[e] - base[e]) for e in sorted(own.keys() & base.keys()) if e >= epochs - tenth]
        if gaps and min(gaps) < 0 < max(gaps):
            words = f"{name} and {evidence.plan.baseline.name} change places {where}"
            found.append(("crossing", f"{words}: which is ahead depends on where the run ends"))
    return found


# ---- how the methods were tuned


def _of_tuning(evidence: Evidence) -> Found:
    """Values at the edge of what a study tried, and unequal budgets."""
    plan, found = evidence.plan, Found()
    task = plan.baseline.cfg["task"]["name"]
    studies = [study for study in _studies(evidence) if study.get("task") == task]
    trials = dict.fromkeys(evidence.results, 0)
    for study in studies:
        for contender in plan.contenders:
            if of := study.get("optimizers", {}).get(contender.name):
                trials[contender.name] += of["used"]["trials"]
                found += [("edge", f"{text} (study {study['name']}); a wider space may rank otherwise")
                          for text in _edges(contender, of["space"])]  # fmt: skip
    if len(set(trials.values())) > 1:
        words = ", ".join(f"{name} {count(n, 'trial')}" for name, n in trials.items())
        found.append(("budgets", f"unequal tuning budgets under {plan.runs_dir}: {words}"))
    return found


def _studies(evidence: Evidence) -> list[Settings]:
    studies = []
    for path in sorted((evidence.plan.runs_dir / TUNE).glob("*/result.json")):
        try:
            studies.append(read(path, loads))
        except (FileNotFoundError, DataError):
            continue  # tune itself says what is wrong with it
    return [study for study in studies if isinstance(study, dict)]


def _edges(contender: Contender, space: Settings) -> list[str]:
    """Where the method's values are at, or beyond, an end of what its study tried."""
    told, cfg = [], flat(contender.cfg)
    for key, spec in space.items():
        value: Any = cfg.get(key)
        if not is_number(value):
            continue
        tried: list[Any] = [one for one in spec.get("choices", (spec.get("low"), spec.get("high"))) if is_number(one)]
        if len(tried) < 2:
            continue
        low, high = float(min(tried)), float(max(tried))
        at = (value - low) / (high - low)
        if spec.get("log") and value > 0:
            at = math.log(value / low) / math.log(high / low)
        near = 0.0 if "choices" in spec else EDGE
        if not near < at < 1 - near:
            what = "beyond" if at < 0 or at > 1 else "at the edge of"
            told.append(f"{contender.name}: {key}={value:g} is {what} what was tuned, {low:g} to {high:g}")
    return told


# ---- what others have published, and what was judged before


def weak_baseline(report: Report) -> Found:
    """A baseline, which all others are compared with, that is far below its published value."""
    problem, name = report.runs.problems[0], report.settings["against"]
    entry = entry_of(problem)
    published = printed(entry, problem).get(name, {}).get("mean")
    ours: Any = next((report.summary[m.index]["mean"] for m in report.runs.methods if m.optimizer == name), None)
    if entry is None or published is None or ours is None:
        return []
    scaled = entry["ours"]["scale"] * ours
    if problem.sign * (scaled - published) >= -FAR_BELOW * abs(published):
        return []
    words = f"{name} reaches {scaled:.4g}{unit(problem)}, far from the {published:g}{unit(problem)} that is published"
    return [("weak baseline", f"{words}: a weak baseline is easily beaten")]


def _of_the_ledger(evidence: Evidence, ledger: Ledger) -> Found:
    if not ledger.earlier:
        return []
    chance = (
        f"the chance that at least one verdict of them and this one is false is at most {ledger.false_chance():.0%}"
    )
    n = len(ledger.earlier)
    words = (
        f"{count(n, 'judgement')} {'was' if n == 1 else 'were'} made under {evidence.plan.runs_dir} before; {chance}"
    )
    found = [("ledger", words)]
    if same := ledger.on_the_same_seeds(max(evidence.seeds.values())):
        names = ", ".join(entry.name for entry in same[:3]) + (", ..." if len(same) > 3 else "")
        found.append(
            ("same seeds", f"{names}: judged before on the same task and seeds; these verdicts share their luck")
        )
    return found
