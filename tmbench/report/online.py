"""Reports and W&B: runs read back from a project through its API, and a report told there."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from ..config.settle import Settings
from ..errors import ConfigError
from ..result import Result
from ..runs import Run, fitting
from .numbers import Report
from .read import Record

ROWS = 100_000  # of a history; W&B gives a sample if there are more
GONE = {"crashed": "failed", "failed": "failed", "killed": "failed", "running": "running"}  # W&B's states


def fetched(settings: Settings, words: list[str]) -> tuple[list[Record], list[str]]:
    """The runs of a W&B project that all filters fit, as logger=wandb sent them, and what is wrong with others.

    Raises:
        ConfigError: W&B or the project cannot be reached, or a word is no filter.
    """
    import wandb

    if named := [word for word in words if "=" not in word]:
        raise ConfigError(f"source=wandb: expected filters such as task=tc, got {' '.join(named)}")
    path = "/".join(filter(None, (settings["entity"], settings["project"])))
    try:
        told = [run for run in wandb.Api(timeout=60).runs(path, lazy=False) if run.job_type != "report"]
    except Exception as error:  # its kinds are many, and none of them ours
        raise ConfigError(f"source=wandb: {path}: {error}; is it there, and WANDB_API_KEY set?") from None
    notes: list[str] = []
    runs: dict[str, tuple[Run, Any]] = {}
    for one in told:
        config, result = dict(one.config), _result(one.summary_metrics)
        if not {"task", "optimizer", "data", "epochs", "seed"} <= config.keys():
            notes.append(f"{path}/{one.id}: left out, not a run of tmbench")
            continue
        if result is None and one.state not in GONE:
            notes.append(f"{path}/{one.id}: left out, its summary has no result of this version")
            continue
        run = Run(Path(one.name or one.id), result, result.status if result else GONE[one.state])
        run.config = config
        runs[one.id] = run, one
    chosen = {id(run) for run in fitting([run for run, _ in runs.values()], words)}
    return [
        Record(run.folder.name, one.url, run.status, run.config, run.result, _curves(one.history(ROWS, pandas=False)))
        for run, one in runs.values() if id(run) in chosen
    ], notes  # fmt: skip


def _result(summary: dict[str, Any]) -> Result | None:
    try:
        return Result.from_dict(json.loads(summary["result"]))
    except (KeyError, TypeError, ValueError):
        return None


def _curves(history: list[dict[str, Any]]) -> str:
    """The epochs in a history as the CSV that a run folder has; a resumed run has told some of them again."""
    rows = {row["epoch"]: row for row in history if row.get("epoch") is not None and "step" in row}
    names = [key for key in dict.fromkeys(key for row in rows.values() for key in row) if not key.startswith("_")]
    names = [key for key in names if not key.startswith("figures/")]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[epoch] for epoch in sorted(rows))
    return text.getvalue() if rows else ""


def sent(report: Report, drawn: list[tuple[str, str, str]], out: Path) -> list[str]:
    """Tells W&B the report: a run of type `report` with its tables and figures, and the page as an artifact.

    Returns:
        What a person should know of it; a W&B that fails costs the report nothing.
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
            for name, _, svg in drawn:
                run.log({f"figures/{name}": wandb.Html(svg, inject=False)})
            run.summary.update({"sentences": report.sentences, "notes": report.notes})
            artifact = wandb.Artifact("report", type="report")
            artifact.add_file(str(out / "report.html"))
            run.log_artifact(artifact)
            folder = Path(run.dir).parent if run.offline else None
    except Exception as error:
        return [f"W&B: {type(error).__name__}: {error}; the report's folder is complete without it"]
    return [f"W&B offline; to send it: wandb sync {folder}"] if folder else []
