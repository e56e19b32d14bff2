"""A sweep: Hydra's, which first finds what is known already and what its jobs can share; and its record as files."""

import copy
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict

from .config import Settings, plain
from .errors import ConfigError
from .files import write
from .plan import Job, Paces, Recognizer, arms, forecast, wanted

PROGRAM = os.environ.get("TMBENCH_PROGRAM", "python -m tmbench")  # as the person called it
_folder: Path | None = None


def sweep(arguments: list[str], loader: Any, master: DictConfig, launch: Callable[[list[list[str]]], None]) -> None:
    """Does what of a sweep has to be done: all other jobs are recognized, a thousand of them in seconds.

    Args:
        arguments: the words of the command line.
        loader, master: Hydra's, for composing jobs.
        launch: does jobs, given as words; raises what one of them raised.
    """
    global _folder
    parser = OverridesParser.create(config_loader=loader)
    words = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)[0]
    raws = Composer(loader, master, parser)
    jobs = [Job(number, own, raws(own)) for number, own in enumerate(words)]
    planning = jobs[0].raw["plan"] is True
    launcher = None
    if any(job.raw["launcher"]["name"] != "serial" for job in jobs):
        from .launch import launcher_of

        launcher = launcher_of(jobs)
    jobs = _recognized(jobs, raws, download=not planning)
    if planning:
        return _plan(jobs, raws, measure=launcher is None or not launcher.elsewhere)
    _folder = Path(master.hydra.sweep.dir)
    _folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(master, _folder / "multirun.yaml")
    due = [job for job in jobs if job.is_due]
    write(_folder / "launched.json", json.dumps([[job.number, job.arm] for job in due]))
    for job in jobs:
        if job.state == "known":
            add_job(_folder, job.number, job.overrides, job.arm, job.folder, "shown")
        elif job.state == "wrong":
            add_job(_folder, job.number, job.overrides, job.arm, error=job.error)
    try:
        if launcher and due:
            try:
                launcher.launch(_folder, due)
            except Exception as error:  # its own: those of the jobs are told where they are
                print(error if isinstance(error, ConfigError) else traceback.format_exc(), file=sys.stderr)
                raise SystemExit(1) from None
        elif due:
            for trunk, epoch, needs in wanted(jobs):
                trunk.ask(epoch, needs)
            launch([job.overrides for job in due])
    finally:
        for job in jobs:
            if job.state == "same" and job.folder and (job.folder / "result.json").exists():
                add_job(_folder, job.number, job.overrides, job.arm, job.folder, "shown")


def _recognized(jobs: list[Job], raws: "Composer", download: bool) -> list[Job]:
    """The jobs and the arms of their studies, with what is known of their runs."""
    recognizer = Recognizer(download)
    for job in jobs:
        recognizer.recognize(job)
    found = list(jobs)
    for job in jobs:
        for arm, words in arms(job).items():
            control = Job(len(found), words, raws(words), f"{arm} (job {job.number})")
            recognizer.recognize(control)
            if control.beginning and job.beginning and control.beginning.folder == job.beginning.folder:
                found.append(control)
    return found


def command(words: list[str]) -> str:
    """What a person would type for one job alone."""
    own = [w for w in words if w.lstrip("+~").replace("=", ".").split(".")[0] not in ("launcher", "plan", "study")]
    return f"{PROGRAM} {shlex.join(own)}"


def _plan(jobs: list[Job], raws: "Composer", measure: bool) -> None:
    from . import show

    paces = Paces()
    job = next((job for job in jobs if job.is_due and job.folder), None)
    if measure and job and not paces.of(job):
        from .run import run

        print(f"measuring an epoch of job {job.number} (it is kept: the sweep goes on from it)", file=sys.stderr)
        run(OmegaConf.create(job.raw), command(job.overrides), until=1)
        jobs = _recognized([Job(job.number, job.overrides, job.raw) for job in jobs if not job.arm], raws, False)
        paces = Paces()
    forecast(jobs)
    show.plan(jobs, paces, show.console())


class Composer:
    """Composes jobs: one by Hydra for each choice of files, the others from that by setting values in it.

    Args:
        loader, master, parser: Hydra's.
    """

    def __init__(self, loader: Any, master: Any, parser: OverridesParser) -> None:
        self.loader, self.master = loader, master
        self.choices = set(master.hydra.runtime.choices)
        self._parsed = cache(parser.parse_override)
        self._composed = cache(self._compose)

    def __call__(self, words: list[str]) -> Settings:
        """The job's configuration with its interpolations.

        Raises:
            HydraException: a word that is no setting.
        """
        overrides = [self._parsed(word) for word in words]
        composed = self._composed(tuple(o.input_line for o in overrides if not self._is_value(o)))
        raw = copy.deepcopy(composed)
        for override in filter(self._is_value, overrides):
            *path, last = override.key_or_group.split(".")
            node: Any = raw
            for name in path:
                node = node.get(name) if isinstance(node, dict) else None
            if not isinstance(node, dict) or last not in node:  # no such setting: Hydra says it better
                return self._compose(tuple(words))
            node[last] = override.value()
        return raw

    def _is_value(self, override: Override) -> bool:
        return (
            override.type == OverrideType.CHANGE
            and override.package is None
            and override.key_or_group not in self.choices
            and not isinstance(override.value(), (dict, list))
        )

    def _compose(self, words: tuple[str, ...]) -> Settings:
        cfg = self.loader.load_sweep_config(self.master, list(words))
        with open_dict(cfg):
            del cfg["hydra"]
        raw = plain(cfg)
        # The environment's words once for all jobs: OmegaConf's parser takes longer than all else that a job needs.
        from_environment = {key: cfg[key] for key, value in raw.items() if str(value).startswith("${oc.env:")}
        return raw | from_environment


def number(folder: Path, launched: int) -> tuple[int, str]:
    """The number and the arm of the job that a launcher calls by its place among those launched."""
    if not (folder / "launched.json").exists():  # another's sweeper
        return launched, ""
    found, arm = json.loads((folder / "launched.json").read_text())[launched]
    return int(found), str(arm)


def add_job(
    folder: Path, number: int, overrides: list[str], arm: str, run: Path | None = None, how: str = "", error: str = ""
) -> None:
    """Adds a job to the sweep in `folder`: its run's folder and how it came (see run.run), or its error."""
    job = {"overrides": overrides, "arm": arm, "folder": str(run) if run else None, "how": how, "error": error}
    write(folder / f"job-{number:05d}.json", json.dumps(job) + "\n")


def jobs() -> list[dict[str, Any]]:
    """The jobs of this process's sweep, in order; none outside a sweep."""
    if _folder is None:
        return []
    return [json.loads(path.read_text()) for path in sorted(_folder.glob("job-*.json"))]
