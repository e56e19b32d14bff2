"""What all launchers share: a job as a process of its own, watched from its start to its end.

Wherever it runs, a job is `python -m tmbench.sweeps.job <sweep>/launch-00003.json`, with its output in
<sweep>/job-00003.log. It ends with 0 (there is a result), 1 (it failed and has said why) or 130 (it was stopped, and
goes on when it is asked for again); 124 is the status of one that was ended since it took longer than launcher.timeout.
So a job that dies or hangs takes no other with it, and sees its own GPUs and threads only.
"""

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ... import signals
from ...config.settle import Settings
from ...config.table import keys
from ...errors import ConfigError, DataError
from ...result import shown
from ...training.ranks import python_path
from ...verbs import ERROR, INTERRUPTED
from ..job import STOPPING, SWEEP, JobOrder, JobRecord, is_current, record_of, sweep_id
from ..live import JobTable
from ..plan import Job, orders_of, stacks_of

NAMES = ("local", "slurm", "ray")  # of launchers, of their modules, and with a capital letter of their classes
LOG = re.compile(r"job-(\d+)\.log")  # what log_of calls a file
COMMAND = ["-m", "tmbench.sweeps.job"]
LINES = 20  # of its output that a failed job shows
TIMED_OUT, GRACE = 124, 30.0  # status; seconds in which a job that is to end may come to a place where it can go on
ENDED_ELSEWHERE = 60.0  # seconds after which a job that Slurm told to end, and did not kill, goes on
STOPPED = "stopping the running jobs; Ctrl-C again ends them at once"
FAILED = "fail_fast: a job has failed, and the others stop where they can be resumed"
Ended = tuple[Path, int | None]  # a job's file, and its exit status; None if that cannot be known


class Launcher:
    """Where jobs run; a subclass starts them. `settings` are those of conf/launcher/<name>.yaml, which are checked."""

    package = ""  # that must be installed; the extra is called like the launcher
    elsewhere = True  # whether jobs run on other machines
    threads_setting = ""  # says how many threads each job has

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stops_requested = 0
        self.fail_fast = False
        self.table: JobTable  # while they are at work
        name = settings["name"]
        if self.package and find_spec(self.package) is None:
            raise ConfigError(f"launcher={name}: needs the package {self.package}; pip install 'tmbench[{name}]'")
        for key, declared in keys("launcher", name).items():
            declared.checked(f"launcher.{key}", settings.get(key))

    def threads(self) -> int:
        return int(self.settings[self.threads_setting])

    def at_once(self, gpus: int) -> int:
        """About how many jobs it does at once, each with so many GPUs."""
        return int(self.settings.get("array_parallelism") or 16)

    def run(self, files: list[Path], gpus: int) -> Iterator[Ended]:
        """Does the jobs in these files, each with so many GPUs, and yields them as they end."""
        raise NotImplementedError

    def launch(self, folder: Path, jobs: list[Job], fail_fast: bool = False) -> None:
        """Does these jobs of the sweep in `folder`, and prints of each how it ended.

        Args:
            fail_fast: once one has failed, the others are asked to stop.

        Raises ConfigError if they cannot be done so, and KeyboardInterrupt if some were stopped.
        """
        if any(job.cfg["trainer"]["num_nodes"] > 1 for job in jobs):
            raise ConfigError("launcher: each run is on one machine; start a run on several (num_nodes) by itself")
        folder, stacks = folder.absolute(), different_trunks_first(stacks_of(jobs))
        environment = {"OMP_NUM_THREADS": str(self.threads()), "PYTHONPATH": python_path(), SWEEP: sweep_id()}
        more: Settings = {"cwd": str(Path.cwd()), "environment": environment, "timeout": self.settings.get("timeout")}
        orders = [replace(order, **more) for order in orders_of(stacks)]
        files = {order.save(folder): stack for order, stack in zip(orders, stacks, strict=True)}
        gpus = max(t["devices"] if t["accelerator"] == "cuda" else 0 for t in (job.cfg["trainer"] for job in jobs))
        console = Console(stderr=True, force_jupyter=False, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{len(jobs)} jobs, threads of each: {self.threads()}; their output: {folder}/job-*.log")
        endings, self.table, self.fail_fast = Counter[str](), JobsAtWork(files, console), fail_fast
        with signals.listening(lambda *_: self.stop(STOPPED)), self.table:
            for file, status in self.run(list(files), gpus):
                endings.update(self.table.end(file, status, self.stops_requested > 0))
                if fail_fast and endings["failed"] and not self.stops_requested:
                    self.stop(FAILED)
        if endings["stopped"] + endings["not started"] + endings["interrupted"] and not (
            fail_fast and endings["failed"]
        ):
            raise KeyboardInterrupt

    def stop(self, why: str) -> None:
        """Asks all jobs to stop where they can go on later; the second time, at once. For a signal handler."""
        self.stops_requested += 1
        if self.stops_requested > 1:
            return
        if self.table.is_shown:  # which would wipe out what is printed
            self.table.note = why
        else:
            signals.say(why)


def different_trunks_first(stacks: list[list[Job]]) -> list[list[Job]]:
    """The stacks in an order that starts those of different trunks first: those of one wait for each other."""
    earlier = defaultdict[Any, Iterator[int]](count)  # stacks by the trunk of their first job
    return sorted(stacks, key=lambda jobs: next(earlier[jobs[0].trunk.folder if jobs[0].trunk else jobs[0].number]))


class JobProcess(subprocess.Popen[bytes]):
    """The process of the job in `file`. It stops if its standard input ends, which it does with this process."""

    def __init__(self, file: Path, environment: dict[str, str] | None = None) -> None:
        order = JobOrder.load(file)
        self.deadline = math.inf if order.timeout is None else time.monotonic() + 60 * order.timeout
        with log_of(file).open("ab") as log:
            super().__init__(
                [sys.executable, *COMMAND, str(file)], stdin=subprocess.PIPE, stdout=log,
                stderr=subprocess.STDOUT, cwd=order.cwd, start_new_session=True,  # a terminal's Ctrl-C is not for it
                env={**os.environ, **order.environment, **(environment or {})},
            )  # fmt: skip

    def status(self, must_stop: Callable[[], bool] = lambda: False) -> int:
        """Waits for its end, and ends it if it must stop or takes too long; returns its exit status."""
        stopping = False
        while time.monotonic() < self.deadline:
            with suppress(subprocess.TimeoutExpired):
                return self.wait(0.5)
            if not stopping and must_stop():
                self.terminate()
                stopping = True  # a second signal would not let it come to where it can go on later
        self.terminate()
        try:
            if self.wait(GRACE) == 0:  # it was at its end
                return 0
        except subprocess.TimeoutExpired:  # it does not hear; nor may what it has started
            os.killpg(self.pid, signal.SIGKILL)
        return TIMED_OUT


class RemoteJob:
    """A job as Slurm or Ray calls it on another machine: starts its process there, and returns its exit status."""

    def __init__(self, file: Path) -> None:
        self.file, self.folder = file, file.parent
        self.sweep = JobOrder.load(file).environment[SWEEP]
        self.process: JobProcess | None = None

    def __call__(self) -> int:
        while not self.must_stop():
            with JobProcess(self.file) as self.process:
                status = self.process.status(self.must_stop)
            if self.must_stop() or status not in (INTERRUPTED, -signal.SIGTERM):
                return status
            # Slurm cancels this job, or takes its place away for a while: that ends us in a moment, or not at all.
            time.sleep(ENDED_ELSEWHERE)
        return INTERRUPTED

    def must_stop(self) -> bool:
        """Whether the sweep is to stop, or another sweep has its folder by now."""
        return (self.folder / STOPPING).exists() or not is_current(self.folder, self.sweep)


class JobsAtWork(JobTable):
    """The table of a launcher's jobs, by the files of their orders, each of one job or of a stack."""

    def __init__(self, stacks: dict[Path, list[Job]], console: Console) -> None:
        self.stacks, folder = stacks, next(iter(stacks)).parent  # listed at once: that may be slow on a cluster
        together = {jobs[0].number: {job.number for job in jobs} for jobs in stacks.values()}

        def begun() -> set[int]:
            names = (found for name in os.listdir(folder) if (found := LOG.fullmatch(name)))
            return {number for found in names for number in together.get(int(found[1]), ())}

        super().__init__([job for jobs in stacks.values() for job in jobs], begun, console)

    def end(self, file: Path, status: int | None, stopping: bool) -> list[str]:
        """Prints how the jobs of a file ended, and records it where they themselves could not.

        Returns:
            For each `failed`, `stopped`, `not started`, or the status of its run.
        """
        return [self._end(file, job, status, stopping) for job in self.stacks[file]]

    def _end(self, file: Path, job: Job, status: int | None, stopping: bool) -> str:
        name = self.names[job.number]
        try:
            record = record_of(file.parent, job.number)
            if record is None and stopping and status in (INTERRUPTED, -signal.SIGTERM, -signal.SIGKILL):
                ending = "stopped" if log_of(file).exists() else "not started"
                self.ended(job.number, ending)
                if ending == "stopped":
                    self.console.print(f"{name}: stopped")
                return ending
            if record is None or status not in (0, ERROR, INTERRUPTED, None):
                end = _ending(status, job)
                record = JobRecord(job.number, job.overrides, job.arm, error=f"{end}; its output: {log_of(file)}")
                record.save(file.parent)
            result = record.result()
        except DataError as error:
            self.ended(job.number, "failed")
            self.console.print(Text(f"{name}: {error}", "red"))
            return "failed"
        if result is None:
            self.ended(job.number, "failed")
            self.console.print(Text(f"{name}: failed", "red"))  # style= would colour the table, too
            output = log_of(file).read_text(errors="replace").splitlines() if log_of(file).exists() else []
            for line in output[-LINES:]:
                self.console.print(f"  | {line}")
            return "failed"
        self.ended(job.number, result.status, result)
        if not self.is_shown:
            score = shown(result.metrics["last"].get(result.headline), result.headline)
            self.console.print(f"{name}: {result.status}, {result.metric} {score}")
        return result.status


def _ending(status: int | None, job: Job) -> str:
    """How a job ended that could not say so itself."""
    if status is None:
        return "cancelled, out of its time, or its machine is gone"
    if status == TIMED_OUT:
        limit = f"launcher.timeout={job.raw['launcher']['timeout']:g} minutes"
        return f"took longer than {limit} and was ended; the same command continues from its last epoch"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def log_of(file: Path) -> Path:
    """Where the output of the job whose order is in `file` goes."""
    return file.with_name(file.stem.replace("launch", "job") + ".log")


def launcher_of(jobs: list[Job]) -> Launcher | None:
    """What launches these jobs, which must all name the same launcher; None if they are done one after another.

    The threads of a job become this process's as well: the name of a trunk depends on their number.
    """
    settings = jobs[0].raw["launcher"]
    name = settings["name"]
    if any(job.raw["launcher"] != settings for job in jobs):
        raise ConfigError("launcher: expected one for the whole sweep; a list is written in brackets: [0,1]")
    if name == "serial":
        return None
    if name not in NAMES:
        raise ConfigError(f"launcher: expected one of serial, {', '.join(NAMES)}, got {name!r}")
    launcher: Launcher = getattr(import_module(f"tmbench.sweeps.launchers.{name}"), name.capitalize())(settings)
    os.environ["OMP_NUM_THREADS"] = str(launcher.threads())
    return launcher
