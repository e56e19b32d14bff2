"""Whether a task's embedding tables are stepped by the rows that a batch reads: what `task.sparse` comes to."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .table import optimizer_says


def settle_sparse(cfg: dict[str, Any]) -> None:
    """Puts true or false in place of task.sparse=auto, for the tasks that have the key.

    Raises:
        ConfigError: it is true, and something in the run needs the whole table in every step.
    """
    asked = cfg["task"].get("sparse")
    if asked not in ("auto", True):
        return
    reason = why_dense(cfg)
    if asked is True and reason:
        raise ConfigError(f"task.sparse=true: {reason}; use task.sparse=auto, or false")
    cfg["task"]["sparse"] = reason is None


def why_dense(cfg: Mapping[str, Any]) -> str | None:
    """What in a settled configuration needs the whole table in every step; None if nothing does."""
    if "sparse" not in cfg["task"]:
        return None
    optimizer = cfg["optimizer"]
    if not optimizer_says(optimizer, "lazy_rows"):
        return f"optimizer={optimizer['name']} has no exact step by rows"
    if cfg["ema"] is not None:
        return "ema averages the whole table in every step"
    if cfg["task"].get("l2"):
        for key in ("clip_norm", "clip_value"):
            if cfg[key] is not None:
                return f"{key} needs the gradient of the penalty task.l2, which is of the whole table"
    return None
