"""The result of a judgement: verdicts with what they rest on, what they cost, and the sentences that say so."""

import math
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

from ..config.settle import Settings
from ..errors import count
from ..report import answers
from ..report.__main__ import main as report_command
from ..report.contents import Report
from ..report.formats import difference, finite, signed
from ..report.problems import Problem
from ..report.read import read, records
from ..report.statistics import seeds_to_find
from ..report.variance import sample_split
from ..result import versions
from ..runs import Run
from .alarms import alarms_of
from .evidence import Evidence, Pair
from .ledger import Ledger
from .rounds import run_facts
from .sequential import fixed_design_seeds, verdicts

SCHEMA = 1  # of a judgement's result.json
POWER = 0.8  # of planned seeds


def content_of(evidence: Evidence, ledger: Ledger) -> tuple[Settings, Report]:
    """The content of result.json, which docs/judge.md describes, and the report on the runs, still without them."""
    plan, report = evidence.plan, _report(evidence)
    problem, design = report.runs.problems[0], evidence.design()
    methods = {method.name: _method(evidence, method.name, problem) for method in plan.methods}
    of_all = {method["verdict"] for method in methods.values()}
    taken = max(evidence.seeds.values())
    content = {
        "schema_version": SCHEMA, "name": plan.name, "verdict": of_all.pop() if len(of_all) == 1 else "mixed",
        "methods": methods, "against": plan.baseline.name, "task": problem.task, "profile": problem.profile,
        "split": problem.split, "metric": problem.metric, "higher_is_better": problem.higher_is_better,
        "epochs": plan.baseline.cfg["epochs"], "margin": design.margin,
        "design": {"max_seeds": design.max_seeds, "first_seed": plan.settings["first_seed"], "alpha": design.alpha,
                   "methods": design.comparisons, "least_seeds": design.least_seeds()},
        "spent": _spent(evidence, taken), "noise_floor": _noise_floor(evidence, problem),
        "alarms": alarms_of(evidence, ledger, report, methods),
        "ledger": {"earlier": len(ledger.earlier), "false_at_most": ledger.false_chance(),
                   "on_the_same_seeds": [entry.name for entry in ledger.on_the_same_seeds(taken)]},
        "failed": [{"method": name, "seed": seed, "error": error}
                   for name, own in evidence.failed.items() for seed, error in own.items()],
        "runs": [run_facts(*run) for run in evidence.runs()],
        "command": plan.command, "folder": str(plan.folder), "page": str(plan.page_folder / "judge.html"),
        "versions": versions(),
    }  # fmt: skip
    return finite(content), report


def _report(evidence: Evidence) -> Report:
    """The report on the runs, against the baseline."""
    folders = [result.folder or Path(result.run_id) for _, _, result in evidence.runs()]
    found, notes = records([Run.open(folder) for folder in folders])
    settings, _ = report_command.parse([f"against={evidence.plan.baseline.name}"])
    return answers.report(read(found, "last", notes), settings)


# ---- one method


def _method(evidence: Evidence, name: str, problem: Problem) -> Settings:
    pairs = evidence.pairs(name)
    differences = [pair.difference for pair in pairs]
    looks = evidence.looks.get(name, [])
    has_size = bool(differences) and all(map(math.isfinite, differences))
    sd = stdev(differences) if has_size and len(differences) > 1 else math.nan
    last = looks[-1] if looks else None
    found: Settings = {
        "verdict": evidence.verdicts[name], "sentence": "", "pairs": len(pairs),
        "decided_after": _decided_after(evidence, name), "difference": fmean(differences) if has_size else math.nan,
        "sd": sd, "interval": [last.low, last.high] if last and has_size else [math.nan, math.nan],
        "p": {key: getattr(last, f"p_{key}") if last else 1.0 for key in ("better", "worse", "equivalent")},
        "diverged": {"method": sum(pair.method.score is None for pair in pairs),
                     "against": sum(pair.against.score is None for pair in pairs)},
        "both_diverged": [pair.seed for pair in pairs if pair.both_diverged],
        "seeds": [pair.seed for pair in pairs], "differences": differences,
        "looks": [look._asdict() for look in looks],
        "would_take": _would_take(evidence, differences, sd) if evidence.verdicts[name] == "undecided" else None,
        "fixed_design": _fixed_design(evidence, differences, sd),
    }  # fmt: skip
    found["variance"] = _variance(evidence, name, pairs, problem)
    found["sentence"] = _sentence(evidence, name, found, problem, pairs)
    return found


def _decided_after(evidence: Evidence, name: str) -> int | None:
    """The number of pairs at the first look that decides."""
    if evidence.verdicts[name] == "undecided":
        return None
    for n in range(1, len(evidence.looks[name]) + 1):
        if verdicts(evidence.looks | {name: evidence.looks[name][:n]}, evidence.design())[name] != "undecided":
            return n
    return None


def _would_take(evidence: Evidence, differences: list[float], sd: float) -> Settings | None:
    """How many seeds of a fixed design would find the difference that was seen, or the margin if that is more."""
    design = evidence.design()
    if not (differences and sd > 0):
        return None
    size = max(abs(fmean(differences)), design.margin or 0.0)
    seeds = seeds_to_find(size, sd, design.alpha, POWER, design.comparisons) if size else None
    return None if seeds is None else {"difference": size, "seeds": seeds}


def _fixed_design(evidence: Evidence, differences: list[float], sd: float) -> Settings:
    """What a design with a fixed number of seeds spends: as planned, and if it had known the difference."""
    design = evidence.design()
    effect = abs(fmean(differences)) / sd if differences and sd > 0 else 0.0
    alpha = design.alpha / design.comparisons
    return {
        "planned": design.max_seeds,
        "knowing": (fixed_design_seeds(effect, POWER, alpha) or None) if effect else None,
    }


def _variance(evidence: Evidence, name: str, pairs: list[Pair], problem: Problem) -> Settings | None:
    """The variance of the differences by seeds and test examples; None where a run has kept no scores of examples.

    The intervals are of this number of seeds, as if it had been fixed: they are not corrected for looks.
    """
    folders = [(pair.method.folder, pair.against.folder) for pair in pairs
               if pair.method.score is not None and pair.against.score is not None]  # fmt: skip
    known = [(a, b) for a, b in folders if a and b]
    if len(known) < len(pairs):
        return None
    found = sample_split(known, problem.higher_is_better, evidence.plan.settings["alpha"])
    if found is None:
        return None
    of = problem.measured_by(found.metric)
    training, both = (
        f"{signed(of, low)} to {difference(of, high, sign=True)}"
        for low, high in (found.split.of_training, found.split.of_both)
    )
    is_judged = found.metric == problem.metric
    about = "the verdict" if is_judged else f"the verdict, by {problem.metric},"
    text = (
        f"{name}'s difference{'' if is_judged else f' in {found.metric}'} is {training} on these "
        f"{found.test_examples:,} test examples, which {about} is about, and {both} if they might be others; neither "
        "interval is corrected for looks"
    )
    return {"metric": found.metric, "test_examples": found.test_examples, **asdict(found.split), "text": text}


def _sentence(evidence: Evidence, name: str, found: Settings, problem: Problem, pairs: list[Pair]) -> str:
    """What a paper may print."""
    plan, design = evidence.plan, evidence.design()
    against, verdict, mean = plan.baseline.name, found["verdict"], found["difference"]
    where = (
        f"on {problem.label} ({problem.measure}, {problem.profile} data, {count(plan.baseline.cfg['epochs'], 'epoch')})"
    )
    seeds = f"{count(found['pairs'], 'paired seed')} of at most {design.max_seeds}"
    test = f"sequential sign-flip test at level {design.alpha:g}" + (
        f", corrected for {design.comparisons} methods" if design.comparisons > 1 else "")  # fmt: skip
    low, high = found["interval"]
    interval = ""
    if math.isfinite(low) and math.isfinite(high):
        ends = f"{signed(problem, low)} to {difference(problem, high, sign=True)}"
        interval = f"{100 * (1 - design.alpha):g} % confidence sequence {ends}, "
    if verdict in ("better", "worse"):
        size = f"{difference(problem, abs(mean))} " if math.isfinite(mean) else ""
        head = f"{name} is {size}{verdict} than {against} {where}: {interval}{seeds}, {test}."
    elif verdict == "equivalent":
        margin = difference(problem, design.margin or 0.0)
        head = f"{name} and {against} are equivalent within {margin} {where}: {interval}{seeds}, {test}."
    else:
        head = f"It is undecided whether {name} is better than {against} {where}: {interval}{seeds}, {test}."
        if take := found["would_take"]:
            head += (
                f" About {take['seeds']:,} seeds would find a difference of {difference(problem, take['difference'])}."
            )
        elif found["pairs"] and found["sd"] == 0:
            head += " The differences have no spread, so no number of seeds can be named."
    return head + _diverged(found, name, against, problem, pairs)


def _diverged(found: Settings, name: str, against: str, problem: Problem, pairs: list[Pair]) -> str:
    numbers = {name: found["diverged"]["method"], against: found["diverged"]["against"]}
    words = " and ".join(f"{n} of {whose}'s {len(pairs)} runs" for whose, n in numbers.items() if n)
    if not words:
        return ""
    if not math.isfinite(found["difference"]):
        return f" {words} diverged; without a baseline they are worse than every other, by no known amount."
    return f" {words} diverged; a diverged run counts as the worse of the baseline and the worst run so far."


# ---- all of them


def _spent(evidence: Evidence, taken: int) -> Settings:
    """Seeds, runs and device-seconds, and what a design with a fixed number of seeds would have spent."""
    seconds: dict[str, list[float]] = {}
    for contender, _, result in evidence.runs():
        seconds.setdefault(contender.name, []).append(result.own_seconds * contender.processes)
    most = len(evidence.plan.seeds)
    return {
        "seeds": taken, "runs": sum(map(len, seconds.values())),
        "device_seconds": sum(map(sum, seconds.values())),
        "fixed_design": {"seeds": most, "runs": most * len(seconds),
                         "device_seconds": most * sum(map(fmean, seconds.values()))},
    }  # fmt: skip


def _noise_floor(evidence: Evidence, problem: Problem) -> Settings | None:
    """How far two runs of the baseline on different seeds are apart: the mean over all pairs of them."""
    scores = [score for r in evidence.results[evidence.plan.baseline.name].values() if (score := r.score) is not None]
    gaps = [abs(a - b) for i, a in enumerate(scores) for b in scores[:i]]
    if not gaps:
        return None
    return {"between": fmean(gaps), "sd": stdev(scores), "runs": len(scores), "text": difference(problem, fmean(gaps))}
