"""launcher=ray: a Ray task for each run."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...config.settle import Settings
from ...errors import ConfigError
from ..job import STOPPING
from .base import Ended, Launcher, RemoteJob


class Ray(Launcher):
    package, threads_setting = "ray", "num_cpus"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        gpus = settings["num_gpus"]
        if gpus > 1 and gpus % 1:
            raise ConfigError(f"launcher.num_gpus: expected a whole number >= 0, or a part of one, got {gpus}")

    def run(self, files: list[Path], gpus: int) -> Iterator[Ended]:
        ray = self._connected()
        resources = {key: self.settings[key] for key in ("num_cpus", "num_gpus", "resources")}
        task = ray.remote(_do).options(**resources, max_retries=0)
        waiting = {task.remote(file): file for file in files}
        while waiting:
            if self.stops_requested:
                (files[0].parent / STOPPING).touch()
            if self.stops_requested > 1:
                raise KeyboardInterrupt
            ended, _ = ray.wait(list(waiting), timeout=0.5)
            for one in ended:
                try:
                    status = ray.get(one)
                except ray.exceptions.RayError:  # its worker or its node is gone
                    status = None
                yield waiting.pop(one), status
        ray.shutdown()

    def _connected(self) -> Any:
        """The module ray, connected to the cluster; ConfigError if that cannot be."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        address = self.settings["address"]
        try:
            if found := re.fullmatch(r"(?:ray://)?([\w.-]+):(\d+)", address or ""):  # Ray itself would try for minutes
                socket.create_connection((found[1], int(found[2])), timeout=10).close()
            environment = self.settings["runtime_env"] or None
            ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:  # it has many
            where = "started here" if address is None else f"at {address}"
            raise ConfigError(f"launcher=ray: no Ray cluster {where}: {error}") from None
        return ray


def _do(file: Path) -> int:
    return RemoteJob(file)()
