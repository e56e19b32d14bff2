"""The tables of a report."""

import math

import polars as pl

from ..config.settle import Settings
from . import statistics
from .numbers import Report, by_seed, floor_words, indices, kinds, place, shared
from .read import Method, Problem, paper
from .words import DASH, Cell, Table, file_name, number, printed_as, scale, score, signed, spread


def entry_of(problem: Problem) -> Settings | None:
    """What the paper has on this problem, whatever the settings; None if nothing, or not of real test data."""
    task = problem.config["task"]
    for entry in paper()["results"]:
        ours = entry["ours"]
        same = ours["task"] == problem.task and all(task.get(k) == ours[k] for k in ("model", "dataset") if k in ours)
        if same and problem.profile != "tiny" and problem.split == "test":
            found: Settings = entry
            return found
    return None


def protocol_difference(method: Method, task: str) -> str:
    """In what a method's runs are not as the paper's Table 2 has them, in words."""
    row, config = paper()["table2"].get(task), method.config
    if row is None:
        return "not in the paper"
    ours = {"epochs": config["epochs"], "lr": config["lr"], "batch": config["batch_size"]}
    if "switch_step" in config["optimizer"]:
        ours["switch"] = config["switch_epoch"]
    for reading in ("printed", "reconciled"):
        if all(row[reading][key] == value for key, value in ours.items()):
            alike = row["printed"] == row["reconciled"]
            return (
                "none in Table 2" if alike else f"none in Table 2 ({'as printed' if reading == 'printed' else reading})"
            )
    own = row["reconciled"]
    words = [f"{key} {value} (paper {own[key]})" for key, value in ours.items() if value != own[key]]
    return ", ".join(words)


def result_table(found: Report, problem: Problem, values: pl.DataFrame) -> Table:
    """In the paper's form: a row an optimizer, ours beside the paper's."""
    entry = entry_of(problem)
    settings, table2 = problem.config, found.summary.filter(pl.col("problem") == problem.index)
    unit = " (%)" if scale(problem) == 100 else ""
    last = "after the last epoch" if found.settings["metric"] == "last" else "of the best epoch"
    methods = {m.index: m for m in found.runs.methods}
    rates = {m.config["lr"] for m in methods.values() if m.problem == problem.index}
    rate = f", lr {rates.pop():g}" if len(rates) == 1 else ""  # else it is in the methods' labels
    about = f"{problem.profile} data, {settings['epochs']} epochs{rate}"
    if entry:
        title = (
            f"{entry['task']}, {entry['dataset']}, {_model(problem, entry)}: {problem.measure}{unit} {last}; {about}"
        )
    else:
        title = f"{problem.label}: {problem.measure}{unit} {last}; {about}"
    comparable = entry is not None and entry["ours"]["metric"] == problem.metric
    printed = entry["values"] if entry and comparable else {}
    columns = ["method", "ours", "n", "completed", "diverged", "failed", "unfinished", "best epoch's", "train s"]
    if entry:
        columns += ["paper", "ours - paper", "protocol difference"]
    names = {ours: theirs for theirs, ours in paper()["paper"]["optimizers"].items()}
    rows = []
    factor = entry["ours"]["scale"] if entry else 1
    for row in table2.iter_rows(named=True):
        method = methods[row["method"]]
        cells = [
            Cell(method.label, method.label, method.index),
            Cell(spread(problem, row["mean"], row["sd"]), row["mean"], method.index),
            *(Cell(str(row[k] or 0), row[k] or 0) for k in ("n", "completed", "diverged", "failed", "unfinished")),
            Cell(score(problem, row["best"]), row["best"]), Cell(number(row["seconds"]), row["seconds"]),
        ]  # fmt: skip
        if entry:
            theirs = printed.get(names.get(method.optimizer, "")) or {}
            value, theirs_sd = theirs.get("mean"), theirs.get("spread")
            gap = None if value is None or row["mean"] is None else factor * row["mean"] - value
            digits = 2 if factor == 100 else 4
            cells += [
                Cell(theirs.get("bound", DASH) if value is None else printed_as(value, theirs_sd), value),
                Cell(DASH if gap is None else f"{gap:+.{digits}f}", gap),
                Cell(protocol_difference(method, problem.task)),
            ]  # fmt: skip
        rows.append(cells)
    notes = ["ours: mean ± standard deviation between seeds (n - 1). best epoch's and train s: of completed runs."]
    if table2["lost"].sum():
        floor = found.floors[problem.index]
        notes.append(
            f"A diverged run counts as {floor_words(problem, floor)}."
            if math.isfinite(floor)
            else "No mean where a run diverged: without a baseline it only ranks below every completed run."
        )
    trivial = table2["baseline"].mean()
    if isinstance(trivial, float):
        notes.append(f"A predictor that never looks at its input: {score(problem, trivial)}{unit.strip(' ()')}.")
    if entry:
        notes.append(f"paper: {entry['source']}; n is not told, ± is not explained.")
        notes += _order_note(printed, values, problem, methods)
        if entry["ours"]["metric"] != problem.metric:
            notes.append(f"The paper's {entry['metric']} is not {problem.metric}: no value stands beside ours.")
    elif problem.split != "test":
        notes.append("Judged on examples held out of training; the paper's values are of the test split.")
    elif problem.profile == "tiny":
        notes.append("Tiny data are made up: the paper's values do not stand beside them.")
    return Table(f"results-{problem.index}-{problem.task}-{problem.profile}", title, columns, rows, notes)


def _model(problem: Problem, entry: Settings) -> str:
    return problem.config["task"].get("model") or str(entry["model"])


def _order_note(printed: Settings, values: pl.DataFrame, problem: Problem, methods: dict[int, Method]) -> list[str]:
    """The paper's order and ours, of the optimizers that both have; ours on the seeds that all of these have."""
    names = paper()["paper"]["optimizers"]
    theirs = {names[k]: v["mean"] for k, v in printed.items() if v and v.get("mean") is not None}
    own = by_seed(values.filter(pl.col("problem") == problem.index))
    own = {index: by for index, by in own.items() if methods[index].optimizer in theirs}
    seeds = sorted(set.intersection(*({*by} for by in own.values()))) if own else []
    ours: dict[str, float] = {}
    for index, by in own.items():
        name, mean = methods[index].optimizer, problem.sign * math.fsum(by[s] for s in seeds)
        ours[name] = max(mean, ours.get(name, -math.inf))
    if len(ours) < 2 or not seeds:
        return []
    sign = problem.sign
    lines = [
        " > ".join(sorted(ours, key=lambda name: -table[name]))
        for table in ({name: sign * value for name, value in theirs.items()}, ours)
    ]
    shared = f"on the {len(seeds)} seeds that all have" if len(seeds) > 1 else "on the one seed that all have"
    several = ", of several settings the best" if len(own) > len(ours) else ""
    same = " (the same)" if lines[0] == lines[1] else ""
    return [f"Best first: the paper {lines[0]}; ours {lines[1]}{same}, {shared}{several}."]


def contest_tables(found: Report) -> list[Table]:
    if not found.contests:
        return []
    level = found.settings["level"]
    share = f"{100 * (1 - level):g} %"
    columns = ["problem", "data", "method", "against", "verdict", "n", "difference", f"{share} interval",
               f"{share} bootstrap", "p", "p (Holm)", "p equivalent (Holm)", "margin"]  # fmt: skip
    rows = []
    for contest in found.contests:
        p, r, f = contest.problem, contest.result, scale(contest.problem)

        def span(low: float, high: float, p: Problem = p, r: statistics.Comparison = r) -> Cell:
            if not (r.has_spread and math.isfinite(low)):
                return Cell(DASH)
            return Cell(f"{signed(p, low)} to {signed(p, high)}", [low, high])

        rows.append([
            Cell(p.label), Cell(p.profile), Cell(contest.a.label, contest.a.label, contest.a.index),
            Cell(contest.b.label, contest.b.label, contest.b.index), Cell(contest.verdict), Cell(str(r.n), r.n),
            Cell(DASH) if math.isnan(r.mean) else Cell(signed(p, r.mean), r.mean),
            span(r.low, r.high), span(r.bootstrap_low, r.bootstrap_high),
            Cell(number(r.p) + (", sampled" if r.is_sampled else ""), r.p), Cell(number(r.p_holm), r.p_holm),
            Cell(number(r.p_equivalent_holm), r.p_equivalent_holm), Cell(number(f * r.margin), r.margin),
        ])  # fmt: skip
    count = len(found.contests)
    test = "changes of sign (permutation of the mean)" if found.settings["test"] == "permutation" else "signed ranks"
    enough = statistics.seeds_to_attain(level, count)
    notes = [
        f"Differences are method - against, paired by seed, in points where the metric is a share. Positive is "
        f"{'better' if all(c.problem.higher_is_better for c in found.contests) else 'higher, not always better'}.",
        f"p: two-sided, by {test}; exact up to {statistics.EXACT_UP_TO} seeds, of more sampled "
        f"({statistics.RESAMPLES:,}). Holm over the {count} comparisons of this report, at {level:g} in all. "
        + (f"{enough} seeds are the fewest that can reach it." if enough else "No number of seeds can reach that."),
        f"Holm holds the {count} tests of a difference to {level:g} together, and the {count} of equivalence to "
        f"another {level:g}: with probability {1 - 2 * level:g} or more no verdict of either kind is false.",
        f"The interval is Student's below {statistics.ENOUGH_TO_BOOTSTRAP} seeds, where the bootstrap's (BCa) is too "
        "narrow. Each covers by itself.",
        "p equivalent: two one-sided t-tests against the margin, which conf/report.yaml fixes; 1 below "
        f"{statistics.LEAST_TO_EQUATE} seeds on which not both diverged, and where these show no spread.",
    ]
    if equal := [c.result.n for c in found.contests if c.verdict == "equivalent"]:
        unseen = 1 - level ** (1 / min(equal))
        notes.append(
            f"equivalent speaks of the scores that were seen. {min(equal)} seeds without a divergence leave it open "
            f"whether up to {unseen:.0%} of a method's runs would diverge ({share} sure)."
        )
    if any(math.isnan(c.result.mean) for c in found.contests):
        notes.append("No difference where a run diverged without a baseline: p is then that of the signed ranks.")
    return [Table("comparisons", "Is it better?", columns, rows, notes)]


def standing_tables(found: Report) -> list[Table]:
    tables = []
    for s in found.standings:
        rows = [
            [Cell(name), Cell(f"{mean:.2f}", mean), Cell(f"{low:.2f} to {high:.2f}", [low, high])]
            for mean, name, (low, high) in sorted(zip(s.mean, s.names, s.span, strict=True))
        ]
        by = ", by the means on the seeds that all methods have" if s.unit == "problem" else ""
        notes = [
            f"Blocks are {s.unit}s{by}: {', '.join(s.blocks[:8])}{', ...' if len(s.blocks) > 8 else ''}.",
            f"Mean ranks {s.critical:.2f} apart differ (Nemenyi, {found.settings['level']:g})"
            + ("" if math.isnan(s.p) else f"; that none differs: Friedman's p = {number(s.p)}")
            + ".",
        ]
        if s.unit == "seed":
            notes.append("Seeds of one problem: a rank here says nothing of other problems.")
        columns = ["method", "mean rank", f"with one of the {s.unit}s left out"]
        title = f"Ranks on {s.kind} data (1 is best)"
        tables.append(Table(file_name("ranks", s.kind), title, columns, rows, notes))
    return tables


def improvement_tables(found: Report, values: pl.DataFrame) -> list[Table]:
    """The probability of improvement over the reference, across problems."""
    runs, settings, tables = found.runs, found.settings, []
    own, index = by_seed(values), indices(runs)
    for kind in kinds(runs):
        problems, names = shared(runs, kind)
        if settings["against"] not in names or len(names) < 2:
            continue
        rows = []
        for name in names:
            if name == settings["against"]:
                continue
            samples = [
                tuple(
                    [p.sign * v for v in own.get(index[p.index, n], {}).values()] for n in (name, settings["against"])
                )
                for p in problems
            ]
            samples = [(a, b) for a, b in samples if a and b]
            if not samples:
                continue
            value, low, high = statistics.improvement(samples, settings["level"])  # type: ignore[arg-type]
            span = DASH if math.isnan(low) else f"{low:.2f} to {high:.2f}"
            rows.append([Cell(name), Cell(f"{value:.2f}", value), Cell(span, [low, high]),
                         Cell(str(len(samples)), len(samples))])  # fmt: skip
        title = f"Probability that a run beats one of {settings['against']}, on {kind} data"
        share = f"{100 * (1 - settings['level']):g} %"
        notes = ["Mann-Whitney's, averaged over problems, ties half. The interval is a bootstrap's over seeds, too "
                 f"narrow below {statistics.ENOUGH_TO_BOOTSTRAP} of them."]  # fmt: skip
        tables.append(
            Table(file_name("improvement", kind), title, ["method", "P", f"{share} bootstrap", "problems"], rows, notes)
        )
    return tables


def time_tables(found: Report, times: pl.DataFrame) -> list[Table]:
    rows, methods = [], {m.index: m for m in found.runs.methods}
    problems = {p.index: p for p in found.runs.problems}
    inf = pl.col("epoch", "step", "seconds").cast(pl.Float64).fill_null(math.inf)
    medians = times.with_columns(inf).group_by("method", maintain_order=True).agg(
        pl.col("problem").first(), pl.col("epoch", "step", "seconds").median(),
        reached=pl.col("epoch").is_finite().sum(), n=pl.len(),
    )  # fmt: skip
    for row in sorted(medians.iter_rows(named=True), key=lambda row: place(methods[row["method"]])):
        problem = problems[row["problem"]]
        target = found.targets.get(problem.index)
        if target is None:
            continue
        never = [
            Cell("never") if math.isinf(row[k]) else Cell(number(row[k]), row[k]) for k in ("epoch", "step", "seconds")
        ]
        label = methods[row["method"]].label
        rows.append([
            Cell(problem.label), Cell(problem.profile), Cell(label, label, row["method"]),
            Cell(score(problem, target), target), Cell(f"{row['reached']} of {row['n']}", row["reached"]), *never,
        ])  # fmt: skip
    if not rows:
        return []
    whose, against = "as set", found.settings["against"]
    if found.settings["target"] is None:
        of_against = [m.problem for m in found.runs.methods if m.optimizer == against]
        having, best = set(of_against), " with the best of its settings" * (len(of_against) > len(set(of_against)))
        theirs = [p.label for p in found.runs.problems if p.index in found.targets and p.index not in having]
        whose = f"the median that {against} ends with{best}" if having else ""
        if theirs:
            all_runs = "the median that all runs end with"
            whose = f"{whose}; on {', '.join(theirs)}, where {against} has no run, {all_runs}" if having else all_runs
    columns = ["problem", "data", "method", "target", "reached", "epochs", "steps", "train s"]
    notes = [
        f"Target: {whose}. Medians over seeds of the first epoch at whose end it is reached; a run that never reaches "
        "it counts as infinite."
    ]
    return [Table("time-to-target", "Time to target", columns, rows, notes)]
