"""Torch-free processes that share a trunk store and get killed; run as `trunk_workers.py FOLDER ROUNDS`.

A run here is a chain of hashes, so that a wrong or torn state shows in its end.
"""

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import tmbench.trunks
from tmbench.files import write
from tmbench.trunks import Trunk, state_to_start_from

EPOCHS, WORKERS = 8, 8
ENDS = [EPOCHS, 6, 2, 7, 3, 5, 1, 4]  # of each worker; the first is the plain run


def chain(value: str, method: str, count: int) -> str:
    for _ in range(count):
        value = hashlib.sha256(f"{value} {method}".encode()).hexdigest()
    return value


def work(store: Path, runs: Path, end: int) -> None:
    """One run: its trunk up to `end`, then a tail; resumes from its own last epoch as a real one does."""
    folder = runs / str(end)
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "last"  # "epoch value", by rename
    trunk = Trunk(store, "trunk", end, switches=end < EPOCHS, limit=40_000)  # some five states
    epoch, value = (lambda a, b: (int(a), b))(*own.read_text().split()) if own.exists() else (0, "start")
    for old in (folder / ".trunk").glob("*"):
        (old / "state.ckpt").unlink(missing_ok=True)
        (old / "about.json").unlink(missing_ok=True)
        os.rmdir(old)
    with trunk.reserve(epoch, folder / ".trunk") as reservation:
        if reservation.start is not None:
            state = state_to_start_from(folder)
            assert state is not None
            epoch, value = reservation.start, (state / "state.ckpt").read_text().split()[-1]
        while epoch < EPOCHS:
            value = chain(value, "sgd" if epoch < end else f"tm{end}", 1)
            epoch += 1
            time.sleep(random.random() * 0.004)
            write(own, f"{epoch} {value}")
            if epoch <= end:
                if trunk.unmet_request(epoch) is not None:
                    # Long enough that a kill hits the middle of it.
                    trunk.publish(epoch, 0, lambda f, v=value: (f / "state.ckpt").write_text("x" * 2000 + " " + v))
                reservation.reached(epoch)
                if epoch == end:
                    reservation.release()
    write(folder / "result", value)


def round_(folder: Path, kill: bool) -> list[str]:
    """Starts a worker for each end, kills some at random moments, and starts the killed again until all are done."""
    store, runs = folder / "store", folder / "runs"
    for end in ENDS:
        if end < EPOCHS:
            Trunk(store, "trunk", end).request(end, 0)
    for attempt in range(20):
        alive = {}
        for end in ENDS:
            if (runs / str(end) / "result").exists():
                continue
            if (pid := os.fork()) == 0:
                random.seed()
                work(store, runs, end)
                os._exit(0)
            alive[pid] = end
        if kill and attempt < 3:
            for pid in random.sample(sorted(alive), k=len(alive) // 2 + 1):
                time.sleep(random.random() * 0.02)
                os.kill(pid, signal.SIGKILL)
        wrong = [f"a worker ended with {status}" for pid in alive if (status := os.waitpid(pid, 0)[1]) not in (0, 9)]
        if wrong:
            return wrong
        if all((runs / str(end) / "result").exists() for end in ENDS):
            break
    else:
        return ["not done after 20 attempts"]
    for end in ENDS:
        expected = chain(chain("start", "sgd", end), f"tm{end}", EPOCHS - end)
        if (runs / str(end) / "result").read_text() != expected:
            wrong.append(f"wrong result of {end}")
    for state in (store / "trunk").glob("[0-9]" * 5):
        if (state / "state.ckpt").read_text().split()[-1] != chain("start", "sgd", int(state.name)):
            wrong.append(f"wrong state {state.name}")
    return wrong


if __name__ == "__main__":
    tmbench.trunks.PATIENCE = 5.0
    for number in range(int(sys.argv[2])):
        random.seed(number)
        if problems := round_(Path(sys.argv[1]) / str(number), kill=True):
            sys.exit(f"round {number}: {problems}")
    print("all right")
