"""What makes two runs the same, before their switch or altogether."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .settle import NEVER, Settings, plain

SCHEMA = 3  # of result.json; part of a run's identity
OVERRIDES = "overrides.yaml"  # in a run's folder: what was asked for; config.yaml beside it is what that became


def reads_switch(cfg: Mapping[Any, Any]) -> bool:
    """Whether the optimizer has a switch: its YAML says so by the key `switch_step`."""
    return "switch_step" in cfg["optimizer"]


def effective_switch(cfg: Mapping[Any, Any]) -> int | None:
    """The epoch at which the method really changes, or None if it never does in this run."""
    if not reads_switch(cfg) or cfg["switch_epoch"] == NEVER or cfg["switch_epoch"] >= cfg["epochs"]:
        return None
    return int(cfg["switch_epoch"])


def world_size(cfg: Mapping[Any, Any]) -> int:
    """How many processes a settled configuration asks for, over all machines."""
    return int(cfg["trainer"]["devices"] * cfg["trainer"]["num_nodes"])


# What cannot change the numbers; lr reaches them through the optimizer, the protocol through what it filled in.
_APART = (
    "data_dir", "runs_dir", "force", "logger", "protocol", "lr", "devices", "num_nodes", "precision", "trunk",
    "trunk_gib", "study", "plan",
)  # fmt: skip


def identity(cfg: Mapping[Any, Any], data_digest: str) -> Settings:
    """Everything in a settled configuration that can change the numbers, and nothing else."""
    cfg = plain(cfg)
    facts = {key: value for key, value in cfg.items() if key not in _APART}
    facts["optimizer"] = {key: value for key, value in cfg["optimizer"].items() if key != "trunk"}
    facts["trainer"] = {key: cfg["trainer"][key] for key in ("accelerator", "precision", "accumulate")}
    task = cfg["task"]
    # What came to some tasks later: where it says nothing, a run is the one it was before.
    unread = {"width": 0, "mup": False} | ({} if task.get("mup") else {"mup_base": task.get("mup_base")})
    facts["task"] = {key: value for key, value in task.items() if key not in unread or value != unread[key]}
    facts["world_size"] = world_size(cfg)
    if not reads_switch(cfg):
        del facts["switch_epoch"]
    if facts.get("validation") is None:
        facts.pop("validation", None)
    facts["data"] = {"profile": cfg["data"]["profile"], "digest": data_digest}
    facts["schema"] = SCHEMA
    return facts


def run_id(cfg: Mapping[Any, Any], data_digest: str) -> str:
    """The run's name: readable words, then the hash of its identity."""
    return f"{cfg['task']['name']}-{cfg['optimizer']['name']}-{cfg['seed']}-{digest(identity(cfg, data_digest))}"


def digest(facts: Settings) -> str:
    """A short hash of plain facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def before_switch(cfg: Mapping[Any, Any]) -> Settings | None:
    """The optimizer as it is before the switch, in one form for all that are the same there; None if it can't be told.

    An optimizer with a switch says it by the key `trunk` of its YAML: the name of the part that holds the first
    optimizer, or {_target_: the class it then equals, without: [what it does not read then]}.
    """
    facts = plain(cfg["optimizer"])
    rule = facts.pop("trunk", None)
    if reads_switch(cfg):
        # A criterion may switch at any step; a decoupled decay is no part of TM's differences, but of the weights'.
        if rule is None or facts.get("criterion") or facts.get("decoupled"):
            return None
        if isinstance(rule, str):
            facts = dict(facts[rule])
        else:
            facts = {key: value for key, value in facts.items() if key not in rule["without"]}
            facts["_target_"] = rule["_target_"]
    for key in ("name", "_partial_", "switch_step"):
        facts.pop(key, None)
    if facts["_target_"] == "torch.optim.SGD":
        facts = {"momentum": 0, "dampening": 0, "nesterov": False, "maximize": False} | facts
    return {key: float(value) if type(value) is int else value for key, value in facts.items()}
