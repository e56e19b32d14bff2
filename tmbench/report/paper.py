"""What the paper printed (paper_results.yaml), beside what was found here."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..config.settle import Settings
from .problems import Method, Problem


@cache
def paper() -> Any:
    path = Path(__file__).parent / "paper_results.yaml"
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


@cache
def optimizers() -> list[str]:
    """The paper's optimizers in its order, by their names here."""
    return list(paper()["paper"]["optimizers"].values())


def entry_of(problem: Problem) -> Settings | None:
    """What the paper has on this problem, whatever the settings; None if nothing, or not of real test data."""
    task = problem.config["task"]
    for entry in paper()["results"]:
        ours = entry["ours"]
        same = ours["task"] == problem.task and all(task.get(k) == ours[k] for k in ("model", "dataset") if k in ours)
        if same and problem.profile != "tiny" and problem.split == "test":
            return dict(entry)
    return None


def printed(entry: Settings | None, problem: Problem) -> dict[str, Settings]:
    """By our name of the optimizer, what the paper printed for it; empty where the paper has another metric."""
    if entry is None or entry["ours"]["metric"] != problem.metric:
        return {}
    names = paper()["paper"]["optimizers"]
    return {names[theirs]: value for theirs, value in entry["values"].items() if value}


def protocol_difference(method: Method, task: str) -> str:
    """How a method's settings differ from the paper's Table 2, in words."""
    row, config = paper()["table2"].get(task), method.config
    if row is None:
        return "not in the paper"
    ours = {"epochs": config["epochs"], "lr": config["lr"], "batch": config["batch_size"]}
    if "switch_epoch" in method.facts:
        ours["switch"] = config["switch_epoch"]
    for reading, words in (("printed", "as printed"), ("reconciled", "reconciled")):
        if all(row[reading][key] == value for key, value in ours.items()):
            return "none in Table 2" + ("" if row["printed"] == row["reconciled"] else f" ({words})")
    theirs = row["reconciled"]
    return ", ".join(f"{key} {value} (paper {theirs[key]})" for key, value in ours.items() if value != theirs[key])


def order_note(
    values: dict[str, Settings], problem: Problem, scores: list[tuple[Method, dict[int, float]]]
) -> list[str]:
    """The paper's order and ours, of the optimizers that both have; ours on the seeds that all of these have.

    Args:
        values: see `printed`.
        scores: of each method the score of each seed.
    """
    theirs = {name: problem.sign * value["mean"] for name, value in values.items() if value.get("mean") is not None}
    scores = [(method, by_seed) for method, by_seed in scores if by_seed and method.optimizer in theirs]
    seeds = sorted(set.intersection(*({*by_seed} for _, by_seed in scores))) if scores else []
    ours: dict[str, float] = {}
    for method, by_seed in scores:
        total = problem.sign * math.fsum(by_seed[seed] for seed in seeds)
        ours[method.optimizer] = max(total, ours.get(method.optimizer, -math.inf))
    if len(ours) < 2 or not seeds:
        return []
    theirs_first, ours_first = (" > ".join(sorted(ours, key=lambda name: -table[name])) for table in (theirs, ours))
    which = f"on the {len(seeds)} seeds that all have" if len(seeds) > 1 else "on the one seed that all have"
    several = ", of several settings the best" if len(scores) > len(ours) else ""
    same = " (the same)" if theirs_first == ours_first else ""
    return [f"Best first: the paper {theirs_first}; ours {ours_first}{same}, {which}{several}."]
