"""A sweep: Hydra's, which first finds what is known already and what its jobs can share; and its record as files."""

import copy
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict

from ..config.overrides import of_the_run, search_path
from ..config.settle import Settings, plain
from ..errors import ConfigError, DataError
from ..files import locked, write
from ..result import Result
from .plan import Job, Paces, Recognizer, arms, forecast, wanted
from .record import LAUNCHED, MARK, Record, _record, add_job, job_of, mark

PROGRAM = os.environ.get("TMBENCH_PROGRAM", "python -m tmbench")  # as the person called it
_OURS = re.compile(r"stopping|(job|launch)-\d{5,}\.(json|log)")  # what else a sweep writes there
_done: list[Record] = []


def sweep(arguments: list[str], loader: Any, master: DictConfig, launch: Callable[[list[list[str]]], None]) -> None:
    """Does what of a sweep has to be done: all other jobs are recognized, a thousand of them in seconds.

    Args:
        arguments: the words of the command line.
        loader, master: Hydra's, for composing jobs.
        launch: does jobs, given as words; raises what one of them raised.

    Raises:
        ConfigError: another sweep is at work in the same folder.
    """
    parser = OverridesParser.create(config_loader=loader)
    words = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)[0]
    raws = Composer(loader, master, parser)
    jobs = [Job(number, own, raws(own)) for number, own in enumerate(words)]
    planning = jobs[0].raw["plan"] is True
    launcher = None
    if any(job.raw["launcher"]["name"] != "serial" for job in jobs):
        from .launchers import launcher_of

        launcher = launcher_of(jobs)
    jobs = _recognized(jobs, raws, download=not planning)
    search = search_path(master.hydra.runtime.config_sources)
    if planning:
        return _plan(jobs, raws, search, measure=launcher is None or not launcher.elsewhere)
    folder = Path(master.hydra.sweep.dir)
    due = [job for job in jobs if job.is_due]
    with _alone(folder):
        os.environ[MARK] = token_hex(8)
        # First of all: from now on, what is left of an earlier sweep writes here no more.
        write(folder / LAUNCHED, json.dumps({"sweep": mark(), "jobs": [[job.number, job.arm] for job in due]}))
        _clear(folder)
        OmegaConf.save(master, folder / "multirun.yaml")
        for job in jobs:
            if job.state == "known":
                add_job(folder, job.number, job.overrides, job.arm, job.folder, "shown")
            elif job.state == "wrong":
                add_job(folder, job.number, job.overrides, job.arm, error=job.error)
        try:
            if launcher and due:
                try:
                    launcher.launch(folder, due, search)
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
                    add_job(folder, job.number, job.overrides, job.arm, job.folder, "shown")
            _done.extend(record for job in jobs if (record := _told(folder, job)))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other sweep in the folder meanwhile."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, wait=False))
        except BlockingIOError:
            raise ConfigError(
                f"hydra.sweep.dir: another sweep is at work in {folder}; wait for its end, or say another folder"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"hydra.sweep.dir: expected a folder to write to, got {folder} ({error.strerror})"
            ) from None
        yield


def _clear(folder: Path) -> None:
    """Removes what an earlier sweep has written in the folder, and nothing else: its jobs are not this one's."""
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink()


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
    return f"{PROGRAM} {shlex.join(of_the_run(words))}"


def _plan(jobs: list[Job], raws: "Composer", search: list[str], measure: bool) -> None:
    from ..runs.show import console
    from .show import plan

    paces = Paces()
    job = next((job for job in jobs if job.is_due and job.folder), None)
    if measure and job and not paces.of(job):
        from ..run import run

        print(f"measuring an epoch of job {job.number} (it is kept: the sweep goes on from it)", file=sys.stderr)
        own = [*search, *job.overrides]
        run(OmegaConf.create(job.raw), command(own), until=1, words=own)
        jobs = _recognized([Job(job.number, job.overrides, job.raw) for job in jobs if not job.arm], raws, False)
        paces = Paces()
    forecast(jobs)
    plan(jobs, paces, console())


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


def _told(folder: Path, job: Job) -> Record | None:
    """What came of a job, for the table; None if it was not begun."""
    told, path = job_of(folder, job.number), _record(folder, job.number)
    if told is None:
        error = f"{path}: damaged; give the same command again"
        nothing = {"overrides": job.overrides, "arm": job.arm, "folder": None, "how": "", "error": error}
        return nothing if path.exists() else None
    try:
        if told["folder"]:
            Result.load(Path(told["folder"]))
    except DataError as error:
        return told | {"folder": None, "error": str(error)}
    return told


def jobs() -> list[Record]:
    """The jobs of this process's sweep that have been done, in order; none outside a sweep, or before its end."""
    return _done
