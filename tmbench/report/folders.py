"""The runs that the words of the command line mean, and what their folders hold."""

import glob
from dataclasses import dataclass
from pathlib import Path

from ..config.settle import Settings
from ..errors import ConfigError
from ..files import read_sealed_text
from ..result import Result
from ..runs import Run, find, fitting


@dataclass
class Record:
    """What a run's folder, or W&B, has of the run."""

    name: str
    folder: str
    status: str
    config: Settings
    result: Result | None
    curves: str  # CSV


def opened(words: list[str], runs_dir: Path) -> list[Run]:
    """The runs that words mean: folders of runs, or of one, or globs of either, or run ids under runs_dir; all filters.

    Raises:
        ConfigError: there is none.
    """
    places, filters = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if not places and not runs_dir.is_dir():
        raise ConfigError(f"{runs_dir}: no such folder; name one, or say runs_dir=DIR")
    runs: dict[Path, Run] = {}
    for place in places or [str(runs_dir)]:
        paths = [Path(path) for path in sorted(glob.glob(place)) if Path(path).is_dir()]
        folders = [
            folder for path in paths
            for folder in ([path] if (path / "config.yaml").is_file() else _run_folders(path))
        ]  # fmt: skip
        if not paths:
            if not runs_dir.is_dir():
                raise ConfigError(f"{place}: no such folder")
            folders = [run.folder for run in find(runs_dir, [place])]
        runs |= {folder.resolve(): Run.open(folder) for folder in folders if folder.resolve() not in runs}
    return fitting(list(runs.values()), filters)


def _run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("[!.]*/config.yaml"))


def records(runs: list[Run]) -> tuple[list[Record], list[str]]:
    """The runs' files, and what is wrong with some; runs that differ by seed alone share the parsed configuration."""
    parsed: dict[str, Settings] = {}
    readable, notes = [], []
    for run in runs:
        try:
            text = read_sealed_text(run.folder / "config.yaml")
            # The seed is a line of its own, and all that differs in most of many runs.
            key = "\n".join(line for line in text.splitlines() if not line.startswith("seed: "))
            seed = next((line[6:] for line in text.splitlines() if line.startswith("seed: ")), "")
            if key not in parsed:
                parsed[key] = run.config
            config = parsed[key] | {"seed": int(seed)} if seed else run.config
            csv = run.curves
        except (OSError, ValueError) as error:
            notes.append(f"{run.folder}: left out, {error}")
            continue
        if missing := [key for key in ("task", "optimizer", "epochs", "seed", "data") if key not in config]:
            notes.append(f"{run.folder}: left out, its config.yaml has no {', '.join(missing)}")
            continue
        readable.append(Record(run.folder.name, str(run.folder), run.status, config, run.result, csv))
    return readable, notes
