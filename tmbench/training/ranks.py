"""One process a device: started together, watched, ended together."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Who waits for a dead peer may wait for ever, and not even hear a signal. Seconds until the others of a failed rank are
# asked to end, and from then on until they are killed.
PATIENCE, GRACE = 5.0, 20.0
LOST_PEER = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL error", "TCPStore")


@dataclass
class Ranks:
    """The processes of one run on this machine, from start to end.

    Rank 0 writes where this process does; the others to `<folder>/ranks/<rank>.log`, which goes when all is well.
    """

    folder: Path
    count: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, arguments: list[str], environment: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.logs.mkdir(exist_ok=True)
        for rank in range(self.count):
            # As torchrun tells them, by which torch and Lightning know a rank.
            own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own |= {"WORLD_SIZE": self.count, "LOCAL_WORLD_SIZE": self.count, "TORCHELASTIC_RUN_ID": os.getpid()}
            told = environment | {key: str(value) for key, value in own.items()}
            with (self.logs / f"{rank}.log").open("wb") as log:
                out = None if rank == 0 else log
                command = [sys.executable, *arguments]
                self.processes.append(
                    subprocess.Popen(command, env=told, start_new_session=True, stdout=out, stderr=out)
                )

    @property
    def logs(self) -> Path:
        return self.folder / "ranks"

    def ask_to_stop(self) -> None:
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
                self.ask_to_stop()
            meanwhile()
            time.sleep(0.2)
        failed = [(process.returncode, rank) for rank, process in enumerate(self.processes) if process.returncode]
        # One that was killed says nothing itself; those that then miss it fail, too, and later are killed by us.
        killed = [(code, rank) for code, rank in failed if code < 0 and code != -signal.SIGTERM]
        if not failed:
            return None
        code, rank = (killed or failed)[0]
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"failed with exit code {code}"
            if rank > 0:
                sys.stderr.write((self.logs / f"{rank}.log").read_text(errors="replace")[-5000:])
        return f"rank {rank} of {self.count} {how}; the same command goes on from the last checkpoint"


def end_with_parent() -> None:
    """For a rank: if the process that watches it dies, it dies, before somebody starts the same run again (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def lost_peer(error: BaseException) -> bool:
    """Whether this rank failed only because another did."""
    return any(words in str(error) for words in LOST_PEER)
