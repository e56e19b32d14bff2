"""What runs share: their beginning, up to the switch, as states that the first to get there publishes.

A trunk is a folder `<runs>/.trunks/<digest of what the runs have in common>/` with

    00004/         the state after 4 epochs: state.ckpt, perhaps best.ckpt, and about.json with their digests
    00004.asked-2  a run wants it, with the last 2 differences of the weights
    .lock          held by whoever trains this trunk now, and touched while they live

Any number of processes work on it at once, and may be killed at any moment: a state comes and goes by one rename,
the lock falls with its holder, and what a state holds does not depend on who made it. Torch-free.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .config.identity import before_switch, digest, effective_switch, identity
from .config.machine import cpu_model, gpu_names
from .errors import DataError
from .files import digest_of, flush, read_sealed, write_sealed
from .result import versions

STORE = ".trunks"  # under runs_dir
FETCHED = ".trunk"  # under a run's folder
PATIENCE = 60.0  # seconds without a sign of life after which a lock's holder is overtaken
GIB = 2**30


def trunk_of(cfg: Mapping[Any, Any], data_digest: str) -> "Trunk | None":
    """The trunk of a settled configuration's run, used or not; None if it has none."""
    before = before_switch(cfg)
    if before is None:
        return None
    facts = identity(cfg, data_digest)
    facts.pop("switch_epoch", None)
    facts["optimizer"], needs = before
    source = _source(cfg["task"]["_target_"], cfg["task"]["data"])
    facts["made"] = {**versions(), "by": source, "on": _machine(cfg["trainer"]["accelerator"])}
    switch = effective_switch(cfg)
    return Trunk(
        Path(cfg["runs_dir"]) / STORE, digest(facts), int(cfg["epochs"]) if switch is None else switch,
        switches=switch is not None, needs=0 if switch is None else needs, limit=cfg["trunk_gib"] * GIB,
    )  # fmt: skip


@cache
def _source(*targets: str) -> str:
    """A digest of our own source and of the modules that hold these: changed code trains its own trunks."""
    here = Path(__file__).parent
    files = [*here.rglob("*.py")]
    for target in targets:
        spec = find_spec(target.rpartition(".")[0])
        if spec and spec.origin:
            files.append(Path(spec.origin))
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()[:12]


@cache
def _machine(accelerator: str) -> list[str]:
    """What may round otherwise: the GPU's type; else the processor's and how many threads share its work."""
    if accelerator == "cuda":
        return gpu_names()
    threads = [f"{key}={os.environ.get(key)}" for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
    return [cpu_model(), str(len(os.sched_getaffinity(0))), *threads]


class Trunk:
    """One run's view of its trunk.

    Args:
        store: the folder of all trunks.
        name: this one's.
        end: the epoch at which the run leaves it: its switch, or its last epoch.
        switches: whether that is a switch.
        needs: how many of the last differences of the weights the run wants there.
        limit: bytes that the store may take.
    """

    def __init__(
        self, store: Path, name: str, end: int, *, switches: bool = True, needs: int = 0, limit: float = 10 * GIB
    ) -> None:
        self.store, self.end, self.switches, self.needs, self.limit = store, end, switches, needs, limit
        self.folder = store / name

    def ask(self, epoch: int, needs: int) -> None:
        """Asks whoever trains this trunk to publish the state after so many epochs, if it is not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.states().get(epoch, -1) < needs:
            (self.folder / f"{epoch:05d}.asked-{needs}").touch()

    def asked(self) -> dict[int, int]:
        """The epochs whose states are asked for, with the number of differences."""
        wanted: dict[int, int] = {}
        for path in self.folder.glob("*.asked-*"):
            epoch, needs = (int(word) for word in path.name.split(".asked-"))
            wanted[epoch] = max(needs, wanted.get(epoch, 0))
        return wanted

    def states(self) -> dict[int, int]:
        """The epochs whose states are published, with the number of differences that each holds."""
        known = {}
        for path in self.folder.glob("[0-9]" * 5):
            try:
                known[int(path.name)] = read_sealed(path / "about.json")["differences"]
            except (FileNotFoundError, DataError) as error:
                if path.exists():  # else it was being removed
                    self._drop_damaged(path, error)
            except OSError:  # not ours to read
                continue
        return known

    def lacks(self, epoch: int) -> int | None:
        """How many differences a state to be published after this epoch should hold; None if nobody wants it."""
        wanted = self.asked().get(epoch)
        return None if wanted is None or self.states().get(epoch, -1) >= wanted else wanted

    def publish(self, epoch: int, differences: int, fill: Callable[[Path], None]) -> None:
        """Publishes what `fill` writes into the folder it is given, unless an equal state is there.

        Raises:
            OSError: the disk said no; nothing is published then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = f".writing-{socket.gethostname()}-{os.getpid()}-"
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=mark))
        try:
            fill(scratch)
            files = {path.name: digest_of(path) for path in sorted(scratch.iterdir())}
            for name in files:
                flush(scratch / name)
            write_sealed(scratch / "about.json", {"differences": differences, "files": files})
            scratch.chmod(0o755)
            if self.states().get(epoch, differences) < differences:
                _remove(self.folder / f"{epoch:05d}")
            with contextlib.suppress(OSError):  # another was first, with the same
                scratch.rename(self.folder / f"{epoch:05d}")
                flush(self.folder)
            for path in self.folder.glob(f"{epoch:05d}.asked-*"):
                if int(path.name.split(".asked-")[1]) <= differences:
                    path.unlink(missing_ok=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        shrink(self.store, self.limit)

    def fetch(self, epoch: int, into: Path) -> bool:
        """Puts a state's files into `into`/00004, as links where that is possible; False if it is gone or damaged."""
        source = self.folder / f"{epoch:05d}"
        into.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=into, prefix="."))
        try:
            files = read_sealed(source / "about.json")["files"]
            for name in files:
                try:
                    os.link(source / name, scratch / name)
                except FileNotFoundError:
                    raise
                except OSError:  # another file system
                    shutil.copyfile(source / name, scratch / name)
            for name, known in files.items():
                if digest_of(scratch / name) != known:
                    raise DataError(f"{source / name}: damaged: its content does not match its sha256")
            os.utime(source)  # used just now
            scratch.rename(into / source.name)
            return True
        except FileNotFoundError:
            return False
        except DataError as error:
            self._drop_damaged(source, error)
            return False
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @staticmethod
    def _drop_damaged(state: Path, error: Exception) -> None:
        print(f"{error}; this shared state is removed, and trained again where it is wanted", file=sys.stderr)
        _remove(state)

    @contextmanager
    def claim(self, have: int, into: Path) -> Iterator["Claim"]:
        """Waits until the run, which has come to epoch `have` by itself, may go on, and brings what it need not train.

        It goes on with the state at its own end as soon as that is published. Else it holds the lock until it gets
        there, so that nobody trains the same beginning at the same time; it does without if the holder has passed
        that epoch unasked or gives no sign of life, or if the file system has no locks: that costs time, and changes
        no result.
        """
        _sweep(self.folder)
        if have >= self.end:
            yield Claim(None)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.switches:
            self.ask(self.end, self.needs)
        with (self.folder / ".lock").open("a+") as file:
            waiting = _Waiting(Path(file.name))
            while not (locked := _try_lock(file)):
                if self.states().get(self.end, -1) >= self.needs and self.fetch(self.end, into):
                    yield Claim(self.end)
                    return
                if locked is None or waiting.is_futile(self.end):
                    break
                time.sleep(0.1)
            claim = Claim(None, file if locked else None)
            for epoch, differences in sorted(self.states().items(), reverse=True):
                usable = epoch < self.end or (epoch == self.end and differences >= self.needs)
                if epoch > have and usable and self.fetch(epoch, into):
                    claim.start = epoch
                    break
            claim.reached(max(have, claim.start or 0))
            if claim.start == self.end:
                claim.release()
            try:
                yield claim
            finally:
                claim.release()


class Claim:
    """What a run got from its trunk: the epoch of the state that was fetched, and perhaps the lock.

    Who holds the lock touches it now and then, and writes into it how far it has come.
    """

    def __init__(self, start: int | None, lock: Any = None) -> None:
        self.start, self._lock = start, lock
        self._released = threading.Event()
        if lock is not None:
            threading.Thread(target=self._show_life, daemon=True).start()

    def _show_life(self) -> None:
        while not self._released.wait(PATIENCE / 6):
            with contextlib.suppress(OSError):
                os.utime(self._lock.name)

    def reached(self, epoch: int) -> None:
        """Tells those who wait that the states up to this epoch are published, as far as they were asked for."""
        if self._lock is not None:
            os.ftruncate(self._lock.fileno(), 0)
            os.write(self._lock.fileno(), b"%d" % epoch)

    def release(self) -> None:
        """Lets others train on: the run has come to its end of the trunk."""
        self._released.set()
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock = None


class _Waiting:
    """Watches the lock's holder; its sign of life by our own clock, since the holder's may differ."""

    def __init__(self, lock: Path) -> None:
        self.lock, self.seen, self.start = lock, 0, time.monotonic()
        self.since, self.told = self.start, False

    def is_futile(self, end: int) -> bool:
        """Whether the holder has passed epoch `end`, whose state is not there, or seems to be frozen."""
        if not self.told and time.monotonic() - self.start > 2:
            print("another process trains the beginning that this run shares; waiting for it", file=sys.stderr)
            self.told = True
        with contextlib.suppress(OSError, ValueError):
            beat = self.lock.stat().st_mtime_ns
            if beat != self.seen:
                self.seen, self.since = beat, time.monotonic()
            if int(self.lock.read_text()) >= end:
                return True
        if time.monotonic() - self.since < PATIENCE:
            return False
        print(f"no sign of life from it in {PATIENCE:.0f} s: going on without", file=sys.stderr)
        return True


def _try_lock(file: Any) -> bool | None:
    """Whether we hold the lock now; None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def fetched_state(folder: Path) -> Path | None:
    """What `Trunk.fetch` put into the run's folder for it to start from."""
    return next((folder / FETCHED).glob("[0-9]" * 5), None)


def size(folder: Path) -> int:
    """Bytes on disk under a folder, a file with several names counted once."""
    seen = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                about = os.lstat(os.path.join(root, name))
                seen[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(seen.values())


def shrink(store: Path, limit: float) -> int:
    """Removes the least recently used states until the store is within `limit` bytes; returns the bytes freed."""
    freed = 0
    states = [(path, path.stat().st_mtime_ns) for path in store.glob("*/" + "[0-9]" * 5) if path.exists()]
    sizes = {path: size(path) for path, _ in states}
    for path, _ in sorted(states, key=lambda state: state[1]):
        if sum(sizes.values()) - freed <= limit:
            break
        _remove(path)
        freed += sizes[path]
    return freed


def sweep_up(store: Path) -> int:
    """Removes what killed processes left half-done, and trunks without states; returns the bytes freed."""
    freed = 0
    for trunk in store.glob("*"):
        freed += _sweep(trunk)
        # A day, so that nobody can be about to use it.
        if not any(trunk.glob("[0-9]" * 5)) and time.time() - trunk.stat().st_mtime > 86_400:
            shutil.rmtree(trunk, ignore_errors=True)
    return freed


def _sweep(trunk: Path) -> int:
    """Removes what killed processes left half-done in a trunk; returns the bytes freed."""
    freed = 0
    for path in (*trunk.glob(".writing-*"), *trunk.glob(".gone-*")):
        made = re.fullmatch(r"\.writing-(.+)-(\d+)-[^-]+", path.name)
        living = made is not None and (made[1] != socket.gethostname() or Path(f"/proc/{made[2]}").exists())
        with contextlib.suppress(FileNotFoundError):  # another was first
            if not living or time.time() - path.stat().st_mtime > 86_400:
                freed += size(path)
                shutil.rmtree(path, ignore_errors=True)
    return freed


def _remove(state: Path) -> None:
    """Takes a state away at once; who has begun to read it finds its files gone, or has its own links."""
    gone = state.with_name(f".gone-{state.name}-{os.getpid()}-{time.monotonic_ns()}")
    with contextlib.suppress(OSError):
        state.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
