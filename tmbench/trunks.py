"""Trunks: the epochs that runs have in common, as states that the first run to train them publishes.

A trunk is a folder `<runs>/.trunks/<digest of what the runs have in common>/` with

    00004/         the state after 4 epochs: state.ckpt, perhaps best.ckpt, and about.json with their digests
    00004.asked-2  a run requests it, with the last 2 differences of the weights
    .lock          held by whoever trains this trunk now, and touched while they live

Any number of processes work on it at once, and may be killed at any moment: a state comes and goes by one rename,
the lock falls with its holder, and what a state holds does not depend on who made it. Torch-free.
"""

import hashlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from .config.identity import before_switch, digest, effective_switch, identity, switches_by_curvature, trunk_end
from .config.machine import cpu_model, gpu_names
from .config.table import conf_dir
from .errors import DataError
from .files import abandoned_in, digest_of, flush, is_a_day_old, link, read_sealed, scratch_folder, write_sealed
from .folders import size
from .result import versions

STORE = ".trunks"  # the folder of all trunks, under runs_dir
FETCHED = ".trunk"  # under a run's folder
STATES = "[0-9]" * 5  # the names of published states, in a trunk's folder
_REQUEST = re.compile(r"(\d{5})\.asked-(\d{1,9})")  # a file's name: epoch and differences
GIB = 2**30
PATIENCE = 60.0  # seconds without a sign of life after which others no longer wait for the holder of a lock


def trunk_of(cfg: Mapping[Any, Any], data_digest: str) -> "Trunk | None":
    """The trunk of a settled configuration's run, used or not; None if it has none."""
    if (before := before_switch(cfg)) is None:
        return None
    facts = identity(cfg, data_digest)
    for key in ("switch_epoch", "curvature"):
        facts.pop(key, None)
    facts["optimizer"], differences = before
    by = _source(cfg["task"]["_target_"], cfg["task"]["data"])
    facts["made"] = {**versions(), "by": by, "on": _machine(cfg["trainer"]["accelerator"])}
    switch = effective_switch(cfg)
    return Trunk(
        Path(cfg["runs_dir"]) / STORE, digest(facts), trunk_end(cfg),
        switches=switch is not None, differences=0 if switch is None else differences, limit=cfg["trunk_gib"] * GIB,
        is_open=switches_by_curvature(cfg),
    )  # fmt: skip


def state_to_start_from(folder: Path) -> Path | None:
    """What `Trunk.fetch` put into the run's folder for it to start from."""
    return next((folder / FETCHED).glob(STATES), None)


@cache
def _source(*targets: str) -> str:
    """A digest of our own source and of the packages of these classes: changed code trains its own trunks."""
    files = set((conf_dir().parent / "tasks").rglob("*.py"))
    for target in ("tmbench.trunks.Trunk", *targets):  # all of tmbench, beside its tasks
        module = target.rpartition(".")[0]
        spec = find_spec(module.rpartition(".")[0] or module)
        if spec and spec.origin:
            path = Path(spec.origin)
            files |= set(path.parent.rglob("*.py")) if path.name == "__init__.py" else {path}
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()[:12]


@cache
def _machine(accelerator: str) -> list[str]:
    """What may round otherwise: the GPU's type; else the processor's and how many threads share its work."""
    if accelerator == "cuda":
        return gpu_names()
    threads = [f"{key}={os.environ.get(key)}" for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
    return [cpu_model(), str(len(os.sched_getaffinity(0))), *threads]


def _is_acquired(lock: FileLock) -> bool | None:
    """Whether we hold the lock now, whose holder's death releases it; None where the file system has no locks."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError:
        return None
    return True


class Reservation:
    """What a run got from its trunk: the epoch of the state that was fetched, and perhaps the lock.

    Its holder touches the lock's file now and then, and writes into it how many epochs it has trained.
    """

    def __init__(self, start: int | None, lock: FileLock | None = None) -> None:
        self.start, self.lock = start, lock
        self._released = threading.Event()
        if lock:
            threading.Thread(target=self._show_life, args=(Path(lock.lock_file),), daemon=True).start()

    def _show_life(self, path: Path) -> None:
        while not self._released.wait(PATIENCE / 6):
            with suppress(OSError):
                os.utime(path)

    def reached(self, epoch: int) -> None:
        """Tells those who wait that the requested states up to this epoch are published."""
        if self.lock:
            with suppress(OSError):  # they then wait for longer, which is no reason to stop
                Path(self.lock.lock_file).write_text(str(epoch))

    def release(self) -> None:
        """Lets others train on: the run has come to its end of the trunk."""
        self._released.set()
        if self.lock:
            self.lock.release()
            self.lock = None


class HolderWatch:
    """Watches a lock's holder from now on; its sign of life by our own clock, since the holder's may differ."""

    def __init__(self, lock: Path) -> None:
        self.lock, self.last_touch, self.announced = lock, 0, False
        self.start = self.alive_at = time.monotonic()

    def is_futile(self, end: int) -> bool:
        """Whether the holder has passed epoch `end`, whose state is not there, or seems to be frozen."""
        if not self.announced and time.monotonic() - self.start > 2:
            print("another process trains the epochs that this run shares with it; waiting", file=sys.stderr)
            self.announced = True
        with suppress(OSError, ValueError):
            touch = self.lock.stat().st_mtime_ns
            if touch != self.last_touch:
                self.last_touch, self.alive_at = touch, time.monotonic()
            if int(self.lock.read_text()) >= end:
                return True
        if time.monotonic() - self.alive_at < PATIENCE:
            return False
        print(f"it has not been heard from for {PATIENCE:.0f} s: continuing without it", file=sys.stderr)
        return True


@dataclass
class About:
    """The content of a published state's about.json."""

    differences: int  # of the weights, that the state holds
    files: dict[str, str]  # their sha256 by name


@dataclass(frozen=True)
class Trunk:
    """One run's view of its trunk."""

    store: Path  # the folder of all trunks
    name: str
    end: int  # the epoch at which the run leaves it: its switch, or its last epoch
    switches: bool = True  # whether that is a switch
    differences: int = 0  # how many of the last differences of the weights the run goes on from there
    limit: float = 10 * GIB  # bytes that the store may take
    is_open: bool = False  # the run finds its switch itself, and trains its trunk from the start

    @property
    def folder(self) -> Path:
        return self.store / self.name

    def request(self, epoch: int, differences: int) -> None:
        """Requests the state after so many epochs from whoever trains this trunk, unless it is published."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.states().get(epoch, -1) < differences:
            (self.folder / f"{epoch:05d}.asked-{differences}").touch()

    def requests(self) -> dict[int, int]:
        """The epochs whose states are requested, with the number of differences."""
        found = (_REQUEST.fullmatch(path.name) for path in self.folder.glob("*.asked-*"))
        return dict(sorted((int(each[1]), int(each[2])) for each in found if each))  # of an epoch's, the most

    def unmet_request(self, epoch: int) -> int | None:
        """How many differences the requested state after this epoch should hold; None if no run lacks it."""
        differences = self.requests().get(epoch)
        return None if differences is None or self.states().get(epoch, -1) >= differences else differences

    def states(self) -> dict[int, int]:
        """The epochs whose states are published, with the number of differences that each holds."""
        known = {}
        for path in self.folder.glob(STATES):
            try:
                known[int(path.name)] = read_sealed(path / "about.json", About).differences
            except (FileNotFoundError, DataError) as error:
                # Else it was being removed, or is not ours to read.
                if path.exists() and os.access(path, os.R_OK | os.X_OK):
                    self._drop_damaged(path, error)
        return known

    def publish(self, epoch: int, differences: int, write: Callable[[Path], None]) -> None:
        """Publishes what `write` writes into the folder it is given, unless an equal state is there.

        Raises:
            OSError: the files could not be written; nothing is published then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(self.folder) as name:
            write(scratch := Path(name))
            files = {path.name: digest_of(path) for path in sorted(scratch.iterdir())}
            for name in files:
                flush(scratch / name)
            write_sealed(scratch / "about.json", asdict(About(differences, files)))
            scratch.chmod(0o755)
            if self.states().get(epoch, differences) < differences:
                remove(self.folder / f"{epoch:05d}")
            with suppress(OSError):  # another was first, with the same
                scratch.rename(self.folder / f"{epoch:05d}")
                flush(self.folder)
            for path in self.folder.glob(f"{epoch:05d}.asked-*"):
                if (request := _REQUEST.fullmatch(path.name)) and int(request[2]) <= differences:
                    path.unlink(missing_ok=True)
        shrink(self.store, self.limit)

    def fetch(self, epoch: int, into: Path) -> bool:
        """Puts a state's files into `into`/00004, as links where that is possible; False if it is gone or damaged."""
        source = self.folder / f"{epoch:05d}"
        into.mkdir(parents=True, exist_ok=True)
        try:
            with TemporaryDirectory(dir=into, prefix=".", ignore_cleanup_errors=True) as scratch:
                files = read_sealed(source / "about.json", About).files
                if "state.ckpt" not in files or any("/" in name for name in files):
                    raise DataError(f"{source / 'about.json'}: expected names of files, state.ckpt among them")
                for name in files:
                    link(source / name, Path(scratch, name))
                for name, digest_then in files.items():
                    if digest_of(Path(scratch, name)) != digest_then:
                        raise DataError(f"{source / name}: damaged: its content does not match its sha256")
                os.utime(source)  # used just now
                os.rename(scratch, into / source.name)
            return True
        except FileNotFoundError:
            return False
        except DataError as error:
            self._drop_damaged(source, error)
            return False

    @staticmethod
    def _drop_damaged(state: Path, error: Exception) -> None:
        print(f"{error}; this shared state is removed, and trained again where it is needed", file=sys.stderr)
        remove(state)

    @contextmanager
    def reserve(self, trained: int, into: Path) -> Iterator[Reservation]:
        """Waits until the run, which has trained some epochs already, may continue; fetches what others have trained.

        The run starts from the state at its own end as soon as that is published. Else it holds the trunk's lock until
        it gets there, so that no two runs train the same epochs at the same time. It goes on without the lock if the
        holder has passed that epoch without publishing it, if the holder gives no sign of life, or if the file system
        has no locks: that costs time, and changes no result.
        """
        for path in leftovers_of(self.folder):
            shutil.rmtree(path, ignore_errors=True)
        if trained >= self.end or self.is_open:
            yield Reservation(None)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.switches:
            self.request(self.end, self.differences)
        lock, watch = FileLock(self.folder / ".lock", fallback_to_soft=False), None
        while not (locked := _is_acquired(lock)):
            if self.states().get(self.end, -1) >= self.differences and self.fetch(self.end, into):
                yield Reservation(self.end)
                return
            watch = watch or HolderWatch(self.folder / ".lock")
            if locked is None or watch.is_futile(self.end):
                break
            time.sleep(0.1)
        reservation = Reservation(None, lock if locked else None)
        try:
            reservation.start = self._fetch_newest(trained, into)
            reservation.reached(max(trained, reservation.start or 0))
            if reservation.start == self.end:
                reservation.release()
            yield reservation
        finally:
            reservation.release()

    def _fetch_newest(self, trained: int, into: Path) -> int | None:
        """Fetches the latest published state that the run can start from; its epoch, or None if there is none."""
        for epoch, differences in sorted(self.states().items(), reverse=True):
            usable = trained < epoch < self.end or (epoch == self.end and differences >= self.differences)
            if usable and self.fetch(epoch, into):
                return epoch
        return None


def shrink(store: Path, limit: float) -> list[Path]:
    """Removes the least recently used states until the store is within `limit` bytes; returns those it could not."""
    states = [(path.stat().st_mtime_ns, path, size(path)) for path in store.glob(f"*/{STATES}") if path.exists()]
    taken = sum(bytes_ for _, _, bytes_ in states)
    left = []
    for _, path, bytes_ in sorted(states):
        if taken <= limit:
            break
        remove(path)
        taken -= bytes_
        left += [path] if path.exists() else []
    return left


def leftovers(store: Path) -> Iterator[Path]:
    """What killed processes left half-done, and trunks without states."""
    for trunk in store.glob("*"):
        yield from leftovers_of(trunk)
        if not any(trunk.glob(STATES)) and is_a_day_old(trunk):  # so nobody can be about to use it
            yield trunk


def leftovers_of(trunk: Path) -> list[Path]:
    """What killed processes left half-done in a trunk."""
    return [*abandoned_in(trunk), *trunk.glob(".gone-*")]


def remove(state: Path) -> None:
    """Takes a state away at once; who has begun to read it finds its files gone, or has its own links."""
    gone = state.with_name(f".gone-{state.name}-{os.getpid()}-{time.monotonic_ns()}")
    with suppress(OSError):
        state.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
