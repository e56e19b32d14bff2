"""Which optimizer for what: every named optimizer at three rates on five tiny tasks, one seed each.

    python scripts/chooser.py runs runs_dir=DIR        # about half an hour on one core
    python scripts/chooser.py advice runs_dir=DIR      # schedules, clipping and averages on two of the tasks: minutes

`runs` takes a quarter of, once and four times a rate that was fixed before anything was measured: the one usual for the
optimizer (RATES) or, for SGD and its relatives, the task's, times TIMES. Left out: `any` and `switch`, which name other
optimizers, `lbfgs` and `newton_cg`, whose steps cost 5 to 40 evaluations and are meant for large batches. A result is
counted as the share of the way from the task's baseline to the best of all runs on it. Writes tables, the figure and
every number to `out`, docs/chooser.
"""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tmbench
from tmbench.config.machine import cpu_model
from tmbench.config.table import choices, values_of
from tmbench.config.values import Setting
from tmbench.figures import save
from tmbench.files import write
from tmbench.result import Result, shown, versions
from tmbench.verbs import RUNS_DIR, Values, Verb

EPOCHS = {"tc": 6, "ctr": 3, "ic": 4, "fkpd": 1, "seg": 3}
FACTORS = (0.25, 1.0, 4.0)
LEFT_OUT = {"any", "switch", "lbfgs", "newton_cg"}
# The authors' or the library's usual rate; for multiplicative, lars and lamb those of this project's tests.
RATES = {"adabelief": 1e-3, "adagrad": 0.01, "adam": 1e-3, "adamw": 1e-3, "apollo": 0.01, "clars": 1.0, "lamb": 2e-3,
         "lars": 1.0, "learned": 1.0, "lion": 3e-4, "lmo": 1e-3, "madam": 0.01, "multiplicative": 0.1,
         "muon": 0.02, "prodigy": 1.0, "rmsprop": 1e-3, "soap": 3e-3}  # fmt: skip
TIMES = {"eg": 10.0, "schedule_free_sgd": 10.0}  # of the task's rate
MORE: dict[str, dict[str, Any]] = {  # fewer steps of warm-up than here are in all; no tables of thousands of rows
    "apollo": {"optimizer.warmup_steps": 50},
    "soap": {"optimizer.max_precondition_dim": 512},
}
ADVICE: dict[str, dict[str, Any]] = {
    "as it is": {},
    "schedule=cosine": {"schedule": "cosine"},
    "clip_norm=1": {"clip_norm": 1.0},
    "ema=0.95": {"ema": 0.95},
}


def rate_of(task: str, optimizer: str) -> float:
    return RATES.get(optimizer) or TIMES.get(optimizer, 1.0) * float(values_of(f"task/{task}.yaml")["tiny"]["lr"])


def trained(task: str, optimizer: str, lr: float, settings: Values, **more: Any) -> Result:
    """A run on tiny data; the rates of learned and prodigy are factors of what these find themselves."""
    rate: dict[str, Any] = {"optimizer.lr" if optimizer in ("learned", "prodigy") else "lr": lr}
    words = {**rate, **MORE.get(optimizer, {}), **more}
    return tmbench.run(task, optimizer, epochs=EPOCHS[task], runs_dir=settings["runs_dir"], progress=False, **words)


def way(result: Result) -> float:
    """How far the run got from the baseline, in the metric, where higher is better; 0 if it diverged."""
    if result.status != "completed" or result.score is None:
        return 0.0
    gain = result.score - result.baseline[result.headline]
    return max(0.0, gain if result.higher_is_better else -gain)


def runs(settings: Values) -> list[dict[str, Any]]:
    """One row a run, with `share`: of the way to the best run of its task."""
    found: list[dict[str, Any]] = []
    optimizers = [name for name in choices("optimizer") if name not in LEFT_OUT]
    for task in EPOCHS:
        rows = []
        for optimizer in optimizers:
            for factor in FACTORS:
                lr = factor * rate_of(task, optimizer)
                result = trained(task, optimizer, lr, settings)
                rows.append(
                    {
                        "task": task, "optimizer": optimizer, "factor": factor, "lr": lr, "metric": result.headline,
                        "score": result.score, "status": result.status, "way": way(result), "seconds": result.seconds,
                    }
                )  # fmt: skip
                print(*rows[-1].values(), file=sys.stderr)
        best = max(row["way"] for row in rows)
        found += [row | {"share": row["way"] / best} for row in rows]
    return found


def best_and_worst(rows: list[dict[str, Any]]) -> dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]]:
    """By optimizer, the best on average first, and task: its best run and its worst."""
    by: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        by.setdefault(row["optimizer"], {}).setdefault(row["task"], []).append(row)
    ends = {
        optimizer: {task: (max(of, key=share), min(of, key=share)) for task, of in tasks.items()}
        for optimizer, tasks in by.items()
    }
    return dict(sorted(ends.items(), key=lambda item: -mean(best["share"] for best, _ in item[1].values())))


def share(row: dict[str, Any]) -> float:
    return float(row["share"])


def runs_table(rows: list[dict[str, Any]]) -> str:
    """The score at the best rate, with that rate, and the mean shares at the best and at the worst."""
    ends, tasks = best_and_worst(rows), list(dict.fromkeys(row["task"] for row in rows))
    titles = [f"{task}, {next(r['metric'] for r in rows if r['task'] == task).split('/')[1]}" for task in tasks]
    head = ["optimizer", *titles, "mean share, best rates", "mean share, worst rates"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for optimizer, of in ends.items():
        cells = [_cell(of[task][0]) for task in tasks]
        means = (f"{mean(share(of[task][k]) for task in tasks):.2f}" for k in (0, 1))
        lines.append(f"| {optimizer} | {' | '.join(cells)} | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if row["score"] is None or not math.isfinite(row["score"]):
        return "diverged"
    return f"{shown(row['score'], row['metric'])} at {row['lr']:.2g}"


def drawn(rows: list[dict[str, Any]]) -> Any:
    """Two heat maps of shares: each optimizer at the best and at the worst of its rates."""
    import matplotlib.pyplot as plt

    ends, tasks = best_and_worst(rows), list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.26 * len(ends) + 1), sharey=True, layout="constrained")
    for k, (ax, title) in enumerate(zip(axes, ("best of the rates", "worst of the rates"), strict=True)):
        shares = [[share(of[task][k]) for task in tasks] for of in ends.values()]
        image = ax.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for y, line in enumerate(shares):
            for x, value in enumerate(line):
                colour = "white" if value < 0.6 else "black"
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        ax.set_xticks(range(len(tasks)), tasks)
        ax.set_yticks(range(len(ends)), list(ends), fontsize=8)
        ax.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="share of the way from the baseline to the task's best run", fraction=0.04)
    return figure


def advice(settings: Values) -> list[dict[str, Any]]:
    """Momentum at the task's rate and four times that, with each of ADVICE, over three seeds."""
    found = []
    for task in ("tc", "ic"):
        for factor in (1.0, 4.0):
            for name, words in ADVICE.items():
                lr = factor * rate_of(task, "sgdm")
                results = [trained(task, "sgdm", lr, settings, seed=seed, **words) for seed in range(3)]
                key = results[0].headline.replace("/", "_ema/") if "ema" in words else results[0].headline
                scores = [r.metrics["last"][key] for r in results if r.status == "completed"]
                found.append({"task": task, "lr": lr, "with": name, "metric": results[0].headline, "scores": scores})
                print(found[-1], file=sys.stderr)
    return found


def advice_table(rows: list[dict[str, Any]]) -> str:
    lines = [f"| sgdm | {' | '.join(ADVICE)} |", "|---" * (len(ADVICE) + 1) + "|"]
    for task, lr in dict.fromkeys((row["task"], row["lr"]) for row in rows):
        cells = [_spread(r["scores"], r["metric"]) for r in rows if (r["task"], r["lr"]) == (task, lr)]
        lines.append(f"| {task}, rate {lr:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(scores: Iterable[float], metric: str) -> str:
    values = list(scores)
    return f"{shown(mean(values), metric)} ± {shown(stdev(values), metric)}" if len(values) > 1 else "diverged"


def chooser(settings: Values, words: list[str]) -> int:
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    for part in words:
        rows = {"runs": runs, "advice": advice}[part](settings)
        text = {"runs": runs_table, "advice": advice_table}[part](rows)
        about = {"hardware": cpu_model(), "versions": versions(), "epochs": EPOCHS, "rows": rows}
        write(out / f"{part}.json", json.dumps(about, indent=1) + "\n")
        write(out / f"{part}.md", text)
        if part == "runs":
            save(drawn(rows), out / "shares.png")
        print(text)
    return 0


main = Verb(
    "chooser",
    "Every optimizer at three rates on five tiny tasks: see the text at the head of this file.",
    chooser,
    {"runs_dir": RUNS_DIR, "out": Setting("a folder", "where tables and figure go", "docs/chooser")},
    takes="runs|advice ...",
)

if __name__ == "__main__":
    sys.exit(main())
