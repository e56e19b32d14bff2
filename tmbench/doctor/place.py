"""What is around a run: packages, launchers, Weights & Biases, disks, shared memory, threads, data sets."""

import netrc
import os
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.version import Version

from ..config.table import conf_dir
from ..data.__main__ import data_dir_of, targets_of, what_is_here
from ..errors import UsageError
from ..files import locked, write
from ..verbs import Values
from . import Check, Finding

PATIENCE = 5  # seconds, for another program or a server
LITTLE, TOO_LITTLE = 5 * 2**30, 2**28  # bytes free on a disk
SHARED = 2**30  # bytes of shared memory that workers with batches of pictures want
FOR_DEVELOPERS = ("test", "dev", "docs")
CHANGE_NUMBERS = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip


def checks(values: Values) -> dict[str, Check]:
    return {
        "versions": versions, "extras": partial(extras, values["extras"]), "slurm": slurm, "ray": ray, "wandb": wandb,
        "runs_dir": partial(runs_dir, Path(values["runs_dir"])), "data_dir": partial(data_dir, values),
        "shm": shared_memory, "threads": threads, "data": partial(data, values),
    }  # fmt: skip


def _requirements() -> list[Requirement]:
    return [Requirement(line) for line in requires("tmbench") or ()]


def _installed(name: str) -> Version | None:
    try:
        return Version(version(name))
    except PackageNotFoundError:
        return None


def _lacks(requirement: Requirement) -> str:
    """What is wrong with a package that is needed; empty if nothing."""
    here = _installed(requirement.name)
    if here is None:
        return f"{requirement.name} is absent"
    fits = requirement.specifier.contains(here, prereleases=True)
    return "" if fits else f"{requirement.name} {here} is not {requirement.specifier}"


def versions() -> Finding:
    """The packages that every run needs, beside the versions that this version of tmbench was tested with."""
    try:
        needed = [r for r in _requirements() if r.marker is None or r.marker.evaluate({"extra": ""})]
    except PackageNotFoundError:
        return Finding(
            "versions", "yellow", "tmbench is not installed as a package", "pip install -e . in its checkout"
        )
    if lacking := [_lacks(r) for r in needed if _lacks(r)]:
        return Finding("versions", "red", "; ".join(lacking), "pip install --upgrade tmbench")
    pins = conf_dir().parent / "constraints.txt"
    tested = {r.name: str(r.specifier).removeprefix("==") for r in map(Requirement, pins.read_text().split())}
    newer = []
    for name in (r.name for r in needed):
        here, pin = _installed(name), tested.get(name) or tested.get(name.replace("-", "_"))
        if here and pin and here.release[:2] > Version(pin).release[:2]:
            newer.append(f"{name} {here} (tested: {pin})")
    if newer:
        remedy = "pip install tmbench -c constraints.txt; or tmbench doctor train=true tries these"
        return Finding("versions", "yellow", f"newer than tested: {', '.join(newer)}", remedy)
    return Finding("versions", "green", f"{len(needed)} packages, none older than needed or newer than tested")


def extras(wanted: str | None) -> Finding:
    """Which optional parts are installed; one that is absent is red if it was asked for."""
    by_extra: dict[str, list[Requirement]] = {}
    for requirement in _requirements():
        for extra in re.findall(r"extra == ['\"](\w+)['\"]", str(requirement.marker)):
            if extra not in FOR_DEVELOPERS:
                by_extra.setdefault(extra, []).append(requirement)
    asked = [] if wanted is None else wanted.split(",")
    if unknown := set(asked) - by_extra.keys():
        raise UsageError(f"extras: expected names among {', '.join(by_extra)}, got {', '.join(sorted(unknown))}")
    lacks = {extra: [_lacks(r) for r in needed if _lacks(r)] for extra, needed in sorted(by_extra.items())}
    absent = [extra for extra in lacks if lacks[extra]]
    here = f"here: {', '.join(extra for extra in lacks if not lacks[extra]) or 'none'}"
    if not absent:
        return Finding("extras", "green", here)
    found = f"{here}; not here: {', '.join(f'{extra} ({lacks[extra][0]})' for extra in absent)}"
    needed_now = [extra for extra in asked if extra in absent]
    line = f"pip install 'tmbench[{','.join(needed_now or absent)}]'"
    if needed_now:
        return Finding("extras", "red", found, line)
    return Finding("extras", "yellow", found, f"if you want them: {line}")


def slurm() -> Finding:
    has_package = find_spec("submitit") is not None
    if shutil.which("sbatch") is None:
        return Finding("slurm", "green", "no sbatch here: launcher=slurm is not for this machine")
    try:
        done = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("slurm", "yellow", f"sbatch fails: {error}", "ask who runs the cluster")
    if not has_package:
        found = f"{done.stdout.strip()}, but submitit is absent"
        return Finding("slurm", "yellow", found, "for launcher=slurm: pip install 'tmbench[slurm]'")
    return Finding("slurm", "green", done.stdout.strip())


def ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    where = f"RAY_ADDRESS={address}" if address else "no RAY_ADDRESS: launcher=ray starts one here"
    if find_spec("ray") is None:
        remedy = "for launcher=ray: pip install 'tmbench[ray]'"
        return Finding("ray", "yellow" if address else "green", "Ray is not installed", remedy)
    return Finding("ray", "green", f"Ray {version('ray')}; {where}")


def wandb() -> Finding:
    """Whether logger=wandb would send its runs, which is asked for a few seconds at most."""
    if find_spec("wandb") is None:
        return Finding("wandb", "red", "wandb is not installed", "pip install wandb")
    mode, base = os.environ.get("WANDB_MODE"), os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if mode in ("offline", "disabled", "dryrun"):
        return Finding("wandb", "green", f"WANDB_MODE={mode}: nothing is sent")
    has_account = bool(os.environ.get("WANDB_API_KEY")) or _in_netrc(urlsplit(base).hostname or "")
    answer = _answer_of(base)
    found = f"{'an' if has_account else 'no'} account; mode {mode or 'online'}; {base} {answer}"
    if not has_account:
        return Finding("wandb", "yellow", f"{found}; logger=wandb stays offline", "to send runs: wandb login")
    if answer != "answers":
        remedy = "check network and proxy; WANDB_MODE=offline keeps runs for `wandb sync`"
        return Finding("wandb", "yellow", f"{found}; logger=wandb falls back to offline", remedy)
    return Finding("wandb", "green", found)


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answer_of(url: str) -> str:
    """`answers`, or why not. In a thread of its own, since looking up a name may take longer than any timeout."""
    answer = [f"gave no answer in {PATIENCE} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PATIENCE).close()
            answer[0] = "answers"
        except urllib.error.HTTPError:
            answer[0] = "answers"  # with a refusal, but it is there
        except (OSError, ValueError) as error:
            answer[0] = f"cannot be reached ({getattr(error, 'reason', error)})"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answer[0]


def _existing(path: Path) -> Path:
    """The folder, or the one above that it would be made in."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def runs_dir(path: Path) -> Finding:
    """Whether runs can be written: a file, its rename, and a lock that a second holder does not get."""
    try:
        if path.exists() and not path.is_dir():
            return Finding("runs_dir", "red", f"{path}: a file, not a folder", "name a folder: runs_dir=DIR")
        here = _existing(path)
        found, free = _free_words(path, here), shutil.disk_usage(here).free
        if not _locks_hold(here):
            remedy = "two processes could damage a run; name a runs_dir on another file system"
            return Finding("runs_dir", "red", f"{found}; file locks do not hold there", remedy)
    except OSError as error:
        remedy = f"give yourself the right to write to {path}, or name another folder: runs_dir=DIR"
        return Finding("runs_dir", "red", f"{path}: cannot be written to ({error.strerror or error})", remedy)
    return _by_space("runs_dir", found, free)


def _free_words(path: Path, here: Path) -> str:
    return f"{path}: {shutil.disk_usage(here).free / 2**30:.1f} GiB free"


def _locks_hold(here: Path) -> bool:
    """Whether a second holder does not get a lock in a new folder here; OSError if nothing can be written."""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=here) as folder:
        write(Path(folder) / "file", "whole")
        with locked(Path(folder)):
            try:
                with locked(Path(folder), wait=False):
                    return False
            except BlockingIOError:
                return True


def _by_space(name: str, found: str, free: int) -> Finding:
    if free < LITTLE:
        return Finding(
            name, "red" if free < TOO_LITTLE else "yellow", found, f"free some space, or name another {name}"
        )
    return Finding(name, "green", found)


def data_dir(values: Values) -> Finding:
    path = data_dir_of(values)
    try:
        here, is_there = _existing(path), path.is_dir()
    except OSError:  # a folder above it
        here, is_there = path, True
    if not is_there:
        free = _free_words(path, here).partition(": ")[2]
        return Finding("data_dir", "green", f"{path} is not there: data=tiny needs none; {free}")
    if not os.access(path, os.R_OK | os.X_OK):
        return Finding("data_dir", "red", f"{path}: cannot be read", "give yourself the right to, or data_dir=DIR")
    found = _free_words(path, here)
    if not os.access(path, os.W_OK):
        return Finding("data_dir", "green", f"{found}; may be read only: runs read it, `tmbench data get` needs more")
    return _by_space("data_dir", found, shutil.disk_usage(here).free)


def shared_memory() -> Finding:
    """/dev/shm, through which the workers of a loader hand over their batches."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("shm", "green", "no /dev/shm on this system")
    usage = shutil.disk_usage(path)
    found = f"{usage.free / 2**20:,.0f} of {usage.total / 2**20:,.0f} MiB free in /dev/shm"
    if usage.free < SHARED:
        remedy = "workers may die of a bus error: start the container with --shm-size=8g, or trainer.num_workers=0"
        return Finding("shm", "yellow", found, remedy)
    return Finding("shm", "green", found)


def threads() -> Finding:
    """How many threads compute: their number rounds the numbers, so runs that are compared need the same."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count, asked = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    found = f"torch uses {count} threads on {cores} cores; OMP_NUM_THREADS is {asked or 'not set'}"
    if set_here := [f"{name}={os.environ[name]}" for name in CHANGE_NUMBERS if name in os.environ]:
        found += f"; set, and they change the numbers: {', '.join(set_here)}"
    if asked is None:
        remedy = f"numbers depend on the number of threads: export OMP_NUM_THREADS={count}, the same on every machine"
        return Finding("threads", "yellow", found, remedy)
    if count > cores:
        return Finding("threads", "yellow", found, f"more threads than cores are slow: export OMP_NUM_THREADS={cores}")
    return Finding("threads", "green", found)


def data(values: Values) -> Iterator[Finding]:
    """What is here of each data set, as `tmbench data list` says it: names, counts, digests of small files."""
    labels: dict[str, list[str]] = {"full": [], "subset": [], "absent": []}
    words = {"here": "full", "part": "subset", "missing": "absent"}
    for target in targets_of(values, []):
        if target.entry is not None:
            labels[words[what_is_here(target.entry, target.dataset.root)[0]]].append(target.name)
    found = "; ".join(f"{label}: {', '.join(names)}" for label, names in labels.items() if names)
    if labels["subset"]:
        remedy = f"tmbench data verify {' '.join(labels['subset'])} says what differs"
        yield Finding("data", "yellow", found, remedy)
    else:
        yield Finding("data", "green", found, "tmbench data get NAME" if labels["absent"] else "")
