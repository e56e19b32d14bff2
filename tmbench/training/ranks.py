"""One process a device (a rank): started together, watched, ended together. Torch-free."""

import ctypes
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from .. import signals
from ..config.identity import world_size
from ..errors import RunError
from ..plan import Plan
from ..result import Result, epochs_done
from ..trunks import Reservation
from ..verbs import ERROR, INTERRUPTED, explain, is_expected

# Who waits for a dead peer may wait for ever, and not even hear a signal. Seconds until the others of a failed rank are
# asked to end, and from then on until they are killed.
PATIENCE, GRACE = 5.0, 10.0
LOGS = "ranks"  # in the run's folder
COMMAND = "TMBENCH_COMMAND"  # the variable that tells a rank the command that started the run
LOST_PEER = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL error", "TCPStore")


def is_rank(cfg: DictConfig) -> bool:
    """Whether this process is one of those that torchrun, Slurm or `train` started for this run."""
    world = world_size(cfg)
    return world > 1 and ("TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) == world)


def is_first() -> bool:
    """Whether this is the first of the processes that torchrun or Slurm started for a run."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def python_path() -> str:
    """The PYTHONPATH with which another process finds this package."""
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))


def train(plan: Plan, reservation: Reservation | None) -> Result:
    """Trains a planned run with one process a device; this one watches them, and passes on a request to stop.

    Raises:
        RunError: a process failed; the message is the first one's own, or says how it ended.
        KeyboardInterrupt: they were stopped before there was anything to tell.
    """
    (plan.folder / "result.json").unlink(missing_ok=True)  # an earlier attempt's
    ranks = Ranks(plan.folder, plan.cfg.trainer.devices)
    signals.check()
    with signals.listening(ranks.request_stop):
        ranks.start([sys.executable, "-m", "tmbench.run", str(plan.config_file)], plan.command)
        ranks.wait(lambda: _report_progress(plan, reservation))
    result, error = Result.load(plan.folder), ranks.first_error()
    if error:
        if result:
            replace(result, status="failed", error=error).save(plan.folder)
        raise RunError(error)
    shutil.rmtree(ranks.logs, ignore_errors=True)
    if result is None:
        raise KeyboardInterrupt
    if result.status == "failed":  # it missed one that had stopped
        result = replace(result, status="interrupted", error=None)
        result.save(plan.folder)
    return result


def _report_progress(plan: Plan, reservation: Reservation | None) -> None:
    """Tells others how far the ranks have come in the trunk, and releases it when they have left it."""
    if not (plan.trunk and reservation and reservation.lock):
        return
    done = epochs_done(plan.folder)
    reservation.reached(done - 1)  # the last of them may not be published yet
    if done > plan.trunk.end or plan.trunk.end in plan.trunk.states():
        reservation.release()


def as_rank(do: Callable[[], object], folder: Path) -> int:
    """Does a rank's part of the run in a folder; returns the exit code. On Linux it dies with who watches it.

    Where we started the process, our parent reports the error: another rank's may have come first.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: before the same run is started again
    try:
        do()
    except (Exception, KeyboardInterrupt) as error:
        misses_another = any(words in str(error) for words in LOST_PEER)
        if COMMAND not in os.environ:  # torchrun or Slurm has started it
            if not misses_another:
                raise
            print(f"rank {os.environ.get('RANK')}: another rank is gone", file=sys.stderr)
        elif signals.is_interrupt(error):
            return INTERRUPTED
        elif not misses_another:
            said = explain(error) if is_expected(error) else f"{type(error).__name__}: {error}"
            (folder / LOGS / f"{os.environ['RANK']}.error").write_text(said)
            if not is_expected(error):
                traceback.print_exc()
        return ERROR
    return 0


class Ranks:
    """The processes of one run on this machine, from start to end.

    Rank 0 writes where this process does; the others, and rank 0 of a caller who wants nothing printed, to
    `<folder>/ranks/<rank>.log`, which goes when all is well.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.logs, self.count, self.stop_requested = folder / LOGS, count, False
        self.processes: list[subprocess.Popen[bytes]] = []
        self.failed: list[tuple[int, int]] = []  # exit code and rank, of those that were first

    def start(self, arguments: list[str], command: str) -> None:
        """Starts them; `command` is what a person typed for the run."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        environment = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.count)), "TORCH_CPP_LOG_LEVEL": "ERROR",
            **os.environ, COMMAND: command, "PYTHONPATH": python_path(),
            # As torchrun tells them, by which torch and Lightning know a rank.
            "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(self.count),
            "LOCAL_WORLD_SIZE": str(self.count), "TORCHELASTIC_RUN_ID": str(os.getpid()),
        }  # fmt: skip
        shutil.rmtree(self.logs, ignore_errors=True)  # an earlier attempt's
        self.logs.mkdir()
        is_quiet = isinstance(sys.stderr, io.StringIO)  # see guest; a process would write past it
        for rank in range(self.count):
            variables = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (self.logs / f"{rank}.log").open("wb") as log:
                out = None if rank == 0 and not is_quiet else log
                process = subprocess.Popen(arguments, env=variables, start_new_session=True, stdout=out, stderr=out)
            self.processes.append(process)

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Asks the processes to stop after their step; the second SIGINT does not wait for it. A signal handler."""
        for process in self.processes:
            if self.stop_requested and number == signal.SIGINT:
                process.kill()
            else:
                process.terminate()
        self.stop_requested = True

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Until all have ended. Those that miss one that has failed are asked to end, and killed later."""
        failed_at = None
        while True:
            codes = [process.poll() for process in self.processes]
            if failed_at is None and any(codes):
                failed_at = time.monotonic()
                self.failed = [(code, rank) for rank, code in enumerate(codes) if code and code != INTERRUPTED]
            if None not in codes:
                return
            late = 0.0 if failed_at is None else time.monotonic() - failed_at
            for process in self.processes if late > PATIENCE else ():
                process.kill() if late > PATIENCE + GRACE else process.terminate()
            meanwhile()
            time.sleep(0.2)

    def first_error(self) -> str | None:
        """What went wrong first, in that rank's own words if it has left any; None if they have only stopped."""
        notes = sorted(self.logs.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
        if notes:
            rank, error = int(notes[0].stem), notes[0].read_text()
            if [path.read_text() for path in notes] == [error] * self.count:  # not of that one alone
                return error
            error = f": {error}"
        elif self.failed and not self.stop_requested:
            # One that was killed says nothing itself, and those that then miss it fail, too.
            code, rank = min(self.failed)
            error = f" was ended by {signal.Signals(-code).name}" if code < 0 else f" failed with exit code {code}"
            error += "; the same command continues from the last checkpoint"
        else:
            return None
        if rank > 0:
            sys.stderr.write((self.logs / f"{rank}.log").read_text(errors="replace")[-5000:])
        return f"rank {rank} of {self.count}{error}"
