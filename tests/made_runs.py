"""Run folders as training leaves them, with numbers of one's own, and the report on them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from conftest import Compose

from tmbench.config.settle import plain, settled
from tmbench.report import answers, formats
from tmbench.report.__main__ import main, runs_of
from tmbench.report.contents import Report
from tmbench.report.formats import Table
from tmbench.result import Result, versions

SETTLED: dict[tuple[str, ...], dict[str, Any]] = {}  # by the words; composing takes longer than all else here


class Make:
    """make(optimizer, seed, score, *overrides, name=..., **of the result) -> the folder of a run, under make.folder."""

    def __init__(self, composed: Compose, folder: Path) -> None:
        self.composed, self.folder = composed, folder
        folder.mkdir(exist_ok=True)

    def __call__(self, optimizer: str, seed: int, score: float | None, *words: str, name: str = "", **own: Any) -> Path:
        overrides = (
            f"optimizer={optimizer}",
            *(() if any("task=" in word for word in words) else ("task=tc",)),
            *words,
        )
        if overrides not in SETTLED:
            SETTLED[overrides] = settled(plain(self.composed(*overrides)))
        config = SETTLED[overrides] | {"seed": seed}
        name_of_task, epochs = config["task"]["name"], config["epochs"]
        key = f"{own.get('split', 'test')}/{own.get('metric', 'accuracy')}"
        place = self.folder / (name or f"{name_of_task}-{optimizer}-{seed}-{len(list(self.folder.iterdir())):012x}")
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False))
        if score is None and "status" not in own:
            return place
        scores = {} if score is None else {key: score}
        score = math.nan if score is None else score
        curve = [score * (1 - 0.5 ** (e + 1)) for e in range(epochs - 1)] + [score]
        lines = [f"{e},{e * 10},0.1,{e * 1.5},{1 / e},{value}" for e, value in enumerate(curve, 1)]
        (place / "curves.csv").write_text("\n".join([f"epoch,step,lr,seconds,train/loss,{key}", *lines]) + "\n")
        facts: dict[str, Any] = {
            "run_id": place.name, "status": "completed", "task": name_of_task, "optimizer": optimizer, "seed": seed,
            "profile": config["data"]["profile"], "protocol": "reconciled", "split": "test", "metric": "accuracy",
            "higher_is_better": True, "metrics": {"last": scores, "best": scores and {**scores, "epoch": 1}},
            "seconds": 1.5 * epochs, "epochs": {"asked": epochs, "trained": epochs, "from_trunk": 0},
            "steps": 10 * epochs, "examples_per_second": 100.0, "peak_memory_bytes": 2**20, "parameters": 1000,
            "switch": {"requested": None, "effective": None, "step": None}, "versions": versions(),
            "hardware": "1 x a CPU, 1 threads", "git_commit": "0" * 40, "data_digest": "d" * 16,
            "command": f"python -m tmbench task={name_of_task} optimizer={optimizer} seed={seed}",
            "started": "2026-01-01T00:00:00Z", "baseline": {key: 0.2},
        }  # fmt: skip
        Result(**(facts | own)).save(place)
        return place

    def seeds(self, optimizer: str, scores: Sequence[float | None], *words: str, **own: Any) -> None:
        """Runs of seeds 0, 1, ...; one whose score is None has diverged."""
        for seed, score in enumerate(scores):
            self(optimizer, seed, score, *words, **({"status": "diverged"} if score is None else {}), **own)

    def report(self, *words: str) -> Report:
        """The report on these runs, or on those that words name, without its files."""
        settings, others = main.parse([f"runs_dir={self.folder}", *words])
        return answers.report(runs_of(settings, others), settings)


def table(report: Report, start: str) -> Table:
    return next(table for table in report.tables if table.key.startswith(start))


def rows(of: Table) -> dict[str, dict[str, Any]]:
    """By the method's name: each column's plain value."""
    return {
        row[of.columns.index("method")].text: dict(zip(of.columns, map(formats.plain, row), strict=True))
        for row in of.rows
    }
