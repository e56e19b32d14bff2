"""Run folders as training leaves them, with numbers of one's own."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from conftest import Compose

from tmbench.config.settle import plain, settled
from tmbench.result import Result, versions

Make = Callable[..., Path]


def maker(composed: Compose, folder: Path) -> Make:
    """make(optimizer, seed, score, *overrides, name=..., **of the result) -> the run's folder."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}

    def make(optimizer: str, seed: int, score: float | None, *words: str, name: str = "", **own: Any) -> Path:
        overrides = (f"optimizer={optimizer}", *words) if any("task=" in w for w in words) else (
            f"optimizer={optimizer}", "task=tc", *words,
        )  # fmt: skip
        if overrides not in known:
            known[overrides] = settled(plain(composed(*overrides)))
        config = known[overrides] | {"seed": seed}
        task, epochs = config["task"]["name"], config["epochs"]
        headline = own.pop("headline", "test/accuracy")
        split, _, metric = headline.partition("/")
        place = folder / (name or f"{task}-{optimizer}-{seed}-{len(list(folder.iterdir())):012x}")
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        if score is None and "status" not in own:
            return place
        scores = {} if score is None else {headline: score}
        score = math.nan if score is None else score
        curve = [score * (1 - 0.5 ** (e + 1)) for e in range(epochs - 1)] + [score]
        lines = [f"{e},{(e + 1) * 10},0.1,{(e + 1) * 1.5},{1 / (e + 1)},{value}" for e, value in enumerate(curve)]
        (place / "curves.csv").write_text("\n".join([f"epoch,step,lr,seconds,train/loss,{headline}", *lines]) + "\n")
        facts: dict[str, Any] = {
            "run_id": place.name, "status": "completed", "task": task, "optimizer": optimizer, "seed": seed,
            "profile": config["data"]["profile"], "protocol": "reconciled", "split": split, "metric": metric,
            "higher_is_better": True, "metrics": {"last": scores, "best": scores and {**scores, "epoch": 1}},
            "seconds": 1.5 * epochs, "epochs": {"asked": epochs, "trained": epochs, "from_trunk": 0},
            "steps": 10 * epochs, "examples_per_second": 100.0, "peak_memory_bytes": 2**20, "parameters": 1000,
            "switch": {"requested": None, "effective": None, "step": None}, "versions": versions(),
            "hardware": "1 x a CPU, 1 threads", "git_commit": "0" * 40, "data_digest": "d" * 16,
            "command": f"python -m tmbench task={task} optimizer={optimizer} seed={seed}",
            "started": "2026-01-01T00:00:00Z", "baseline": {headline: 0.2},
        }  # fmt: skip
        Result(**(facts | own)).save(place)
        return place

    return make
