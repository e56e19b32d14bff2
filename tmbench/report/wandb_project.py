"""Reports and W&B: runs that are read from a project through its API, and a report that is sent to one."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from ..config.settle import Saved, Settings
from ..errors import ConfigError, DataError
from ..files import checked, loads
from ..result import Result, counted_from_1
from ..runs import Run, fitting
from .contents import Drawing, Report
from .read import Record

ROWS = 100_000  # of a history; W&B gives a sample if there are more
# By W&B's state, of a run without a result.
STATUS = {"crashed": "failed", "failed": "failed", "killed": "failed", "running": "running"}


def fetched(settings: Settings, words: list[str]) -> tuple[list[Record], list[str]]:
    """The runs of a W&B project that all filters fit, as logger=wandb sent them, and what is wrong with others.

    Raises:
        ConfigError: W&B or the project cannot be reached, or a word is no filter.
    """
    import wandb

    if places := [word for word in words if "=" not in word]:
        raise ConfigError(f"source=wandb: expected filters such as task=tc, got {' '.join(places)}")
    path = "/".join(filter(None, (settings["entity"], settings["project"])))
    try:
        entries = [entry for entry in wandb.Api(timeout=60).runs(path, lazy=False) if entry.job_type != "report"]
    except Exception as error:  # its kinds are many, and none of them ours
        raise ConfigError(f"source=wandb: {path}: {error}; is it there, and WANDB_API_KEY set?") from None
    notes, runs = [], []
    for entry in entries:
        config, result = dict(entry.config), _result(entry.summary_metrics)
        try:
            checked(Saved, config)
        except (DataError, TypeError) as error:
            notes.append(f"{path}/{entry.id}: left out, not a run of tmbench ({error})")
            continue
        if result is None and entry.state not in STATUS:
            notes.append(f"{path}/{entry.id}: left out, its summary has no result of this version")
            continue
        run = Run(Path(entry.name or entry.id), result, result.status if result else STATUS[entry.state])
        run.config = config
        runs.append((run, entry))
    fit = {id(run) for run in fitting([run for run, _ in runs], words)}
    return [
        Record(run.folder.name, entry.url, run.status, run.config, run.result, _curves(entry))
        for run, entry in runs if id(run) in fit
    ], notes  # fmt: skip


def _result(summary: dict[str, Any]) -> Result | None:
    try:
        return Result.from_dict(loads(summary["result"]))
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def _curves(entry: Any) -> str:
    """The epochs in a history as the CSV that a run folder has; a resumed run has sent some of them twice."""
    history = entry.history(ROWS, pandas=False)
    rows = {row["epoch"]: row for row in history if row.get("epoch") is not None and "step" in row}
    names = [key for key in dict.fromkeys(key for row in rows.values() for key in row)
             if not key.startswith(("_", "figures/"))]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[epoch] for epoch in sorted(rows))
    return counted_from_1(text.getvalue()) if rows else ""


def sent(report: Report, drawings: list[Drawing], out: Path) -> list[str]:
    """Sends W&B the report: a run of type `report` with its tables and figures, and the page as an artifact.

    Returns what a person should know of it. If W&B fails, the report's folder is complete all the same.
    """
    import wandb

    settings = report.settings
    tags = sorted({problem.profile for problem in report.runs.problems} | {p.task for p in report.runs.problems})
    try:
        mode: Any = settings["mode"] or os.environ.get("WANDB_MODE")
        mode = mode or ("online" if wandb.login(prompt=False) else "offline")
        with wandb.init(
            project=settings["project"], entity=settings["entity"], job_type="report", mode=mode, dir=str(out),
            config=settings, tags=tags, settings=wandb.Settings(console="off", silent=True),
        ) as run:  # fmt: skip
            for table in report.tables:
                rows = [[cell.text for cell in row] for row in table.rows]
                run.log({f"tables/{table.key}": wandb.Table(columns=[*table.columns], data=[*rows])})
            for drawing in drawings:
                run.log({f"figures/{drawing.name}": wandb.Html(drawing.svg, inject=False)})
            run.summary.update({"sentences": report.sentences, "notes": report.notes})
            artifact = wandb.Artifact("report", type="report")
            artifact.add_file(str(out / "report.html"))
            run.log_artifact(artifact)
            folder = Path(run.dir).parent if run.offline else None
    except Exception as error:
        return [f"W&B: {type(error).__name__}: {error}; the report's folder is complete without it"]
    return [f"W&B offline; to send it: wandb sync {folder}"] if folder else []
