"""One job of a sweep: its run, noted in the sweep's folder; `python -m tmbench.sweeps.job FILE` is its own process."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ..result import Result
from ..run import run
from ..verbs import EXPECTED, explain, leave
from . import record, sweep

STOPPED = 130  # exit code of a job that goes on when it is asked for again


def one_of_many(
    cfg: DictConfig, folder: Path, number: int, arm: str, words: list[str], search: list[str],
    asks: Iterable[tuple[int, int]] = (),
) -> Result:  # fmt: skip
    """Does one job of the sweep in `folder`, and notes there and tells what came of it; raises what its run raises."""
    own = [*search, *words]
    if "group" in cfg.logger and cfg.logger.group is None:
        cfg.logger.group = folder.name
    try:
        result, run_folder, how = run(cfg, sweep.command(own), asks=asks, words=own)
    except Exception as error:
        message = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        record.add_job(folder, number, words, arm, error=message)
        print(explain(error), file=sys.stderr)
        raise
    record.add_job(folder, number, words, arm, run_folder, how)
    return result


def main() -> None:
    """A job's own process: does the job in the file that it is given."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's, to all; it is for the one who started us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = Path(sys.argv[1])
    facts = json.loads(file.read_text())
    try:
        result = one_of_many(
            OmegaConf.create(facts["cfg"]), file.parent, facts["number"], facts["arm"], facts["words"],
            facts["search"], facts["asks"],
        )  # fmt: skip
    except Exception:  # it has been told
        leave(1)
    leave(STOPPED if result.status == "interrupted" else 0)


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
