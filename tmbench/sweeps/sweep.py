"""A sweep, from its words to its table: what is done already is recognized, a thousand runs in seconds."""

import json
import os
import re
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from .. import signals
from ..config.overrides import search_path
from ..errors import ConfigError, DataError
from ..files import clear_scratch, folder_for, locked, write
from ..result import FINAL
from ..run import Asked, run_stack
from . import show
from .job import OWNER, SWEEP, JobRecord, command, do_job, record_of, sweep_id
from .live import JobTable
from .plan import Job, JobComposer, RunFinder, forecast_epochs, measured_durations, orders_of, stacks_of, words_of_arms
from .replicas import settle_auto

if TYPE_CHECKING:
    from .launchers.base import Launcher

_FILES = re.compile(r"stopping|(job|launch)-\d{5,}\.(json|log)")  # that a sweep writes into its folder, beside OWNER


def check_options(hydra: HydraConf) -> None:
    """Raises ConfigError for options of Hydra with which a saved run could not be repeated."""
    if hydra.job.config_name != "config":
        instead = "give the settings as key=value, or put them into a file of a group and say --config-dir DIR"
        raise ConfigError(f"--config-name: not supported, since the saved run could not be repeated; {instead}")


def check_alone(cfg: DictConfig, instead: str) -> None:
    """Raises ConfigError for settings of a sweep in the configuration of a single run; `instead` says what has them."""
    chosen = {"study": cfg.study.name != "none", "launcher": cfg.launcher.name != "serial"}
    for_a_sweep = {"plan": cfg.plan, "fail_fast": cfg.fail_fast, **chosen}
    for key in (key for key, is_set in for_a_sweep.items() if is_set):
        raise ConfigError(f"{key}: {instead}")


def sweep(jobs: list[list[str]], config: DictConfig, console: Console) -> list[show.Outcome]:
    """Does the jobs that are not done yet and prints a table of all; returns the outcome of each.

    Args:
        jobs: the override words of each.
        config: as Hydra composes it for the whole command line, `hydra` included.

    Raises:
        ConfigError, HydraException: before any job begins.
        Exception: the launcher failed; what went wrong in a job is in its record.
    """
    check_options(config.hydra)
    choices = config.hydra.runtime.choices
    if (given := choices["hydra/launcher"]) != "basic":
        instead = "say launcher=local, slurm or ray"
        raise ConfigError(f"hydra/launcher: expected none for hydra/sweeper=tmbench, got {given}; {instead}")
    composer = JobComposer(search_path(config.hydra.runtime.config_sources), set(choices))
    asked = [Job(number, words, composer(words), composer.search) for number, words in enumerate(jobs)]
    is_plan, fail_fast = (_flag(asked, key) for key in ("plan", "fail_fast"))
    launcher = None
    if any(job.raw["launcher"]["name"] != "serial" for job in asked):
        from .launchers.base import launcher_of

        launcher = launcher_of(asked)
    settle_auto(asked, launcher is not None and launcher.elsewhere)
    if is_plan:
        _print_plan(asked, composer, launcher is None or not launcher.elsewhere, console)
        return []
    found = _with_arms(asked, composer, download=True)
    folder = folder_for("hydra.sweep.dir", config.hydra.sweep.dir)
    with _only_sweep_in(folder):
        os.environ[SWEEP] = token_hex(8)
        # First of all: from now on, a job that outlived an earlier sweep writes here no more.
        write(folder / OWNER, sweep_id())
        clear_scratch(folder)
        for path in folder.iterdir():
            if _FILES.fullmatch(path.name):  # an earlier sweep's
                path.unlink()
        OmegaConf.save(config, folder / "multirun.yaml")
        return _do(folder, found, launcher, fail_fast, console)


def _flag(jobs: list[Job], key: str) -> bool:
    """The value of a setting of the whole sweep; ConfigError if it is not true or false, or not the same for all."""
    values = list(dict.fromkeys(json.dumps(job.raw.get(key, False)) for job in jobs))
    if len(values) == 1 and values[0] in ("true", "false"):
        return values[0] == "true"
    raise ConfigError(f"{key}: expected true or false, one value for the whole sweep, got {' and '.join(values)}")


def _print_plan(asked: list[Job], composer: JobComposer, measure: bool, console: Console) -> None:
    """Prints what the sweep would do. If no run here tells how long an epoch takes, one may be measured."""
    jobs = _with_arms(asked, composer, download=False)
    stack = next((stack for stack in stacks_of([job for job in jobs if job.is_due]) if stack[0].folder), [])
    if measure and stack and not measured_durations(stack[:1]):
        names = f"job{'s' * (len(stack) > 1)} {', '.join(str(job.number) for job in stack)}"
        print(f"measuring an epoch of {names} (it is kept, and the sweep continues from it)", file=sys.stderr)
        of_jobs = [(job, [*job.search, *job.overrides]) for job in stack]
        runs = [Asked(OmegaConf.create(job.raw), command(words), words) for job, words in of_jobs]
        if not all(result.epochs["trained"] for result, _, _ in run_stack(runs, until=1)):
            raise KeyboardInterrupt
        jobs = _with_arms([Job(j.number, j.overrides, j.raw, j.search) for j in asked], composer, download=False)
    forecast_epochs(jobs)
    show.print_plan(jobs, measured_durations(jobs), console)


def _do(
    folder: Path, jobs: list[Job], launcher: "Launcher | None", fail_fast: bool, console: Console
) -> list[show.Outcome]:
    """Does the jobs that are due, and prints the table of all, however that ends."""
    has_failed = any(job.state == "wrong" for job in jobs)
    due = [] if fail_fast and has_failed else [job for job in jobs if job.is_due]
    failure: BaseException | None = None
    try:
        signals.check()
        if launcher and due:
            launcher.launch(folder, due, fail_fast)
        else:
            _one_after_another(folder, due, fail_fast)
    except (Exception, KeyboardInterrupt) as error:  # the launcher's; what a job raised is in its record
        failure = error
    outcomes = [outcome for job in jobs if (outcome := _outcome(folder, job))]
    if fail_fast and any(record.error for record, _ in outcomes):
        known = {record.number for record, _ in outcomes}
        left = [JobRecord(job.number, job.overrides, job.arm, how=show.NOT_STARTED) for job in jobs]
        outcomes += [(record, None) for record in left if record.number not in known]
        outcomes.sort(key=lambda outcome: outcome[0].number)
    if outcomes:
        show.print_results(outcomes, console)
    if failure and signals.is_interrupt(failure):
        done = sum(result.status in FINAL for _, result in outcomes if result)
        raise KeyboardInterrupt(f"{done} of {len(jobs)} jobs are done, and each whole epoch of the others is saved")
    if failure:
        raise failure
    return outcomes


def _one_after_another(folder: Path, due: list[Job], fail_fast: bool) -> None:
    current = set[int]()
    console = Console(stderr=True, force_jupyter=False, highlight=False, markup=False, soft_wrap=True)
    is_alone = all(job.cfg["trainer"]["devices"] == 1 for job in due)  # else a run's first process shows its bar
    with JobTable(due, lambda: current, console, is_alone) as table:
        for order in orders_of(stacks_of(due)):
            orders = [order, *order.others]
            current.clear()
            current.update(each.number for each in orders)
            for each in orders if not table.is_shown else ():
                arm = f"  ({each.arm})" if each.arm else ""
                first = "\n" if each is order else ""
                print(f"{first}job {each.number}: {' '.join(each.words)}{arm}", file=sys.stderr)
            results = do_job(folder, order)  # None: it failed, and has said why
            for each, result in zip(orders, results, strict=True):
                table.ended(each.number, result.status if result else "failed", result)
                if result is None and table.is_shown:
                    console.print(Text(f"{table.names[each.number]}: failed", "red"))
            if None in results and fail_fast:
                return
            if any(result and result.status == "interrupted" for result in results):
                raise KeyboardInterrupt  # a person wants the sweep to stop, not this job alone


def _outcome(folder: Path, job: Job) -> show.Outcome | None:
    """What came of a job, and its result if it has one; None if it has not begun."""
    record = JobRecord(job.number, job.overrides, job.arm, error=job.error)
    try:
        if job.state in ("known", "same") and job.folder and (job.folder / "result.json").exists():
            record = replace(record, folder=str(job.folder), how="shown")
        elif job.state != "wrong":
            found = record_of(folder, job.number)
            if found is None:
                return None
            record = found
        return record, job.result or record.result()
    except DataError as error:
        return replace(record, error=str(error)), None


def _only_sweep_in(folder: Path) -> ExitStack:
    """No other sweep works in the folder until it is closed; ConfigError if one does already."""
    stack = ExitStack()
    try:
        stack.enter_context(locked(folder, wait=False))
    except BlockingIOError:
        message = f"another sweep is at work in {folder}; wait for its end, or say another folder"
        raise ConfigError(f"hydra.sweep.dir: {message}") from None
    return stack


def _with_arms(jobs: list[Job], composer: JobComposer, download: bool) -> list[Job]:
    """The jobs and the arms of their studies, with what is known of their runs."""
    finder, found = RunFinder(download), list(jobs)
    finder.find_all(jobs)
    for job in jobs:
        for arm, words in words_of_arms(job).items():
            control = Job(len(found), words, composer(words), job.search, f"{arm} (job {job.number})")
            finder.find(control)
            if control.shared_prefix and job.shared_prefix and control.shared_prefix.folder == job.shared_prefix.folder:
                found.append(control)
    return found
