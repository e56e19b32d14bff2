"""launcher=local: several jobs at once on this machine, one a GPU or as many as its cores carry."""

import os
import queue
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from math import ceil
from pathlib import Path

from ...config.machine import count_gpus
from ...config.settle import Settings
from ...config.values import is_whole
from ...errors import ConfigError
from ...verbs import INTERRUPTED
from .base import Ended, JobProcess, Launcher


class Local(Launcher):
    elsewhere = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        if not all(isinstance(gpu, str) or is_whole(gpu, 0) for gpu in settings["gpus"] or []):
            raise ConfigError(f"launcher.gpus: expected GPUs as CUDA_VISIBLE_DEVICES has them, got {settings['gpus']}")
        self.cores = available_cores()
        self.processes: list[JobProcess] = []
        self.has_failed = False

    def threads(self) -> int:
        given = str(self.settings["threads"] or os.environ.get("OMP_NUM_THREADS", ""))
        if given.isdecimal() and int(given) > 0:
            return int(given)
        return max(1, self.cores // (self.settings["n_jobs"] or self.cores))

    def at_once(self, gpus: int) -> int:
        return self.jobs_at_once(len(self.gpu_sets(gpus)), sys.maxsize)

    def run(self, files: list[Path], gpus: int) -> Iterator[Ended]:
        sets = self.gpu_sets(gpus)
        at_once = self.jobs_at_once(len(sets), len(files))
        free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for number in range(at_once):
            free.put(sets[number % len(sets)] if sets else None)

        def one(file: Path) -> Ended:
            visible = free.get()
            try:
                if self.stops_requested or (self.fail_fast and self.has_failed):
                    return file, INTERRUPTED
                with JobProcess(file, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) as process:
                    self.processes.append(process)
                    if self.stops_requested:  # since we looked
                        process.terminate()
                    status = process.status()
                    self.has_failed |= status not in (0, INTERRUPTED)
                    return file, status
            finally:
                free.put(visible)

        pool = ThreadPoolExecutor(at_once)  # threads are enough: they only wait
        try:
            for ended in as_completed([pool.submit(one, file) for file in files]):
                yield ended.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in self.processes:  # those left, if the sweep itself has failed
                process.terminate()

    def jobs_at_once(self, gpu_sets: int, jobs: int) -> int:
        return min(self.settings["n_jobs"] or gpu_sets or max(1, self.cores // self.threads()), jobs)

    def gpu_sets(self, size: int) -> list[str]:
        """Disjoint sets of `size` GPUs, each as a job's CUDA_VISIBLE_DEVICES; none if jobs train on CPUs."""
        gpus = self.settings["gpus"]
        if gpus is None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            gpus = [] if not size else visible.split(",") if visible else list(range(count_gpus()))
        size = size or 1
        if gpus and size > len(gpus):
            raise ConfigError(f"launcher.gpus: a run needs {size}, got {gpus}")
        return [",".join(map(str, gpus[i : i + size])) for i in range(0, len(gpus) - size + 1, size)]

    def stop(self, why: str) -> None:
        super().stop(why)
        for process in list(self.processes):
            process.terminate() if self.stops_requested == 1 else process.kill()


def available_cores() -> int:
    """How many cores this process may use: by its affinity, and by its container's limit (cgroup v2)."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no such limit, or `max`
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, ceil(int(quota) / int(period)))
    return max(1, cores)
