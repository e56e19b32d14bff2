"""One job of a sweep: its run, recorded in the sweep's folder; as a process, `python -m tmbench.sweeps.job FILE`."""

import os
import shlex
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from ..config.overrides import of_the_run
from ..result import Result
from ..run import run
from ..verbs import ERROR, EXPECTED, INTERRUPTED, explain, leave
from .record import JobOrder, JobRecord, sweep_id

PROGRAM = os.environ.get("TMBENCH_PROGRAM", "python -m tmbench")  # as the person called it


def command(words: list[str]) -> str:
    """What a person would type for the run that these words ask for."""
    return f"{PROGRAM} {shlex.join(of_the_run(words))}"


def do_job(folder: Path, order: JobOrder) -> Result:
    """Does one job of the sweep in `folder` and records there what came of it.

    Raises:
        Exception: whatever its run raises; it is recorded and printed by then.
    """
    words = [*order.search, *order.words]
    cfg = OmegaConf.create(order.cfg)
    if "group" in cfg.logger and cfg.logger.group is None:
        cfg.logger.group = folder.name
    record = JobRecord(sweep_id(), order.number, order.words, order.arm)
    try:
        result, run_folder, how = run(cfg, command(words), requests=order.states, words=words)
    except Exception as error:
        message = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        replace(record, error=message).save(folder)
        print(explain(error), file=sys.stderr)
        raise
    replace(record, folder=str(run_folder), how=how).save(folder)
    return result


def main() -> None:
    """A job's own process: does the job whose order is in the file that it is given."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to all processes; it is meant for our parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = Path(sys.argv[1])
    order = JobOrder.load(file)
    try:
        result = do_job(file.parent, order)
    except Exception:  # do_job has printed it
        leave(ERROR)
    leave(INTERRUPTED if result.status == "interrupted" else 0)


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
