"""What replicas=auto comes to in a sweep: as many as were measured to be the fastest here, and remembered."""

import json
import os
import sys
from collections.abc import Sequence
from math import ceil
from pathlib import Path

from omegaconf import OmegaConf

from ..config.identity import digest
from ..config.machine import cpu_model, gpu_names
from ..config.settle import Settings, settled
from ..errors import CannotStackError, ConfigError, DataError
from ..files import folder_for, read_sealed, write_sealed
from ..plan import planned
from .plan import Job

CANDIDATES = (4, 8, 16, 32)
WORTH = 0.95  # of the time of one at a time, at most
STORE = ".replicas"  # under runs_dir: what was measured


def settle_auto(jobs: Sequence[Job], is_elsewhere: bool) -> None:
    """Puts a number in place of replicas=auto in the jobs of a sweep.

    Args:
        is_elsewhere: whether they are done on other machines.
    """
    groups = dict[str, list[Job]]()
    for job in jobs:
        if job.raw.get("replicas") == "auto":
            facts = {key: value for key, value in job.raw.items() if key != "seed"}
            groups.setdefault(json.dumps(facts, sort_keys=True, default=str), []).append(job)
    for group in groups.values():
        seeds = len({job.raw["seed"] for job in group})
        cfg = settled(group[0].raw | {"replicas": 2}) if seeds > 1 else {"replicas": 1}
        if cfg["replicas"] > 1 and is_elsewhere:
            raise ConfigError("replicas=auto: measures on this machine, and the jobs run on others; say a number")
        slots = _fastest(cfg, seeds) if cfg["replicas"] > 1 else 1
        for job in group:
            job.raw = job.raw | {"replicas": slots}
            job.overrides = [f"replicas={slots}" if w == "replicas=auto" else w for w in job.overrides]


def _fastest(cfg: Settings, seeds: int) -> int:
    """The number of slots with which so many seeds take the least time; 1 unless that is less than one at a time."""
    facts = {key: cfg[key] for key in ("task", "data", "optimizer", "batch_size", "trainer")}
    facts["on"] = [cpu_model(), gpu_names(), os.environ.get("OMP_NUM_THREADS")]
    file = folder_for("runs_dir", Path(cfg["runs_dir"]) / STORE) / f"{digest(facts)}.json"
    try:
        seconds = {int(k): v for k, v in read_sealed(file, dict[str, float]).items()}
    except (FileNotFoundError, DataError):  # damaged: measured again
        seconds = {}
    if wanted := [k for k in (1, *CANDIDATES) if k <= seeds and k not in seconds]:
        seconds |= _measured(cfg, wanted)
        write_sealed(file, {str(k): v for k, v in seconds.items()})
    cost = {k: ceil(seeds / k) * s for k, s in seconds.items() if k <= seeds and s > 0}
    best = min(cost, key=lambda k: cost[k] * (WORTH if k == 1 else 1))
    told = ", ".join(f"{k}: {1000 * s / k:.2f}" for k, s in sorted(seconds.items()) if s > 0)
    print(f"replicas=auto: {best} for {seeds} seeds (ms of a step and seed, by replicas: {told})", file=sys.stderr)
    return best


def _measured(cfg: Settings, wanted: list[int]) -> dict[int, float]:
    """Seconds of a step of so many slots; 0 for those that cannot be."""
    from ..training.capacity import seconds_a_step

    found = dict[int, float]()
    for slots in wanted:
        runs = [OmegaConf.create(cfg | {"replicas": slots, "seed": seed}) for seed in range(slots)]
        try:
            found[slots] = seconds_a_step([planned(run) for run in runs])
        except CannotStackError as error:
            print(f"replicas=auto: {error.why}", file=sys.stderr)
            return found | dict.fromkeys(wanted[wanted.index(slots) :], 0.0)
    return found
