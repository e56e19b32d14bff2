"""What all launchers share: a job as a process of its own, watched from its start to its end.

Wherever it runs, a job is `python -m tmbench.sweeps.job <sweep>/launch-00003.json`, with its output in
<sweep>/job-00003.log. It ends with 0 (there is a result), 1 (it failed and has said why) or 130 (it was stopped, and
goes on when it is asked for again). So a job that dies takes no other with it, and sees its own GPUs and threads only.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from ...config.settle import Settings
from ...config.table import keys
from ...errors import ConfigError
from ...training.ranks import python_path
from ...verbs import INTERRUPTED
from ..plan import Job, orders_of
from ..record import STOPPING, SWEEP, JobOrder, is_current, sweep_id
from ..show import varied_settings
from .watch import JobsAtWork, log_of, print_end

COMMAND = ["-m", "tmbench.sweeps.job"]
ENDED_ELSEWHERE = 60.0  # seconds after which a job that Slurm told to end, and did not kill, goes on
Ended = tuple[Path, int | None]  # a job's file, and its exit status; None if that cannot be known


class Launcher:
    """Where jobs run. A subclass starts them.

    Args:
        settings: of conf/launcher/<name>.yaml, which says what each must be.

    Raises:
        ConfigError: a setting is not what it must be, or a package is missing.
    """

    package = ""  # that must be installed; the extra is called like the launcher
    elsewhere = True  # whether jobs run on other machines

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stops_requested = 0
        name = settings["name"]
        if self.package and find_spec(self.package) is None:
            raise ConfigError(f"launcher={name}: needs the package {self.package}; pip install 'tmbench[{name}]'")
        for key, declared in keys("launcher", name).items():
            declared.checked(f"launcher.{key}", settings.get(key))

    def threads(self) -> int:
        """How many each job has."""
        raise NotImplementedError

    def run(self, files: list[Path], gpus: int) -> Iterator[Ended]:
        """Does the jobs in these files, each with so many GPUs, and yields them as they end."""
        raise NotImplementedError

    def launch(self, folder: Path, jobs: list[Job], search: list[str]) -> None:
        """Does these jobs of the sweep in `folder`, and prints of each how it ended.

        Args:
            folder: the sweep's.
            jobs: those that are due.
            search: the word for a person's own YAML files, if they have any.

        Raises:
            ConfigError: they cannot be done so.
            KeyboardInterrupt: some were stopped.
        """
        folder = folder.absolute()
        if any(job.cfg and job.cfg["trainer"]["num_nodes"] > 1 for job in jobs):
            raise ConfigError("launcher: each run is on one machine; start a run on several (num_nodes) by itself")
        environment = {"OMP_NUM_THREADS": str(self.threads()), "PYTHONPATH": python_path(), SWEEP: sweep_id()}
        orders = {order.number: order for order in orders_of(jobs, search)}
        files = {
            replace(orders[job.number], cwd=str(Path.cwd()), environment=environment).save(folder): job
            for job in different_trunks_first(jobs)
        }
        settings, varied, _ = varied_settings([(job.overrides, job.arm) for job in jobs])
        names = {
            job.number: f"job {job.number}  {' '.join(f'{key}={own.get(key)}' for key in varied)}"
            for job, own in zip(jobs, settings, strict=True)
        }
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{len(jobs)} jobs, threads of each: {self.threads()}; their output: {folder}/job-*.log")
        was_stopped = False
        with self._stopped_by_signals(), JobsAtWork(files, names, console) as at_work:
            for file, status in self.run(list(files), max((_gpus(job) for job in jobs), default=0)):
                at_work.remove(file)
                job = files[file]
                was_stopped |= print_end(job, names[job.number], file, status, self.stops_requested > 0, console)
        if was_stopped:
            raise KeyboardInterrupt

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Asks all jobs to stop where they can go on later; the second time, at once. For a signal handler."""
        self.stops_requested += 1
        if self.stops_requested == 1:
            print("stopping: the sweep started again goes on from here; Ctrl-C again does not wait", file=sys.stderr)


def different_trunks_first(jobs: list[Job]) -> list[Job]:
    """The jobs in an order that starts those of different trunks first: those of one wait for each other."""
    earlier = Counter[Any]()  # jobs by their trunk
    places = {}
    for job in jobs:
        trunk = job.trunk.folder if job.trunk else job.number
        places[job.number] = earlier[trunk]
        earlier[trunk] += 1
    return sorted(jobs, key=lambda job: places[job.number])  # stable


def _gpus(job: Job) -> int:
    trainer = job.cfg["trainer"] if job.cfg else {"accelerator": "cpu"}
    return int(trainer["devices"]) if trainer["accelerator"] == "cuda" else 0


def start(file: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """The process of the job in `file`. It stops if its standard input ends, which it does with this process."""
    order = JobOrder.load(file)
    with log_of(file).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *COMMAND, str(file)], stdin=subprocess.PIPE, stdout=log,
            stderr=subprocess.STDOUT, cwd=order.cwd, start_new_session=True,  # a terminal's Ctrl-C is not for it
            env={**os.environ, **order.environment, **(environment or {})},
        )  # fmt: skip


class RemoteJob:
    """A job as Slurm or Ray calls it on another machine: starts its process there, and returns its exit status."""

    def __init__(self, file: Path) -> None:
        self.file, self.folder = file, file.parent
        self.sweep = JobOrder.load(file).environment[SWEEP]
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        while not self.must_stop():
            with start(self.file) as self.process:
                while (status := self.process.poll()) is None:
                    if self.must_stop():
                        self.process.terminate()
                        return self.process.wait()
                    time.sleep(0.5)
            if status not in (INTERRUPTED, -signal.SIGTERM):
                return status
            # Slurm cancels this job, or takes its place away for a while: that ends us in a moment, or not at all.
            time.sleep(ENDED_ELSEWHERE)
        return INTERRUPTED

    def must_stop(self) -> bool:
        """Whether the sweep is to stop, or another sweep has its folder by now."""
        return (self.folder / STOPPING).exists() or not is_current(self.folder, self.sweep)
