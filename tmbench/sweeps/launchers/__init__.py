"""The jobs of a sweep several at once: by joblib on this machine, by submitit on Slurm, or on a Ray cluster.

Wherever it runs, a job is a process of its own, `python -m tmbench.sweeps.job <sweep>/launch-00003.json`, with its
output in <sweep>/job-00003.log. It ends with 0 (there is a result), 1 (it failed and has said why) or 130 (it was
stopped, and goes on when it is asked for again). So a job that dies takes no other with it, and sees its own GPUs and
threads only.
"""

import json
import logging
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ...config.machine import count_gpus
from ...config.settle import Settings
from ...errors import ConfigError, DataError
from ...files import write
from ...result import Result, epochs_done, shown
from ...run import python_path
from ..plan import Job, wanted
from ..record import MARK, add_job, is_current, job_of, mark
from ..show import told_apart

COMMAND = ["-m", "tmbench.sweeps.job"]
STOPPED = 130  # exit code of a job that goes on when it is asked for again
SPARED = 60.0  # seconds after which a job that Slurm told to end, and did not kill, goes on
STOPPING = "stopping"  # a file in the sweep's folder, once its jobs on other machines are to stop
SHOWN = 20  # lines of its output that a failed job shows
GONE_FOR = 3  # seconds in which the record of a job that has left Slurm's queue must have come
Ended = tuple[Path, int | None]  # a job's file, and its exit code; None if nobody can tell


class Launcher:
    """Where jobs run. A subclass says what it needs, and starts them.

    Args:
        settings: of conf/launcher/<name>.yaml.

    Raises:
        ConfigError: a setting is not what it must be, or a package is missing.
    """

    package: str  # that it needs; the extra is called like the launcher
    elsewhere = True  # on machines that are not this one

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.asked = 0  # how often to stop
        name = settings["name"]
        if find_spec(self.package) is None:
            raise ConfigError(f"launcher={name}: needs the package {self.package}; pip install 'tmbench[{name}]'")

    def threads(self) -> int:
        """How many each job has."""
        raise NotImplementedError

    def run(self, files: list[Path], gpus: int) -> Iterator[Ended]:
        """Does the jobs in these files, each with so many GPUs, and yields them as they end."""
        raise NotImplementedError

    def launch(self, folder: Path, jobs: list[Job], search: Iterable[str] = ()) -> None:
        """Does these jobs of the sweep in `folder`, and says of each how it ended.

        Args:
            folder: where what belongs to the sweep is written.
            jobs: those that are due.
            search: the word for a person's own YAML files, if they have any.

        Raises:
            ConfigError: they cannot be done so.
            KeyboardInterrupt: some were stopped.
        """
        folder = folder.absolute()
        if any(job.cfg and job.cfg["trainer"]["num_nodes"] > 1 for job in jobs):
            raise ConfigError("launcher: each run is on one machine; start a run on several (num_nodes) by itself")
        asks: dict[Path, set[tuple[int, int]]] = {}
        for trunk, epoch, needs in wanted(jobs):
            asks.setdefault(trunk.folder, set()).add((epoch, needs))
        files = {}
        for job in _apart(jobs):
            file = folder / f"launch-{job.number:05d}.json"
            facts = {
                "number": job.number, "arm": job.arm, "words": job.overrides, "search": list(search),
                "cwd": str(Path.cwd()),
                "cfg": {key: value for key, value in job.raw.items() if key != "launcher"},
                # By each job itself: on another machine the shared beginning may go by another name.
                "asks": sorted(asks.get(job.trunk.folder, ())) if job.trunk else [],
                "environment": {
                    "OMP_NUM_THREADS": str(self.threads()), "PYTHONPATH": python_path(), MARK: mark(),
                },
            }  # fmt: skip
            write(file, json.dumps(facts))
            files[file] = job
        settings, varied, _ = told_apart([(job.overrides, job.arm) for job in jobs])
        names = {
            job.number: f"job {job.number}  {' '.join(f'{key}={own.get(key)}' for key in varied)}"
            for job, own in zip(jobs, settings, strict=True)
        }
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{len(jobs)} jobs, threads of each: {self.threads()}; their output: {folder}/job-*.log")
        stopped = False
        stop = {number: signal.signal(number, lambda *_: self.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with Running(files, names, console) as running:
                for file, code in self.run(list(files), max((_gpus(job) for job in jobs), default=0)):
                    running.ended(file)
                    stopped |= _ended(files[file], names[files[file].number], file, code, self.asked > 0, console)
        finally:
            for number, handler in stop.items():
                signal.signal(number, handler)
        if stopped:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Wants all jobs to stop where they can go on later; asked twice, at once. For a signal handler."""
        self.asked += 1
        if self.asked == 1:
            print("stopping: the sweep started again goes on from here; Ctrl-C again does not wait", file=sys.stderr)


class Joblib(Launcher):
    package = "joblib"
    elsewhere = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        from joblib import cpu_count

        self.cores = cpu_count()
        for key in ("n_jobs", "threads"):
            _whole(settings, key, 1, "null")
        gpus = settings["gpus"]
        if gpus is not None and not (isinstance(gpus, list) and all(type(gpu) in (int, str) for gpu in gpus)):
            raise ConfigError(f"launcher.gpus: expected a list such as [0,1], or null, got {gpus!r}")
        self.processes: list[subprocess.Popen[bytes]] = []

    def threads(self) -> int:
        given = self.settings["threads"] or os.environ.get("OMP_NUM_THREADS", "")
        if str(given).isdecimal() and int(given) > 0:
            return int(given)
        return max(1, self.cores // (self.settings["n_jobs"] or self.cores))

    def run(self, files: list[Path], gpus: int) -> Iterator[Ended]:
        from joblib import Parallel, delayed

        places = self.places(gpus)
        n_jobs = self.n_jobs(places, len(files))
        free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for number in range(n_jobs):
            free.put(places[number % len(places)] if places else None)

        def one(file: Path) -> Ended:
            place = free.get()
            try:
                if self.asked:
                    return file, STOPPED
                with start(file, {} if place is None else {"CUDA_VISIBLE_DEVICES": place}) as process:
                    self.processes.append(process)
                    if self.asked:  # since we looked
                        process.terminate()
                    return file, process.wait()
            finally:
                free.put(place)

        # Threads are enough: they only wait. A pool of processes would end as a whole when one is killed.
        parallel = Parallel(n_jobs, backend="threading", return_as="generator_unordered", pre_dispatch="n_jobs")
        yield from parallel(delayed(one)(file) for file in files)

    def n_jobs(self, places: list[str], jobs: int) -> int:
        return min(self.settings["n_jobs"] or len(places) or max(1, self.cores // self.threads()), jobs)

    def places(self, size: int) -> list[str]:
        """What a job may have as its CUDA_VISIBLE_DEVICES: disjoint sets of `size` GPUs; none if it is not to care."""
        gpus = self.settings["gpus"]
        if gpus is None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            gpus = [] if not size else visible.split(",") if visible else list(range(count_gpus()))
        size = size or 1
        if gpus and size > len(gpus):
            raise ConfigError(f"launcher.gpus: a run needs {size}, got {gpus}")
        return [",".join(map(str, gpus[i : i + size])) for i in range(0, len(gpus) - size + 1, size)]

    def stop(self) -> None:
        super().stop()
        for process in list(self.processes):
            process.terminate() if self.asked == 1 else process.kill()


class Slurm(Launcher):
    package = "submitit"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.cluster = settings["cluster"]
        if self.cluster not in ("slurm", "local"):
            raise ConfigError(f"launcher.cluster: expected slurm or local, got {self.cluster!r}")
        if self.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise ConfigError("launcher=slurm: no sbatch and srun here; go to a login node, or say launcher=joblib")
        for key in ("timeout_min", "cpus_per_task", "array_parallelism", "signal_delay_s"):
            _whole(settings, key, 1)
        for key in ("gpus_per_node", "max_num_timeout"):
            _whole(settings, key, 0)

    def threads(self) -> int:
        return int(self.settings["cpus_per_task"])

    def run(self, files: list[Path], gpus: int) -> Iterator[Ended]:
        import submitit

        folder = files[0].parent
        own, slurm = {}, {}
        for key, value in self.settings.items():
            if key in ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node"):
                own[key] = value
            elif key not in ("name", "cluster", "max_num_timeout"):
                slurm[f"slurm_{key}"] = value
        executor = submitit.AutoExecutor(
            # Of this sweep alone: a job's number can be that of an earlier one, whose result is not this one's.
            folder / "submitit" / mark(), cluster=self.cluster,
            slurm_max_num_timeout=self.settings["max_num_timeout"],
        )  # fmt: skip
        given = {key: value for key, value in (own | slurm).items() if value}
        try:
            executor.update_parameters(name="tmbench", **given)
            with executor.batch():
                jobs = [executor.submit(OnNode(file)) for file in files]
        except (AssertionError, NameError, TypeError, ValueError) as error:  # all submitit's, for a wrong setting
            raise ConfigError(f"launcher=slurm: {error}") from None
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError):
            raise ConfigError("launcher=slurm: sbatch refuses, see above") from None
        waiting = dict(zip(jobs, files, strict=True))
        absent: dict[Any, float] = {}  # since when
        while waiting:
            if self.asked and not (folder / STOPPING).exists():
                (folder / STOPPING).touch()
                self._cancel(waiting, "--state=PENDING")
            if self.asked > 1:
                self._cancel(waiting)
                raise KeyboardInterrupt
            queued = self._queued(waiting)
            for job, file in list(waiting.items()):
                if job.paths.result_pickle.exists():
                    code = job.result() if job.exception() is None else None
                elif queued is None or job.job_id in queued:
                    absent.pop(job, None)
                    continue
                elif time.monotonic() - absent.setdefault(job, time.monotonic()) < GONE_FOR:
                    continue
                else:
                    code = STOPPED if self.asked else None
                del waiting[job]
                yield file, code
            time.sleep(0.5)

    def _cancel(self, jobs: Iterable[Any], *which: str) -> None:
        if self.cluster == "slurm":
            subprocess.run(["scancel", *which, *(job.job_id for job in jobs)], check=False)

    def _queued(self, jobs: Iterable[Any]) -> set[str] | None:
        """The ids of the jobs that have not ended; None if the queue cannot be asked now."""
        if self.cluster == "local":
            return {job.job_id for job in jobs if not job.done()}
        # Not sacct, as submitit does: many clusters keep no accounts.
        asked = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True
        )
        return set(asked.stdout.split()) if asked.returncode == 0 else None


class OnNode:
    """A job on another machine, as submitit and Ray call it there: its process, and its exit code."""

    def __init__(self, file: Path) -> None:
        self.file, self.stopping = file, file.parent / STOPPING
        self.sweep: str = json.loads(file.read_text())["environment"][MARK]
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        while not self.is_over():
            with start(self.file) as self.process:
                while (code := self.process.poll()) is None:
                    if self.is_over():
                        self.process.terminate()
                        return self.process.wait()
                    time.sleep(0.5)
            if code not in (STOPPED, -signal.SIGTERM):
                return code
            # Slurm cancels this job, or takes its place away for a while: that ends us in a moment, or not at all.
            time.sleep(SPARED)
        return STOPPED

    def is_over(self) -> bool:
        """Whether the sweep is to stop, or its folder has become another's."""
        return self.stopping.exists() or not is_current(self.file.parent, self.sweep)

    def checkpoint(self) -> Any:
        """Stops the process, and says what is to be done when the job runs again: the same. Called by submitit."""
        import submitit

        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            # Not by Popen: we have interrupted __call__, which may hold its lock.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        later = copy(self)
        later.process = None
        return submitit.helpers.DelayedSubmission(later)


class Ray(Launcher):
    package = "ray"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        _whole(settings, "num_cpus", 1)
        gpus = settings["num_gpus"]
        if type(gpus) not in (int, float) or gpus < 0 or (gpus > 1 and gpus % 1):
            raise ConfigError(f"launcher.num_gpus: expected a whole number >= 0, or a part of one, got {gpus!r}")

    def threads(self) -> int:
        return int(self.settings["num_cpus"])

    def run(self, files: list[Path], gpus: int) -> Iterator[Ended]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        own = self.settings
        try:
            # Ray itself would try for minutes.
            if found := re.fullmatch(r"(?:ray://)?([\w.-]+):(\d+)", own["address"] or ""):
                socket.create_connection((found[1], int(found[2])), timeout=10).close()
            ray.init(
                own["address"], runtime_env=own["runtime_env"] or None, log_to_driver=False,
                logging_level=logging.WARNING,
            )  # fmt: skip
        except Exception as error:  # it has many
            where = "started here" if own["address"] is None else f"at {own['address']}"
            raise ConfigError(f"launcher=ray: no Ray cluster {where}: {error}") from None
        needs = {key: own[key] for key in ("num_cpus", "num_gpus", "resources")}
        task = ray.remote(_on_ray).options(**needs, max_retries=0)
        waiting = {task.remote(file): file for file in files}
        while waiting:
            if self.asked:
                (files[0].parent / STOPPING).touch()
            if self.asked > 1:
                raise KeyboardInterrupt
            ended, _ = ray.wait(list(waiting), timeout=0.5)
            for one in ended:
                try:
                    code = ray.get(one)
                except ray.exceptions.RayError:  # its worker or its node is gone
                    code = None
                yield waiting.pop(one), code
        ray.shutdown()


def _on_ray(file: Path) -> int:
    return OnNode(file)()


LAUNCHERS: dict[str, type[Launcher]] = {"joblib": Joblib, "slurm": Slurm, "ray": Ray}


def launcher_of(jobs: list[Job]) -> Launcher | None:
    """What launches these jobs, of whom all say the same; None if one does them after another.

    The threads of a job become this process's too, so that it knows the shared beginnings by the same names.

    Raises:
        ConfigError: a setting of the launcher is not what it must be, or does not suit a job.
    """
    settings = jobs[0].raw["launcher"]
    if any(job.raw["launcher"] != settings for job in jobs):
        raise ConfigError("launcher: expected one for the whole sweep; a list is written in brackets: [0,1]")
    if settings["name"] == "serial":
        return None
    if settings["name"] not in LAUNCHERS:
        raise ConfigError(f"launcher: expected one of serial, {', '.join(LAUNCHERS)}, got {settings['name']!r}")
    found = LAUNCHERS[settings["name"]](settings)
    os.environ["OMP_NUM_THREADS"] = str(found.threads())
    return found


def _apart(jobs: list[Job]) -> list[Job]:
    """The jobs in an order that starts different trunks first: those of one wait for each other."""
    earlier: dict[Any, int] = {}
    ranks = {}
    for job in jobs:
        trunk = job.trunk.folder if job.trunk else job.number
        ranks[job.number] = earlier[trunk] = earlier.get(trunk, -1) + 1
    return sorted(jobs, key=lambda job: ranks[job.number])  # stable


def _gpus(job: Job) -> int:
    trainer = job.cfg["trainer"] if job.cfg else {"accelerator": "cpu"}
    return int(trainer["devices"]) if trainer["accelerator"] == "cuda" else 0


def _ended(job: Job, name: str, file: Path, code: int | None, stopping: bool, console: Console) -> bool:
    """Says how a job ended, and notes it where the job could not; returns whether it was stopped."""
    log = _log(file)
    told = job_of(file.parent, job.number)
    if told is None and stopping and code in (STOPPED, -signal.SIGTERM):
        console.print(f"{name}: not begun")
        return True
    if told is None or code not in (0, 1, STOPPED, None):
        if code is None:
            how = "cancelled, or its machine is gone"
        else:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        told = {"error": f"{how}; its output: {log}", "folder": None}
        add_job(file.parent, job.number, job.overrides, job.arm, error=told["error"])
    if told["error"]:
        console.print(f"{name}: failed", style="red")
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        for line in lines[-SHOWN:]:
            console.print(f"  | {line}")
        return False
    try:
        result = Result.load(Path(told["folder"]))
    except DataError as error:
        console.print(f"{name}: {error}", style="red")
        return False
    assert result is not None
    score = shown(result.metrics["last"].get(result.headline), result.headline)
    console.print(f"{name}: {result.status}, {result.headline.removeprefix('test/')} {score}")
    return result.status == "interrupted"


class Running(Progress):
    """A line for each job that has begun and not ended, on a terminal: how many of its epochs are done."""

    def __init__(self, files: dict[Path, Job], names: dict[int, str], console: Console) -> None:
        self.lines: dict[Path, tuple[TaskID, Path]] = {}
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(24),
            TextColumn("epoch {task.completed}/{task.total}"), TimeElapsedColumn(),
            console=console, refresh_per_second=1, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        for file, job in files.items():
            if job.folder and job.cfg:
                line = self.add_task(names[job.number], start=False, total=job.cfg["epochs"], visible=False)
                self.lines[file] = line, job.folder

    def get_renderables(self) -> Iterable[Any]:
        for file, (line, folder) in list(self.lines.items()):
            if _log(file).exists():
                self.start_task(line)
                self.update(line, completed=epochs_done(folder), visible=True)
        return super().get_renderables()

    def ended(self, file: Path) -> None:
        if file in self.lines:
            self.remove_task(self.lines.pop(file)[0])


def _log(file: Path) -> Path:
    return file.with_name(file.stem.replace("launch", "job") + ".log")


def start(file: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """The process of the job in `file`. It stops if its standard input ends, which it does with this process."""
    facts = json.loads(file.read_text())
    with _log(file).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *COMMAND, str(file)], stdin=subprocess.PIPE, stdout=log,
            stderr=subprocess.STDOUT, cwd=facts["cwd"], start_new_session=True,  # a terminal's Ctrl-C is not for it
            env={**os.environ, **facts["environment"], **(environment or {})},
        )  # fmt: skip


def _whole(settings: Settings, key: str, least: int, other: str = "") -> None:
    value = settings[key]
    if not (type(value) is int and value >= least) and not (other and value is None):
        expected = f"a whole number >= {least}" + (f", or {other}" if other else "")
        raise ConfigError(f"launcher.{key}: expected {expected}, got {value!r}")
