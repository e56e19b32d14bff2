"""What makes two runs the same, before their switch or altogether."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from ..errors import ConfigError
from .settle import Settings, plain
from .table import NEVER, OF_NO_NUMBER, STABLE, file_of, key_of_group, known_keys, top_keys
from .values import Setting

SCHEMA = 4  # of result.json; part of a run's identity
OVERRIDES = "overrides.yaml"  # in a run's folder: what was asked for; config.yaml beside it is what that became

# Of an optimizer's trunk, see before_switch.
_RULE = {"part": "a word", "_target_": "a word", "without": "a list", "differences": "a whole number >= 0",
         "no_differences_with": "settings", "not_with": "a list", "early_with": "a list"}  # fmt: skip


def reads_switch(cfg: Mapping[Any, Any]) -> bool:
    """Whether the optimizer has a switch: its YAML says so by the key `switch_step`."""
    return "switch_step" in cfg["optimizer"]


def rate_of(cfg: Mapping[Any, Any]) -> float:
    """The learning rate of a settled configuration: the optimizer's where its YAML sets one of its own, else lr."""
    rate = cfg["optimizer"].get("lr")
    return float(rate if isinstance(rate, (int, float)) else cfg["lr"])


def switches_by_curvature(cfg: Mapping[Any, Any]) -> bool:
    """Whether the run itself finds the epoch of its switch."""
    return reads_switch(cfg) and bool(cfg["switch_epoch"] == STABLE)


def effective_switch(cfg: Mapping[Any, Any]) -> int | None:
    """The epoch at which the method really changes; None if it never does, or if only the run will tell."""
    if not reads_switch(cfg) or cfg["switch_epoch"] in (NEVER, STABLE) or cfg["switch_epoch"] >= cfg["epochs"]:
        return None
    return int(cfg["switch_epoch"])


def world_size(cfg: Mapping[Any, Any]) -> int:
    """How many processes a settled configuration asks for, over all machines."""
    return int(cfg["trainer"]["devices"] * cfg["trainer"]["num_nodes"])


def identity(cfg: Mapping[Any, Any], data_digest: str) -> Settings:
    """Everything in a settled configuration that can change the numbers, and nothing else; table.py says what does."""
    facts: Settings = {}
    for key, value in (plain(cfg) if isinstance(cfg, DictConfig) else cfg).items():  # a thousand copies take time
        if isinstance(value, dict):
            known, other = known_keys(key, file_of(value)), key_of_group(key)
            group = {name: inner for name, inner in value.items() if known.get(name, other).is_identity(value)}
            facts |= {key: group} if group else {}
        elif key in top_keys() and top_keys()[key].is_identity({}):
            facts[key] = value
    if not reads_switch(cfg):
        facts.pop("switch_epoch", None)
    if switches_by_curvature(cfg):
        facts["curvature"] = {key: value for key, value in cfg["curvature"].items() if key != "name"}
    if facts.get("replicas") == 1:  # by itself, as all runs were before there were stacks
        del facts["replicas"]
    facts["world_size"] = world_size(cfg)
    facts["data"]["digest"] = data_digest
    facts["schema"] = SCHEMA
    return facts


def run_id(cfg: Mapping[Any, Any], data_digest: str) -> str:
    """The run's name: readable words, then the hash of its identity."""
    return f"{cfg['task']['name']}-{cfg['optimizer']['name']}-{cfg['seed']}-{digest(identity(cfg, data_digest))}"


def digest(facts: Settings) -> str:
    """A short hash of plain facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def trunk_end(cfg: Mapping[Any, Any]) -> int:
    """The epoch up to which a run is as others are; see before_switch."""
    switch = effective_switch(cfg)
    if switch is None:
        return int(cfg["epochs"])
    rule = cfg["optimizer"].get("trunk") or {}
    return max(0, switch - any(cfg["optimizer"].get(key) for key in rule.get("early_with", ())))


def before_switch(cfg: Mapping[Any, Any]) -> tuple[Settings, int] | None:
    """The optimizer as it is before its switch, and how many of the last steps the method needs at the switch.

    Optimizers that are the same there have equal settings here. An optimizer with a switch says it by the key `trunk`
    of its YAML:

        {part: NAME}                       it is its part of that name, such as first; or
        {_target_: CLASS, without: [...]}  it equals that class, which has not these keys
        differences: N                     the method needs the last N differences of the weights; 0 if left out
        no_differences_with: {KEY: VALUE}  but none if the key has this value
        not_with: [KEY, ...]               nothing is known of it if one of these keys is set
        early_with: [KEY, ...]             it goes its own way an epoch before its switch if one of these keys is set

    Returns:
        None if it is not known what the optimizer is before its switch.
    """
    facts, differences = plain(cfg["optimizer"]), 0
    rule = facts.pop("trunk", None)
    for key in _RULE.keys() & (rule or {}).keys():
        Setting(_RULE[key], "").checked(f"optimizer.trunk.{key}", rule[key])
    if reads_switch(cfg):
        if rule is None or any(facts.get(key) for key in rule.get("not_with", ())):
            return None
        excluded = rule.get("no_differences_with", {})
        if not any(facts.get(key) == value for key, value in excluded.items()):
            differences = rule.get("differences", 0)
        try:
            facts = dict(facts[rule["part"]]) if "part" in rule else facts | {"_target_": rule["_target_"]}
        except KeyError as error:
            raise ConfigError(f"optimizer.trunk: expected part or _target_, or a part of that name: {error}") from None
        for key in rule.get("without", ()):
            facts.pop(key, None)
    for key in (*OF_NO_NUMBER, "_partial_", "switch_step"):
        facts.pop(key, None)
    return {key: float(value) if type(value) is int else value for key, value in facts.items()}, differences
