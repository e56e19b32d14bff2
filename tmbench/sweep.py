"""A sweep's jobs, kept as files so that any launcher's processes add to one list."""

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from .result import write

_folder: Path | None = None


class RememberSweep(Callback):
    """Hydra tells its callback where the sweep is; after a failed job it would tell nobody."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _folder
        _folder = Path(config.hydra.sweep.dir)


def add_job(
    folder: Path, number: int, overrides: list[str], run_folder: Path | None = None, how: str = "", error: str = ""
) -> None:
    """Adds a job to the sweep in `folder`: its run's folder and how it came (see run.run), or its error."""
    folder.mkdir(parents=True, exist_ok=True)
    job = {"overrides": overrides, "folder": str(run_folder) if run_folder else None, "how": how, "error": error}
    write(folder / f"job-{number:05d}.json", json.dumps(job) + "\n")


def jobs() -> list[dict[str, Any]]:
    """The jobs of this process's sweep, in order; none outside a sweep."""
    if _folder is None:
        return []
    return [json.loads(path.read_text()) for path in sorted(_folder.glob("job-*.json"))]
