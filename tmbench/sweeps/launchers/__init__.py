"""The launchers, which do the jobs of a sweep several at once: on this machine, on Slurm, or on a Ray cluster."""

import os
from importlib import import_module
from typing import TYPE_CHECKING

from ...errors import ConfigError

if TYPE_CHECKING:
    from ..plan import Job
    from .base import Launcher

CLASSES = {"local": "Local", "slurm": "Slurm", "ray": "Ray"}  # by launcher.name, which names the module as well


def launcher_of(jobs: "list[Job]") -> "Launcher | None":
    """What launches these jobs, which must all name the same launcher; None if they are done one after another.

    The threads of a job become this process's as well: the name of a trunk depends on their number.

    Raises:
        ConfigError: a setting of the launcher is not what it must be, or does not suit a job.
    """
    settings = jobs[0].raw["launcher"]
    name = settings["name"]
    if any(job.raw["launcher"] != settings for job in jobs):
        raise ConfigError("launcher: expected one for the whole sweep; a list is written in brackets: [0,1]")
    if name == "serial":
        return None
    if name not in CLASSES:
        raise ConfigError(f"launcher: expected one of serial, {', '.join(CLASSES)}, got {name!r}")
    launcher: Launcher = getattr(import_module(f".{name}", __name__), CLASSES[name])(settings)
    os.environ["OMP_NUM_THREADS"] = str(launcher.threads())
    return launcher
