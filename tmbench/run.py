"""One run, top to bottom: plan it, see whether it was done before, and train it.

`python -m tmbench.run <runs>/<run id> [key=value ...]` asks for a saved run again.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from . import checkpoint, signals
from .config.compose import own_files
from .config.identity import OVERRIDES, reads_switch
from .config.overrides import again, check_words, keep
from .config.table import measures_curvature
from .config.values import is_whole
from .errors import ConfigError, DataError, UsageError
from .files import is_writable, locked, naming, read_sealed_text, sealed_text, write
from .plan import Plan, planned
from .progress import loading_torch
from .result import FINAL, Result, epochs_done
from .runs import find_one, leftovers_in
from .training import ranks
from .trunks import FETCHED, Reservation
from .verbs import CONFIG_DIR, INTERRUPTED, Verb, leave

Outcome = tuple[Result, Path, str]  # a run's result, its folder, and how it came: `new`, `resumed` or `shown`


@dataclass(frozen=True)
class Asked:
    """One run that is asked for; see run."""

    cfg: DictConfig
    command: str | None = None
    words: list[str] | None = None
    requests: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class _Due:
    """A run that is to be trained."""

    plan: Plan
    requests: Sequence[tuple[int, int]]
    is_new: bool  # whether its folder was not there
    trained: int  # epochs on disk


def run(
    cfg: DictConfig,
    command: str | None = None,
    until: int | None = None,
    requests: Sequence[tuple[int, int]] = (),
    words: list[str] | None = None,
) -> Outcome:
    """Does the run that a configuration asks for, unless it has been done.

    Args:
        cfg: the composed configuration, settled or not.
        command: what a person would type for it; kept in the result.
        until: stop after this many epochs, as if interrupted.
        requests: the states that other runs need of its trunk: (epoch, number of differences).
        words: Hydra's overrides that the configuration was composed of, from which `again` composes a changed run.

    Raises:
        ConfigError, DataError: the run is not possible; nothing was written.
        Exception: the run failed; the result in its folder says so.
    """
    return run_stack([Asked(cfg, command, words, requests)], until)[0]


def run_stack(asked: Sequence[Asked], until: int | None = None) -> list[Outcome]:
    """Does runs that differ by seed or rate alone, those that have not been done as one stack; otherwise as `run`.

    Raises:
        CannotStackError: their task or their optimizer cannot be stacked; nothing was written.
    """
    signals.check()  # one that came when an earlier run of this process was as good as done
    for each in asked:
        check_words(each.words or [])
    plans = [planned(each.cfg, each.command, each.words) for each in asked]
    if ranks.is_rank(plans[0].cfg):
        return [(_train_as_rank(plan), plan.folder, "new") for plan in plans]
    new = {plan.folder for plan in plans if not plan.folder.exists()}
    outcomes, due = dict[Path, Outcome](), list[_Due]()
    with ExitStack() as stack:
        for plan in sorted(plans, key=lambda plan: plan.folder):  # in one order, so that no two wait for each other
            stack.enter_context(naming(plan.folder))
            stack.enter_context(locked(plan.folder))
        for each, plan in zip(asked, plans, strict=True):
            if is_writable(plan.folder):  # else a result can be shown all the same
                _remove_leftovers(plan)
            if not plan.force and (known := _known_result(plan)):
                outcomes[plan.folder] = known, plan.folder, "shown"
                continue
            trained = epochs_done(plan.folder)
            if trained:
                checkpoint.check(plan.folder / "checkpoints" / "last.ckpt")  # before anything is written over
            due.append(_Due(plan, each.requests, plan.folder in new, trained))
        # A kill while a stack was being saved leaves some of its runs an epoch ahead: those are stacks of their own.
        for epochs in sorted({one.trained for one in due}):
            # Those of one rate, which an optimizer of their own steps, next to each other.
            together = sorted((one for one in due if one.trained == epochs), key=lambda one: one.plan.cfg.lr)
            if epochs:
                names = ", ".join(one.plan.folder.name for one in together)
                print(f"{names}: resumes after epoch {epochs}", file=sys.stderr, flush=True)
            for one, result in zip(together, _do(together, until), strict=True):
                outcomes[one.plan.folder] = result, one.plan.folder, "resumed" if epochs else "new"
    return [outcomes[plan.folder] for plan in plans]


def _do(due: list[_Due], until: int | None) -> list[Result]:
    """Trains runs that are equally far."""
    for each in due:
        _write_configuration(each.plan)
    try:
        results = _train(due, until)
    except (ConfigError, DataError):
        for each in due:
            if each.is_new and not (each.plan.folder / "result.json").exists():  # refused before it began
                shutil.rmtree(each.plan.folder)
        raise
    except KeyboardInterrupt:
        plan = due[0].plan
        saved = f"{epochs_done(plan.folder)} of {plan.cfg.epochs} epochs are saved in {plan.folder}"
        raise KeyboardInterrupt(saved) from None
    if any(result.status == "interrupted" and result.epochs["trained"] != until for result in results):
        signals.forget()
    return results


def _remove_leftovers(plan: Plan) -> None:
    """Removes what a kill may have left half-written, and all of an earlier run that is to be repeated."""
    everything = (path for path in plan.folder.iterdir() if path.name != ".lock")
    for path in everything if plan.force else leftovers_in(plan.folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _known_result(plan: Plan) -> Result | None:
    """The result of the run if it has been done; a damaged one does not count."""
    try:
        result = Result.load(plan.folder)
    except DataError as error:
        print(error, file=sys.stderr)
        return None
    if result is None or result.status not in FINAL:
        return None
    if measures_curvature(plan.cfg) and result.curvature is None:
        print(f"curvature: {plan.folder.name} was trained without it; force=true repeats it with", file=sys.stderr)
    if plan.words is not None and not _configuration_is_whole(plan):
        _write_configuration(plan)
    return result


def _configuration_is_whole(plan: Plan) -> bool:
    """Whether the files that say what the run is, and what was asked for, are as they were written."""
    try:
        for name in (plan.config_file.name, OVERRIDES):
            read_sealed_text(plan.folder / name)
    except (FileNotFoundError, DataError):
        return False
    return True


def _write_configuration(plan: Plan) -> None:
    keep(plan.folder, plan.words)
    write(plan.config_file, sealed_text(OmegaConf.to_yaml(plan.cfg)))


def _train(due: list[_Due], until: int | None) -> list[Result]:
    """Trains runs on from so many epochs, or from a later state of their trunks if other runs have published them."""
    plans, trained = [each.plan for each in due], due[0].trained
    first = plans[0]
    if first.switch_epoch is None and reads_switch(first.cfg) and is_whole(first.cfg.switch_epoch):
        print(
            f"switch_epoch={first.cfg.switch_epoch} is not within the {first.cfg.epochs} epochs: this run never "
            "switches",
            file=sys.stderr,
        )
    for each in due:
        if each.plan.trunk:
            for epoch, differences in each.requests:
                each.plan.trunk.request(epoch, differences)
    with _reserved(plans, trained) as reservations:
        if first.cfg.trainer.devices > 1:
            results = [ranks.train(first, reservations[0])]
        else:
            loading_torch()
            from .training.train import train  # here, since it takes seconds

            results = train(plans, reservations, until)
    for plan in plans:
        shutil.rmtree(plan.folder / FETCHED, ignore_errors=True)
    return results


@contextmanager
def _reserved(plans: list[Plan], trained: int) -> Iterator[list[Reservation | None]]:
    """What each run gets from its trunk; states of different epochs, from which no stack can start, are given up."""
    found = dict[Path, Reservation]()
    with ExitStack() as stack:
        for plan in sorted(plans, key=lambda plan: str(plan.trunk and plan.trunk.folder)):  # see run_stack
            if plan.trunk:
                reservation = plan.trunk.reserve(trained, plan.folder / FETCHED)
                found[plan.folder] = stack.enter_context(reservation)
        reservations = [found.get(plan.folder) for plan in plans]
        if len({each.start if each else None for each in reservations}) > 1:
            for plan in plans:
                shutil.rmtree(plan.folder / FETCHED, ignore_errors=True)
        yield reservations


def _train_as_rank(plan: Plan) -> Result:
    """Trains as one of a run's processes. Those that `ranks.train` did not start must prepare the folder, too."""
    from .training.train import train

    command = os.environ.get(ranks.COMMAND)
    if command is None:  # started by torchrun or Slurm
        if plan.force:
            raise ConfigError("force: not with torchrun or Slurm's own ranks; remove the run: tmbench runs remove")
        if ranks.is_first():
            plan.folder.mkdir(exist_ok=True)
            _write_configuration(plan)
    return train([plan])[0]


def report(outcome: Outcome) -> int:
    """Prints the outcome of one run; returns the exit status."""
    from .runs import show

    result, folder, how = outcome
    show.one(result, folder, how, show.console())
    return INTERRUPTED if result.status == "interrupted" else 0


def _saved_run(settings: dict[str, Any], words: list[str]) -> int:
    """Asks for a saved run, with changes; returns the exit status."""
    if not words or ("=" in words[0] and not os.path.exists(words[0])):
        raise UsageError("run: expected the folder of a run, or its config.yaml; for a new run: tmbench key=value ...")
    path = Path(words[0])
    if not path.exists() and path.suffix != ".yaml":
        path = find_one(words[0], Path("runs")).folder
    words = [*words, *own_files(settings["config_dir"])]
    if path.is_dir():
        path /= "config.yaml"
    command = os.environ.get(ranks.COMMAND, shlex.join(["python", "-m", "tmbench.run", *words]))

    def again_and_run() -> Outcome:
        cfg, overrides = again(path, words[1:], is_ours=ranks.COMMAND in os.environ)
        return run(cfg, command, words=overrides)

    if "TORCHELASTIC_RUN_ID" in os.environ:  # a rank: the process that started it prints the result
        return ranks.as_rank(again_and_run, path.parent)
    return report(again_and_run())


main = Verb(
    "run",
    "Repeats or continues a saved run, perhaps with changes: it is composed anew from what the run was asked for, so "
    "that all that depends on a change follows. Without RUN: one run, or with -m a sweep, as `tmbench --help` says.",
    _saved_run,
    {"config_dir": CONFIG_DIR},
    takes="RUN [key=value ...]",
    examples="tmbench run runs/tc-tmsgd-0-0123456789ab optimizer=adam\n"
    "tmbench run runs/RUN/config.yaml data=full lr=0.5 +optimizer.amsgrad=true\n"
    "tmbench run runs/RUN trust=my.module      where it names a class of that module\n"
    "tmbench run task=tc optimizer=tmsgd",
)

if __name__ == "__main__":
    leave(main())
