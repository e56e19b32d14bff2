"""launcher=slurm: a Slurm job for each run, by submitit."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

from ...config.settle import Settings
from ...errors import ConfigError
from ...verbs import INTERRUPTED
from ..job import STOPPING, sweep_id
from .base import Ended, Launcher, RemoteJob

RESULT_DELAY = 3.0  # seconds in which the result of a job that has left Slurm's queue must have come
SUBMITITS = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")  # by its names, not by Slurm's


class Slurm(Launcher):
    package, threads_setting = "submitit", "cpus_per_task"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.cluster = settings["cluster"]
        if self.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise ConfigError("launcher=slurm: no sbatch and srun here; go to a login node, or say launcher=local")

    def run(self, files: list[Path], gpus: int) -> Iterator[Ended]:
        folder = files[0].parent
        waiting = self._submit(folder, files)
        absent: dict[Any, float] = {}  # from the queue since when
        while waiting:
            if self.stops_requested and not (folder / STOPPING).exists():
                (folder / STOPPING).touch()
                self._cancel(waiting, "--state=PENDING")
            if self.stops_requested > 1:
                self._cancel(waiting)
                raise KeyboardInterrupt
            queued = self._queued(waiting)
            for job, file in list(waiting.items()):
                if job.paths.result_pickle.exists():
                    status = job.result() if job.exception() is None else None
                elif queued is None or job.job_id in queued:
                    absent.pop(job, None)
                    continue
                elif time.monotonic() - absent.setdefault(job, time.monotonic()) < RESULT_DELAY:
                    continue
                else:
                    status = INTERRUPTED if self.stops_requested else None
                del waiting[job]
                yield file, status
            time.sleep(0.5)

    def _submit(self, folder: Path, files: list[Path]) -> dict[Any, Path]:
        """Slurm's jobs as submitit has them, with the order of each."""
        import submitit

        # A folder of this sweep alone: Slurm may give a job the number of an earlier one, whose result is old.
        own, again = folder / "submitit" / sweep_id(), self.settings["max_num_timeout"]
        executor = submitit.AutoExecutor(own, cluster=self.cluster, slurm_max_num_timeout=again)
        parameters = {
            key if key in SUBMITITS else f"slurm_{key}": value
            for key, value in self.settings.items()
            if value and key not in ("name", "cluster", "max_num_timeout")
        }
        try:
            executor.update_parameters(name="tmbench", **parameters)
            with executor.batch():
                jobs = [executor.submit(SlurmJob(file)) for file in files]
        except (AssertionError, NameError, TypeError, ValueError) as error:  # all submitit's, for a wrong setting
            raise ConfigError(f"launcher=slurm: {error}") from None
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError):
            raise ConfigError("launcher=slurm: sbatch refuses, see above") from None
        return dict(zip(jobs, files, strict=True))

    def _cancel(self, jobs: Iterable[Any], *which: str) -> None:
        if self.cluster == "slurm":
            subprocess.run(["scancel", *which, *(job.job_id for job in jobs)], check=False)

    def _queued(self, jobs: Iterable[Any]) -> set[str] | None:
        """The ids of the jobs that have not ended; None if the queue cannot be read now."""
        if self.cluster == "local":
            return {job.job_id for job in jobs if not job.done()}
        # Not sacct, as submitit does: many clusters keep no accounts.
        squeue = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
        done = subprocess.run(squeue, capture_output=True, text=True)
        return set(done.stdout.split()) if done.returncode == 0 else None


class SlurmJob(RemoteJob):
    def checkpoint(self) -> Any:
        """Stops the process, and returns what Slurm is to run when it queues the job again. Called by submitit."""
        import submitit

        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            # Not by Popen: we have interrupted __call__, which may hold its lock.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        later = copy(self)
        later.process = None
        return submitit.helpers.DelayedSubmission(later)
