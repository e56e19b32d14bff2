"""One process a device (a rank): started together, watched, ended together. Torch-free."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from ..config.identity import world_size
from ..errors import RunError
from ..plan import Plan
from ..result import Result, epochs_done
from ..trunks import Reservation

# Who waits for a dead peer may wait for ever, and not even hear a signal. Seconds until the others of a failed rank are
# asked to end, and from then on until they are killed.
PATIENCE, GRACE = 5.0, 20.0
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


@contextmanager
def stop_signals_to(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """SIGINT and SIGTERM call this handler meanwhile."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def train(plan: Plan, reservation: Reservation | None) -> Result:
    """Trains a planned run with one process a device; this one watches them, and passes on a request to stop.

    Raises:
        RunError: a process failed; the message says which, and how.
    """
    (plan.folder / "result.json").unlink(missing_ok=True)  # an earlier attempt's
    ranks = Ranks(plan.folder, plan.cfg.trainer.devices)
    with stop_signals_to(ranks.request_stop):
        ranks.start([sys.executable, "-m", "tmbench.run", str(plan.config_file)], plan.command)
        wrong = ranks.wait(lambda: _report_progress(plan, reservation))
    result = Result.load(plan.folder)
    if result and (wrong is None or ranks.stop_requested):
        shutil.rmtree(ranks.logs, ignore_errors=True)
        return result
    # What the rank that writes results says of itself is more, unless it only missed another.
    said = result and result.error
    error = said if said and not _lost_peer(said) else wrong or "no rank left a result"
    if result:
        replace(result, status="failed", error=error).save(plan.folder)
    raise RunError(error)


def _report_progress(plan: Plan, reservation: Reservation | None) -> None:
    """Tells others how far the ranks have come in the trunk, and releases it when they have left it."""
    if not (plan.trunk and reservation and reservation.lock):
        return
    done = epochs_done(plan.folder)
    reservation.reached(done - 1)  # the last of them may not be published yet
    if done > plan.trunk.end or plan.trunk.end in plan.trunk.states():
        reservation.release()


def as_rank(do: Callable[[], object]) -> int:
    """Does a rank's part of a run; returns the exit code. On Linux it dies with the process that watches it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: before the same run is started again
    try:
        do()
    except Exception as error:
        if not _lost_peer(str(error)):
            raise
        print(f"rank {os.environ.get('RANK')}: another rank is gone", file=sys.stderr)
        return 1
    return 0


class Ranks:
    """The processes of one run on this machine, from start to end.

    Rank 0 writes where this process does; the others to `<folder>/ranks/<rank>.log`, which goes when all is well.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.logs, self.count, self.stop_requested = folder / "ranks", count, False
        self.processes: list[subprocess.Popen[bytes]] = []

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
        self.logs.mkdir(exist_ok=True)
        for rank in range(self.count):
            variables = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (self.logs / f"{rank}.log").open("wb") as log:
                out = None if rank == 0 else log
                process = subprocess.Popen(arguments, env=variables, start_new_session=True, stdout=out, stderr=out)
            self.processes.append(process)

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Asks the processes to stop after their step; a signal handler."""
        self.stop_requested = True
        self._terminate()

    def _terminate(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def wait(self, meanwhile: Callable[[], None]) -> str | None:
        """Until all have ended; what went wrong with the first that failed, or None if none did."""
        failed_at = None
        while any(process.poll() is None for process in self.processes):
            if failed_at is None and any(process.poll() for process in self.processes):
                failed_at = time.monotonic()
            late = 0.0 if failed_at is None else time.monotonic() - failed_at
            if late > PATIENCE + GRACE:
                for process in self.processes:
                    process.kill()
            elif late > PATIENCE:
                self._terminate()
            meanwhile()
            time.sleep(0.2)
        failed = [(process.returncode, rank) for rank, process in enumerate(self.processes) if process.returncode]
        # One that was killed says nothing itself; those that then miss it fail, too, and later are killed by us.
        killed = [(code, rank) for code, rank in failed if code < 0 and code != -signal.SIGTERM]
        if not failed:
            return None
        code, rank = (killed or failed)[0]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        if code > 0 and rank > 0:
            sys.stderr.write((self.logs / f"{rank}.log").read_text(errors="replace")[-5000:])
        return f"rank {rank} of {self.count} {how}; the same command goes on from the last checkpoint"


def _lost_peer(error: str) -> bool:
    """Whether a rank failed only because another did."""
    return any(words in error for words in LOST_PEER)
