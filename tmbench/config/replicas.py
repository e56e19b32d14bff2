"""Whether runs that differ by seed and rate alone can be trained as one stack of tensors: what `replicas` comes to."""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from .table import measures_curvature, optimizer_says


def settle_replicas(cfg: dict[str, Any]) -> None:
    """Puts 1 in place of `replicas` where runs cannot be stacked, and says so; and of auto, which a sweep settles."""
    reason = None if cfg["replicas"] in (1, "auto") else why_alone(cfg)
    if reason:
        _say_once(f"replicas: {reason}; its runs are trained one at a time")
    if reason or cfg["replicas"] == "auto":
        cfg["replicas"] = 1


@cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


def why_alone(cfg: Mapping[str, Any]) -> str | None:
    """What in a configuration keeps its runs from being stacked; None if nothing is known to."""
    optimizer, trainer, task = cfg["optimizer"], cfg["trainer"], cfg["task"]
    if not optimizer_says(optimizer, "elementwise"):
        return f"optimizer={optimizer['name']} is not known to treat each element of a tensor alone"
    if measures_curvature(cfg):
        return f"curvature={cfg['curvature']['name']} looks at each network by itself"
    if "alone" in task:
        return f"task={task['name']}: {task['alone']}"
    if task.get("mup"):
        return "task.mup gives rates by the shapes of single tensors"
    for key, most in (("devices", 1), ("num_nodes", 1), ("accumulate", 1)):
        if trainer[key] != most:
            return f"trainer.{key}={trainer[key]}"
    if trainer["precision"] != "32":
        return f"precision={trainer['precision']}"
    return None
