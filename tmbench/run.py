"""One run, top to bottom: what is asked for, whether it was done before, and doing it.

`python -m tmbench.run <runs>/<run id>/config.yaml [key=value ...]` asks for a saved run again.
"""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from . import checkpoint
from .config.identity import OVERRIDES, run_id, world_size
from .config.overrides import again, check_words, keep
from .config.settle import settle
from .data import open_dataset
from .errors import ConfigError, DataError, RunError, UsageError
from .files import clear_scratch, locked, read_sealed_text, sealed_text, write
from .result import FINAL, Result, epochs_done
from .training.ranks import Ranks, end_with_parent, lost_peer
from .trunks import FETCHED, Claim, Trunk, trunk_of
from .verbs import ERROR, EXPECTED, Verb, explain, leave


def run(
    cfg: DictConfig,
    command: str | None = None,
    until: int | None = None,
    asks: Iterable[tuple[int, int]] = (),
    words: list[str] | None = None,
) -> tuple[Result, Path, str]:
    """Does the run that a configuration asks for, unless it has been done.

    Args:
        cfg: the composed configuration, settled or not.
        command: what a person would type for it; kept in the result.
        until: stop after this many epochs, as if interrupted.
        asks: the states that other runs want of its trunk: (epoch, number of differences).
        words: Hydra's overrides that the configuration was composed of, which a change of it starts from.

    Returns:
        Its result, its folder, and how it came: `new`, `resumed` or `shown`.

    Raises:
        ConfigError, DataError: what is asked for is not possible; nothing was written.
        Exception: the run failed; the result in its folder says so.
    """
    if words:
        check_words(words)
    cfg = settle(cfg)
    try:
        Path(cfg.runs_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"runs_dir: expected a folder to write to, got {cfg.runs_dir} ({error.strerror})") from None
    dataset, label, digest = open_dataset(cfg, get_class(cfg.task.data))
    folder = Path(cfg.runs_dir) / run_id(cfg, digest)
    config_file = folder / "config.yaml"
    command = command or f"python -m tmbench.run {config_file}"
    trunk = trunk_of(cfg, digest) if cfg.trunk == "auto" else None

    def note() -> None:
        cfg.force = cfg.plan = False
        keep(folder, words)
        write(config_file, sealed_text(OmegaConf.to_yaml(cfg)))

    if launched(cfg):  # one of a run's processes
        from .training.train import train

        if "TMBENCH_COMMAND" not in os.environ:  # of torchrun or Slurm; else the folder is ready
            if cfg.force:
                raise ConfigError(
                    "force: not with torchrun or Slurm's own ranks; remove the run: python -m tmbench.runs remove"
                )
            if _is_first():
                folder.mkdir(exist_ok=True)
                note()
        command = os.environ.get("TMBENCH_COMMAND", command)
        return train(cfg, dataset, label, digest, folder, command, trunk=trunk), folder, "new"
    with locked(folder):
        clear_scratch(folder)  # and what else a kill may have left
        shutil.rmtree(folder / FETCHED, ignore_errors=True)
        if cfg.force:
            _clear(folder)
        try:
            earlier = Result.load(folder)
        except DataError as error:
            print(error, file=sys.stderr)
            earlier = None
        if earlier and earlier.status in FINAL:
            if words is not None and not _says_what_it_is(folder):
                note()
            return earlier, folder, "shown"
        have = epochs_done(folder)
        if have:
            checkpoint.check(folder / "checkpoints" / "last.ckpt")  # before anything is written over
        note()
        if trunk:
            for epoch, needs in asks:
                trunk.ask(epoch, needs)
        with trunk.claim(have, folder / FETCHED) if trunk else nullcontext() as claim:
            if cfg.trainer.devices > 1:
                result = _launch(cfg, folder, config_file, command, trunk, claim)
            else:
                from .training.train import train

                result = train(
                    cfg, dataset, label, digest, folder, command, trunk=trunk, claim=claim, until=until
                )  # fmt: skip
        shutil.rmtree(folder / FETCHED, ignore_errors=True)
        return result, folder, "resumed" if have else "new"


def _says_what_it_is(folder: Path) -> bool:
    """Whether the files that say what a run is, and what was asked for, are as they were written."""
    try:
        for name in ("config.yaml", OVERRIDES):
            read_sealed_text(folder / name)
    except (FileNotFoundError, DataError):
        return False
    return True


def launched(cfg: DictConfig) -> bool:
    """Whether this process is one of those that torchrun or Slurm started for this run; not if it is to be alone."""
    world = world_size(cfg)
    return world > 1 and ("TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) == world)


def _is_first() -> bool:
    """Whether this is the first of the processes that torchrun or Slurm started for a run."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _launch(
    cfg: DictConfig, folder: Path, config_file: Path, command: str, trunk: Trunk | None, claim: Claim | None
) -> Result:
    """One process a device; this one watches them, and passes on the wish to stop."""
    count = cfg.trainer.devices
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **os.environ,
        "TMBENCH_COMMAND": command,
        "PYTHONPATH": python_path(),
    }
    (folder / "result.json").unlink(missing_ok=True)  # an earlier attempt's
    ranks = Ranks(folder, count)
    asked, claimed = False, trunk is not None and claim is not None

    def stop(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        ranks.ask_to_stop()

    def tell_others() -> None:
        nonlocal claimed
        if not claimed:
            return
        assert trunk
        assert claim
        done = epochs_done(folder)
        claim.reached(done - 1)  # the last of them may not be published yet
        if done > trunk.end or trunk.end in trunk.states():
            claim.release()
            claimed = False

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ranks.start(["-m", "tmbench.run", str(config_file)], environment)
        wrong = ranks.wait(tell_others)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    result = Result.load(folder)
    if result and (wrong is None or asked):
        shutil.rmtree(ranks.logs, ignore_errors=True)
        return result
    # What the rank that writes results says of itself is more, unless it only missed another.
    own = result and result.error
    error = own if own and not lost_peer(RuntimeError(own)) else wrong or "no rank left a result"
    if result:
        replace(result, status="failed", error=error).save(folder)
    raise RunError(error)


def python_path() -> str:
    """The PYTHONPATH with which another process finds this package."""
    package = str(Path(__file__).parent.parent)
    return os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))


Outcome = tuple[Result, Path, str]


def report(do: Callable[[], Outcome]) -> int:
    """Does one run and prints what came of it; returns the exit code."""
    from .runs import show

    try:
        result, folder, how = do()
    except EXPECTED as error:
        print(explain(error), file=sys.stderr)
        return ERROR
    show.one(result, folder, how, show.console())
    return 130 if result.status == "interrupted" else 0


def _saved_run(settings: dict[str, Any], words: list[str]) -> int:
    """Asks for a saved run, with changes; returns the exit status."""
    if not words:
        raise UsageError("run: expected the folder of a run, or its config.yaml; see tmbench run --help")
    path = Path(words[0])
    if path.is_dir():
        path /= "config.yaml"
    command = shlex.join(["python", "-m", "tmbench.run", *words])

    def again_and_run() -> Outcome:
        cfg, overrides = again(path, words[1:])
        return run(cfg, command, words=overrides)

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return report(again_and_run)
    end_with_parent()  # a rank: the process that started it prints the result
    try:
        again_and_run()
    except Exception as error:
        if not lost_peer(error):
            raise
        print(f"rank {os.environ.get('RANK')}: another rank is gone", file=sys.stderr)
        return ERROR
    return 0


main = Verb(
    "run",
    "Repeats or continues a saved run, perhaps with changes: it is composed anew from what the run was asked for, so\n"
    "that all that depends on a change follows. Without FILE: one run, or with -m a sweep, as `tmbench --help` says.",
    _saved_run,
    takes="FILE [key=value ...]",
    examples="tmbench run runs/RUN optimizer=adam\n"
    "tmbench run runs/RUN/config.yaml data=full lr=0.5 +optimizer.amsgrad=true\n"
    "tmbench run task=tc optimizer=tmsgd",
)

if __name__ == "__main__":
    leave(main())
