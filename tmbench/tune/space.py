"""What is tuned: the values that each setting may take, as a file of conf/space declares them. Torch-free."""

import difflib
from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

from ..config.identity import reads_switch
from ..config.settle import Settings, plain, select, settled
from ..config.table import NEVER
from ..config.values import is_number, is_whole
from ..errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TUNABLE = ("lr", "batch_size", "switch_epoch", "clip_norm", "clip_value", "ema")  # and what is in these groups:
GROUPS = ("optimizer", "task", "schedule")
Space = dict[str, Settings]  # setting -> {low, high, log} or {choices}


def space_of(declared: Settings, raw: Settings) -> Space:
    """An optimizer's space, checked, with switch epochs as whole numbers.

    Args:
        declared: the content of a file of conf/space.
        raw: the configuration of its runs, as composed.

    Raises:
        ConfigError: there is nothing declared for the optimizer, or something that cannot be.
    """
    name, cfg = declared.get("name"), settled(raw)
    optimizer = cfg["optimizer"]["name"]
    if unknown := declared.keys() - {"name", "common", "optimizers"}:
        raise ConfigError(f"space={name}: expected common and optimizers, got {', '.join(sorted(unknown))}")
    own = declared.get("optimizers") or {}
    if optimizer not in own:
        raise ConfigError(
            f"space={name}: nothing is declared for optimizer={optimizer}, only for {', '.join(own)}\n"
            f"  add it under optimizers; {optimizer}: {{}} if the common part is all"
        )
    space = {}
    for key, values in ((declared.get("common") or {}) | (own[optimizer] or {})).items():
        where = f"space={name}, {key} of {optimizer}"
        _check_key(key, where, raw, reads_switch(cfg))
        whole = key == "switch_epoch" or is_whole(select(cfg, key), 0)
        space[key] = _checked(values, where, whole)
        if key == "switch_epoch":
            space[key] = _of_switch(space[key], where, cfg["epochs"])
        for value in space[key].get("choices") or (space[key]["low"], space[key]["high"]):
            try:
                settled(with_values(raw, {key: value}))
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
    return space


def with_values(raw: Settings, values: Mapping[str, Any]) -> Settings:
    """The configuration with these values at these dotted keys."""
    raw = plain(raw)
    for key, value in values.items():
        *path, last = key.split(".")
        node = raw
        for part in path:
            node = node[part]
        node[last] = value
    return raw


def distributions(space: Space) -> "dict[str, BaseDistribution]":
    """The space as Optuna has it; a choice that is no plain value goes by its place among the choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, spec in space.items():
        if "choices" in spec:
            found[key] = CategoricalDistribution(range(len(spec["choices"])))
        else:
            kind = IntDistribution if isinstance(spec["low"], int) else FloatDistribution
            found[key] = kind(spec["low"], spec["high"], log=spec["log"])
    return found


def values_of(space: Space, params: Mapping[str, Any]) -> Settings:
    """What Optuna drew, as values of the settings."""
    return {key: spec["choices"][params[key]] if "choices" in spec else params[key] for key, spec in space.items()}


def all_of(space: Space) -> list[dict[str, Any]]:
    """Every point of a space, as Optuna has it.

    Raises:
        ConfigError: there is no end of them.
    """
    if endless := [key for key, spec in space.items() if isinstance(spec.get("low"), float)]:
        raise ConfigError(f"sampler=grid: expected choices or whole numbers, {', '.join(endless)} can be any between")
    each = [range(len(s["choices"])) if "choices" in s else range(s["low"], s["high"] + 1) for s in space.values()]
    return [dict(zip(space, point, strict=True)) for point in product(*each)]


def _check_key(key: str, where: str, raw: Settings, has_switch: bool) -> None:
    node: Any = raw
    for part in key.split("."):
        names = list(node) if isinstance(node, dict) else []
        if part not in names:
            near = difflib.get_close_matches(part, names, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{where}: there is no such setting{hint}")
        node = node[part]
    if key not in TUNABLE and ("." not in key or key.split(".")[0] not in GROUPS):
        groups = ", ".join(f"{group}.*" for group in GROUPS)
        raise ConfigError(f"{where}: expected something to tune, one of {', '.join(TUNABLE)}, {groups}")
    if key == "switch_epoch" and not has_switch:
        raise ConfigError(f"{where}: this optimizer does not read it, trials would be wasted; remove it there")


def _checked(values: Any, where: str, whole: bool) -> Settings:
    """In one form; a range is of whole numbers if both of its ends are, and the setting itself is one."""
    if isinstance(values, list):
        if not values or any(value in values[:i] for i, value in enumerate(values)):
            raise ConfigError(f"{where}: expected choices, each once, got {values}")
        return {"choices": values}
    if not isinstance(values, dict) or not {"low", "high"} <= values.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"{where}: expected {{low: ..., high: ...}}, perhaps with log: true, or [...], got {values}")
    low, high, log = values["low"], values["high"], values.get("log", False)
    if not (is_number(low) and is_number(high) and isinstance(log, bool)):
        raise ConfigError(f"{where}: expected low and high to be numbers and log to be true or false, got {values}")
    if not low < high:
        raise ConfigError(f"{where}: expected low < high, got {low} and {high}")
    if log and low <= 0:
        raise ConfigError(f"{where}: expected low > 0 where log is true, got {low}")
    if not (whole and isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    return {"low": low, "high": high, "log": log}


def _of_switch(spec: Settings, where: str, epochs: int) -> Settings:
    """With shares of the run as whole epochs that are in it."""
    if epochs < 2:
        raise ConfigError(f"{where}: expected a run of 2 epochs or more, to switch inside it, got epochs={epochs}")

    def whole(value: Any) -> Any:
        if value == NEVER or (is_whole(value, 0) and value < epochs):
            return value
        if isinstance(value, float) and 0 < value < 1:
            return max(1, min(round(value * epochs), epochs - 1))
        raise ConfigError(f"{where}: expected epochs from 0 to {epochs - 1}, shares between 0 and 1, got {value!r}")

    if "choices" in spec:
        return {"choices": list(dict.fromkeys(map(whole, spec["choices"])))}
    low, high = whole(spec["low"]), whole(spec["high"])
    return {"choices": [low]} if low == high else {"low": low, "high": high, "log": spec["log"]}
