"""One run, top to bottom: plan it, see whether it was done before, and train it.

`python -m tmbench.run <runs>/<run id> [key=value ...]` asks for a saved run again.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from . import checkpoint, signals
from .config.compose import own_files
from .config.identity import OVERRIDES, reads_switch
from .config.overrides import again, check_words, keep
from .config.values import is_whole
from .errors import ConfigError, DataError, UsageError
from .files import is_writable, locked, naming, read_sealed_text, sealed_text, write
from .plan import Plan, planned
from .progress import loading_torch
from .result import FINAL, Result, epochs_done
from .runs import find_one, leftovers_in
from .training import ranks
from .trunks import FETCHED
from .verbs import CONFIG_DIR, INTERRUPTED, Verb, leave

Outcome = tuple[Result, Path, str]  # a run's result, its folder, and how it came: `new`, `resumed` or `shown`


def run(
    cfg: DictConfig,
    command: str | None = None,
    until: int | None = None,
    requests: Iterable[tuple[int, int]] = (),
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
    signals.check()  # one that came when an earlier run of this process was as good as done
    if words:
        check_words(words)
    plan = planned(cfg, command, words)
    if ranks.is_rank(plan.cfg):
        return _train_as_rank(plan), plan.folder, "new"
    is_new = not plan.folder.exists()
    with naming(plan.folder), locked(plan.folder):
        if is_writable(plan.folder):  # else a result can be shown all the same
            _remove_leftovers(plan)
        if not plan.force and (known := _known_result(plan)):
            return known, plan.folder, "shown"
        trained = epochs_done(plan.folder)
        if trained:
            checkpoint.check(plan.folder / "checkpoints" / "last.ckpt")  # before anything is written over
        _write_configuration(plan)
        try:
            result = _train(plan, trained, until, requests)
        except (ConfigError, DataError):
            if is_new and not (plan.folder / "result.json").exists():  # refused before it began
                shutil.rmtree(plan.folder)
            raise
        except KeyboardInterrupt:
            saved = f"{epochs_done(plan.folder)} of {plan.cfg.epochs} epochs are saved in {plan.folder}"
            raise KeyboardInterrupt(saved) from None
        if result.status == "interrupted" and result.epochs["trained"] != until:
            signals.forget()
        return result, plan.folder, "resumed" if trained else "new"


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


def _train(plan: Plan, trained: int, until: int | None, requests: Iterable[tuple[int, int]]) -> Result:
    """Trains the run on from so many epochs, or from a later state of its trunk if another run has published one."""
    fetched = plan.folder / FETCHED
    if plan.switch_epoch is None and reads_switch(plan.cfg) and is_whole(plan.cfg.switch_epoch):
        print(
            f"switch_epoch={plan.cfg.switch_epoch} is not within the {plan.cfg.epochs} epochs: this run never switches",
            file=sys.stderr,
        )
    if plan.trunk:
        for epoch, differences in requests:
            plan.trunk.request(epoch, differences)
    with plan.trunk.reserve(trained, fetched) if plan.trunk else nullcontext() as reservation:
        if plan.cfg.trainer.devices > 1:
            result = ranks.train(plan, reservation)
        else:
            loading_torch()
            from .training.train import train  # here, since it takes seconds

            result = train(plan, reservation, until)
    shutil.rmtree(fetched, ignore_errors=True)
    return result


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
    return train(plan)


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
