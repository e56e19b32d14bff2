"""Runs and their curves as polars data frames."""

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from .config.identity import effective_switch, rate_of
from .config.settle import flat
from .config.table import BOOKKEEPING, kind_of
from .errors import ConfigError
from .report.read import CurveFile, Record, curve_tables, opened, records
from .runs import Run

# The columns that every frame of runs has.
_TEXTS = ("run_id", "status", "task", "optimizer", "profile", "protocol", "split", "metric")
_COUNTS = ("epochs", "trained", "from_trunk", "steps", "switch_epoch", "diverged_epoch", "parameters",
           "peak_memory_bytes")  # fmt: skip
_NUMBERS = ("seconds", "evaluation_seconds", "overhead_seconds", "examples_per_second")
_ORIGIN = ("hardware", "versions", "git_commit", "data_digest", "command", "started", "error", "folder")
_SCHEMA: dict[str, Any] = (
    dict.fromkeys(_TEXTS, pl.String) | {"seed": pl.Int64, "higher_is_better": pl.Boolean, "last": pl.Float64}
    | {"best": pl.Float64, "best_epoch": pl.Int64, "baseline": pl.Float64} | dict.fromkeys(_COUNTS, pl.Int64)
    | dict.fromkeys(_NUMBERS, pl.Float64) | dict.fromkeys(_ORIGIN, pl.String)
)  # fmt: skip
# Parts of the keys of settings that say which code runs, or what a column says already.
_LEFT_OUT = ("_target_", "_partial_", "task.data", "data.profile", "optimizer.trunk.", "optimizer.switch_step")


Place = str | os.PathLike[str]  # a folder


def folder_of(key: str, place: Place) -> Path:
    """The folder that a parameter names; ConfigError if it is no path."""
    text = os.fspath(place) if isinstance(place, (str, os.PathLike)) else b""
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{key}: expected the path of a folder, as text or as a pathlib.Path, got {place!r}")
    return Path(text).expanduser()


def runs(runs_dir: Place = "runs", **filters: Any) -> pl.DataFrame:
    """The runs in a folder, a row each.

    The first columns are the same for all runs:

    - what ran: `run_id`, `task`, `optimizer`, `seed`, `profile`, `protocol`;
    - its outcome: `status` (also running, stopped or broken), `split`, `metric` and `higher_is_better`; `last`,
      `best`, `best_epoch` and `baseline` of that metric;
    - how long: `epochs` (asked for), `trained`, `from_trunk` (trained by another run), `steps`, `switch_epoch` (null:
      it never switches), `diverged_epoch`, `parameters`, `peak_memory_bytes`, `seconds` (of training),
      `evaluation_seconds`, `overhead_seconds`, `examples_per_second`;
    - where from: `hardware`, `versions`, `git_commit`, `data_digest`, `command`, `started` (UTC), `error`, `folder`.

    Then come all metrics after the last epoch (`test/accuracy`), at the best epoch (`best/test/accuracy`) and of the
    input-blind predictor (`baseline/test/accuracy`), and every setting that can change the numbers (`lr`,
    `task.width`, `optimizer.momentum`). What a run does not have, or what is not finite, is null.

    Args:
        runs_dir: the folder with the runs.
        filters: settings, `status`, `profile`, `split`, `metric` or `run_id` with a value, or a list of values of which
            one must fit. A key with a dot is given as `**{"task.width": 50}`.

    Raises:
        ConfigError: there is no such folder, or no run has such a key.

    Warns:
        UserWarning: a run is left out, since its files are damaged.

    Examples:
        >>> import tmbench
        >>> _ = tmbench.run("tc", "sgd", epochs=1, batch_size=40, runs_dir="mine", progress=False)
        >>> frame = tmbench.runs("mine", optimizer=["sgd", "adam"], seed=0)
        >>> frame.select("task", "optimizer", "seed", "epochs", "lr").rows()
        [('tc', 'sgd', 0, 1, 0.02)]
        >>> frame.to_pandas()["task"].to_list()
        ['tc']
    """
    return table(_records(opened(filter_words(filters), folder_of("runs_dir", runs_dir))))


def curves(runs_dir: Place = "runs", **filters: Any) -> pl.DataFrame:
    """The learning curves of the runs in a folder: a row for each epoch of each run.

    The columns are those of the runs' `curves.csv`, after `run_id`: `epoch` (from 1), `step`, `seconds` (of training,
    so far), rates, losses (`train/loss`) and metrics (`test/accuracy`). What a run has not measured after an epoch, or
    what is not finite, is null. `curves(...).join(runs(...), on="run_id")` adds the settings.

    Args:
        runs_dir: the folder with the runs.
        filters: as of `runs`; `run_id=result.run_id` takes one run.

    Raises:
        ConfigError: there is no such folder, or no run has such a key.

    Warns:
        UserWarning: a run is left out, since its files are damaged.

    Examples:
        >>> import tmbench
        >>> result = tmbench.run("tc", "sgd", epochs=2, batch_size=40, runs_dir="mine", progress=False)
        >>> tmbench.curves("mine", run_id=result.run_id).select("epoch", "step", "lr").rows()
        [(1, 8, 0.02), (2, 16, 0.02)]
    """
    found = _records(opened(filter_words(filters), folder_of("runs_dir", runs_dir)))
    files = [CurveFile(i, record.folder, "", record.curves) for i, record in enumerate(found) if record.curves]
    notes = list[str]()
    tables = [frame for _, frame in curve_tables(files, notes)]
    _warn(notes)
    first = pl.DataFrame(schema={"run": pl.Int64, "epoch": pl.Int64, "step": pl.Int64, "seconds": pl.Float64})
    names = pl.DataFrame({"run": range(len(found)), "run_id": [record.name for record in found]},
                         schema={"run": pl.Int64, "run_id": pl.String})  # fmt: skip
    whole = pl.concat([first, *tables], how="diagonal").join(names, on="run").sort("run", "epoch")
    return whole.select("run_id", pl.exclude("run", "run_id"))


def table(found: Iterable[Record]) -> pl.DataFrame:
    """The frame that `runs` returns, of these runs."""
    rows = [_row(record) for record in found]
    more = pl.DataFrame(rows, infer_schema_length=None, strict=False, schema_overrides=_SCHEMA)
    first = pl.DataFrame(schema=_SCHEMA)
    empty = [name for name in more.columns if name not in _SCHEMA and more[name].null_count() == len(more)]
    numbers = pl.col(pl.Float64)
    whole = pl.concat([first, more.drop(empty)], how="diagonal")
    return whole.with_columns(pl.when(numbers.is_finite()).then(numbers))


def recorded(folder: Path) -> list[Record]:
    """What the folder of a run has of it; nothing, after a warning, if that is damaged."""
    return _records([Run.open(folder)])


def filter_words(filters: Mapping[str, Any]) -> list[str]:
    """Filters as words of the command line, `key=value[,value...]`."""
    words = []
    for key, wanted in filters.items():
        values = wanted if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
        texts = ["null" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        if odd := next((text for text in texts if "," in text), None):
            raise ConfigError(f"{key}: expected values without a comma, got {odd!r}; filter the data frame by it")
        if not texts:
            raise ConfigError(f"{key}: expected a value, or a list of values, got an empty one")
        words.append(f"{key}={','.join(texts)}")
    return words


def _records(found: list[Run]) -> list[Record]:
    readable, notes = records(found)
    _warn(notes)
    return readable


def _warn(notes: list[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=4)


def _row(record: Record) -> dict[str, Any]:
    cfg, result = record.config, record.result
    settings = {
        key.removesuffix(".name"): value for key, value in flat(cfg).items()
        if kind_of(key) != BOOKKEEPING and not any(part in key for part in _LEFT_OUT)
    }  # fmt: skip
    facts: dict[str, Any] = {
        "run_id": record.name, "folder": record.folder, "status": record.status, "profile": cfg["data"]["profile"],
        "protocol": cfg["protocol"]["name"], "switch_epoch": effective_switch(cfg), "lr": rate_of(cfg),
    }  # fmt: skip
    if result is None:
        return settings | facts
    last, best, key = result.metrics["last"], result.metrics["best"], result.headline
    facts |= {name: getattr(result, name) for name in _SCHEMA if hasattr(result, name) and name not in facts}
    facts |= {
        "profile": result.profile, "last": last.get(key), "best": best.get(key), "best_epoch": best.get("epoch"),
        "baseline": result.baseline.get(key), "epochs": result.epochs["asked"], "trained": result.epochs["trained"],
        "from_trunk": result.epochs["from_trunk"], "switch_epoch": result.switch["effective"],
        "diverged_epoch": (result.diverged_at or {}).get("epoch"),
        "versions": " ".join(f"{name} {version}" for name, version in result.versions.items()),
    }  # fmt: skip
    metrics = last | {f"best/{name}": value for name, value in best.items() if name != "epoch"}
    metrics |= {f"baseline/{name}": value for name, value in result.baseline.items()}
    return facts | metrics | {key: value for key, value in settings.items() if key not in facts}
