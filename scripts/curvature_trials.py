"""Does the measured curvature know which switches go wrong, and when to switch?

    python scripts/curvature_trials.py switches runs_dir=DIR                # tiny data, some 10 minutes on 2 cores
    python scripts/curvature_trials.py stable runs_dir=DIR data_dir=DATA    # R8 and CIFAR-10, some 40 minutes

`switches`: a grid of switches to TM-SGD and TM-SGD-M, fixed before anything was measured (the constants below). A
switch is warned of where the rate times the curvature just before it is beyond the limit after it. It goes wrong where
the run diverges, or its training loss is more than 1.5 times that of the epoch before, within two epochs. `stable`:
where switch_epoch=stable switched, and how it ended beside fixed switches and none. Both write a table and every number
to `out`, docs/curvature.
"""

import csv
import json
import sys
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tmbench
from tmbench.config.machine import cpu_model
from tmbench.config.table import values_of
from tmbench.config.values import Setting
from tmbench.files import write
from tmbench.result import Result, shown, versions
from tmbench.verbs import DATA_DIR, RUNS_DIR, Values, Verb

TASKS, OPTIMIZERS, EPOCHS, SWITCHES = ("tc", "ic", "fkpd"), ("tmsgd", "tmsgdm"), 8, (2, 6)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the task's rate on tiny data
WORSE, WITHIN = 1.5, 2  # times the loss before, epochs

STABLE: dict[str, dict[str, Any]] = {
    "tc": {"seeds": 5, "epochs": 12, "data": "full"},
    "ic": {"seeds": 3, "epochs": 12, "data": "full", "lr": 0.1, "task.model": "resnet18", "task.width": 8},
}
FIXED = (0.5, 0.75, 0.9)  # share of the epochs


def rows_of(result: Result) -> list[dict[str, float]]:
    assert result.folder is not None
    with (result.folder / "curves.csv").open() as f:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(f)]


def switches(settings: Values) -> list[dict[str, Any]]:
    """One row a switch of the grid."""
    found = []
    for task, factor, optimizer, switch in product(TASKS, FACTORS, OPTIMIZERS, SWITCHES):
        lr = factor * values_of(f"task/{task}.yaml")["tiny"]["lr"]
        result = tmbench.run(
            task, optimizer, epochs=EPOCHS, switch_epoch=switch, lr=lr, curvature="measure", data="tiny",
            runs_dir=settings["runs_dir"], progress=False,
        )  # fmt: skip
        rows = {int(row["epoch"]): row for row in rows_of(result)}
        if switch not in rows:  # diverged before
            continue
        after = [rows[epoch]["train/loss"] for epoch in range(switch + 1, switch + 1 + WITHIN) if epoch in rows]
        growth = max(after) / rows[switch]["train/loss"] if len(after) == WITHIN else float("inf")
        uses = rows[switch].get("curvature/used_after_switch", float("nan"))
        found.append(
            {
                "task": task, "optimizer": optimizer, "lr": lr, "switch": switch, "uses": uses, "warned": uses > 1,
                "growth": growth, "wrong": growth > WORSE,
            }
        )  # fmt: skip
        print(*found[-1].values(), file=sys.stderr)
    return found


def stable(settings: Values) -> list[dict[str, Any]]:
    """One row a task and way to switch: where, and the metric over seeds."""
    found = []
    for task, asked in STABLE.items():
        words = {key: value for key, value in asked.items() if key != "seeds"}
        places = {"runs_dir": settings["runs_dir"], "data_dir": settings["data_dir"], "progress": False}
        ways = ["never", *(round(share * asked["epochs"]) for share in FIXED), "stable"]
        done = tmbench.sweep(
            task=task, optimizer="tmsgd", seed=list(range(asked["seeds"])), switch_epoch=ways, **words, **places
        )
        for way in ways:
            results = [r for r in done.results if r.switch["requested"] == way]
            scores = [r.score for r in results if r.score is not None]
            found.append(
                {
                    "task": task, "switch": way, "metric": results[0].headline, "n": len(scores),
                    "diverged": sum(r.status == "diverged" for r in results),
                    "mean": mean(scores), "sd": stdev(scores),
                    "switched after": [r.switch["effective"] for r in results],
                }
            )  # fmt: skip
    return found


def summary(grid: list[dict[str, Any]]) -> str:
    wrong, fine = ([row for row in grid if row["wrong"] is is_wrong] for is_wrong in (True, False))
    warned, warned_wrong, warned_fine = (sum(row["warned"] for row in rows) for rows in (grid, wrong, fine))
    return (
        f"{len(grid)} switches, {warned} of them beyond the limit. Of {len(wrong)} that went wrong, {warned_wrong} "
        f"were warned of; of {len(fine)} that did not, {warned_fine}."
    )


def table(grid: list[dict[str, Any]]) -> str:
    lines = ["| task | method | lr | switch after | share of the limit | loss after / before | warned | went wrong |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in sorted(grid, key=lambda row: (TASKS.index(row["task"]), -row["uses"])):
        growth = "diverged" if row["growth"] == float("inf") else f"{row['growth']:.2f}"
        marks = ["yes" if row[key] else "" for key in ("warned", "wrong")]
        lines.append(
            f"| {row['task']} | {row['optimizer']} | {row['lr']:g} | {row['switch']} | {row['uses']:.2f} | {growth} | "
            f"{marks[0]} | {marks[1]} |"
        )
    return "\n".join(lines) + "\n"


def ways_table(ways: list[dict[str, Any]]) -> str:
    lines = ["| task | switch | n | metric after the last epoch | switched after epoch |", "|---|---|---|---|---|"]
    for row in ways:
        score = f"{shown(row['mean'], row['metric'])} ± {shown(row['sd'], row['metric'])}"
        after = ", ".join("never" if each is None else str(each) for each in row["switched after"])
        diverged = f" ({row['diverged']} diverged)" if row["diverged"] else ""
        lines.append(f"| {row['task']} | {row['switch']} | {row['n']}{diverged} | {score} | {after} |")
    return "\n".join(lines) + "\n"


def trials(settings: Values, words: list[str]) -> int:
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    for part in words:
        rows = {"switches": switches, "stable": stable}[part](settings)
        text = f"{summary(rows)}\n\n{table(rows)}" if part == "switches" else ways_table(rows)
        write(out / f"{part}.md", text)
        about = {"hardware": cpu_model(), "versions": versions(), "rows": rows}
        write(out / f"{part}.json", json.dumps(about, indent=1, default=str).replace("Infinity", "null") + "\n")
        print(text)
    return 0


main = Verb(
    "curvature_trials",
    "Trials of curvature=measure: see the text at the head of this file.",
    trials,
    {"runs_dir": RUNS_DIR, "data_dir": DATA_DIR, "out": Setting("a folder", "where the tables go", "docs/curvature")},
    takes="switches|stable ...",
)

if __name__ == "__main__":
    sys.exit(main())
