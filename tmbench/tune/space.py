"""What is tuned: the values that each setting may take, as a file of conf/space declares them. Torch-free."""

import json
from collections.abc import Mapping
from itertools import product
from typing import Any

from ..config.identity import reads_switch
from ..config.settle import Settings, flat, plain, select, settled
from ..config.table import NEVER
from ..config.values import is_number, is_whole
from ..errors import ConfigError, did_you_mean

TUNABLE = ("lr", "batch_size", "switch_epoch", "clip_norm", "clip_value", "ema")  # and what is in these groups:
GROUPS = ("optimizer", "task", "schedule")
Space = dict[str, Settings]  # setting -> {low, high, log} or {choices}


def as_word(key: str, value: Any) -> str:
    """A setting as a word of the command line."""
    return f"{key}={value}" if isinstance(value, str) else f"{key}={json.dumps(value)}"


def words_of(values: Mapping[str, Any]) -> str:
    """The values as a person reads them, in four digits."""
    shorter = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
    return " ".join(as_word(key, value) for key, value in shorter.items()) or "nothing to tune"


def space_of(declared: Settings, raw: Settings) -> Space:
    """An optimizer's space, checked, with switch epochs as whole numbers.

    Args:
        declared: the content of a file of conf/space.
        raw: the configuration of the optimizer's runs, as composed.
    """
    name, cfg = declared.get("name"), settled(raw)
    optimizer = cfg["optimizer"]["name"]
    if unknown := declared.keys() - {"name", "common", "optimizers"}:
        raise ConfigError(f"space={name}: expected common and optimizers, got {', '.join(sorted(unknown))}")
    optimizers = declared.get("optimizers") or {}
    if optimizer not in optimizers:
        hint = f"add it under optimizers; {optimizer}: {{}} if the common part is all"
        declared_for = f"nothing is declared for optimizer={optimizer}, only for {', '.join(optimizers)}"
        raise ConfigError(f"space={name}: {declared_for}\n  {hint}")
    space = {}
    for key, values in ((declared.get("common") or {}) | (optimizers[optimizer] or {})).items():
        where = f"space={name}, {key} of {optimizer}"
        _check_key(key, where, raw, reads_switch(cfg))
        whole = key == "switch_epoch" or is_whole(select(cfg, key), 0)
        space[key] = _range_or_choices(values, where, whole)
        if key == "switch_epoch":
            space[key] = _in_whole_epochs(space[key], where, cfg["epochs"])
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
        group, _, last = key.rpartition(".")
        (select(raw, group) if group else raw)[last] = value
    return raw


def values_of(space: Space, params: Mapping[str, Any]) -> Settings:
    """The values of the settings at a point of the space, in which a choice is its position among the choices."""
    return {key: spec["choices"][params[key]] if "choices" in spec else params[key] for key, spec in space.items()}


def all_of(space: Space) -> list[dict[str, Any]]:
    """Every point of a space; ConfigError if it is not finite."""
    if endless := [key for key, spec in space.items() if isinstance(spec.get("low"), float)]:
        raise ConfigError(f"sampler=grid: expected choices or whole numbers, but {', '.join(endless)} is continuous")
    each = [range(len(s["choices"])) if "choices" in s else range(s["low"], s["high"] + 1) for s in space.values()]
    return [dict(zip(space, point, strict=True)) for point in product(*each)]


def _check_key(key: str, where: str, raw: Settings, has_switch: bool) -> None:
    if key not in (known := flat(raw)):
        raise ConfigError(f"{where}: there is no such setting{did_you_mean(key, known)}")
    if key not in TUNABLE and ("." not in key or key.split(".")[0] not in GROUPS):
        groups = ", ".join(f"{group}.*" for group in GROUPS)
        raise ConfigError(f"{where}: expected something to tune, one of {', '.join(TUNABLE)}, {groups}")
    if key == "switch_epoch" and not has_switch:
        raise ConfigError(f"{where}: this optimizer does not read it, so trials would be wasted; remove it there")


def _range_or_choices(values: Any, where: str, whole: bool) -> Settings:
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


def _in_whole_epochs(spec: Settings, where: str, epochs: int) -> Settings:
    """The space of switch_epoch, in which a share of the run becomes a whole epoch inside the run."""
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
