"""What exactly is being asked for: fills, checks and identifies a run's configuration, without torch."""

import copy
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import ConfigError
from .machine import count_gpus

NEVER = "never"
GROUPS = ("task", "optimizer", "data", "protocol", "schedule", "trainer", "logger", "study")
PROFILES = ("tiny", "full")
PRECISIONS = ("32", "bf16-mixed")
Settings = dict[str, Any]


def conf_dir() -> Path:
    """The folder of our YAML files: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def settle(cfg: DictConfig) -> DictConfig:
    """The configuration with every null replaced by its value and every value checked.

    Settling twice changes nothing, so the saved config.yaml of a run asks for that run again.

    Raises:
        ConfigError: a value is of the wrong kind or out of range.
    """
    return OmegaConf.create(settled(plain(cfg)))


def settled(raw: Settings) -> Settings:
    """As settle, on plain dictionaries, which is what the thousand jobs of a sweep have time for."""
    cfg = plain(raw)
    cfg.setdefault("validation", None)  # a configuration that was saved before there was one
    try:
        for group in GROUPS:
            _check_kinds(cfg, group)
        _fill_from_task(cfg)
        _fill_from_trainer(cfg, cfg.pop("launcher", {}))
        cfg["study"].pop("arms", None)  # for the sweep alone
        cfg = _resolved(cfg)
        values = {key: select(cfg, key) for key in _RULES}
    except KeyError as error:
        raise ConfigError(f"{error.args[0]}: expected a setting of this name, got none; leave it in") from error
    for key, (is_right, expected) in _RULES.items():
        if not is_right(value := values[key]):
            raise ConfigError(f"{key}: expected {expected}, got {value!r}")
    if cfg["trunk"] is False:
        cfg["trunk"] = "off"  # what YAML makes of it
    return cfg


def plain(cfg: Mapping[Any, Any]) -> Settings:
    """A configuration as dictionaries of one's own, without OmegaConf's nodes."""
    if isinstance(cfg, DictConfig):
        return cast(Settings, OmegaConf.to_container(cfg))
    return copy.deepcopy(dict(cfg))


def select(cfg: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def flat(node: Settings, prefix: str = "") -> dict[str, Any]:
    """The values of nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


_REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")


def _resolved(root: Settings) -> Settings:
    """With every interpolation replaced by its value: OmegaConf's work, but its nodes cost more than all else here."""

    def value(node: Any, trail: tuple[Any, ...]) -> Any:
        if isinstance(node, dict):
            return {key: value(child, (*trail, key)) for key, child in node.items()}
        if isinstance(node, list):
            return [value(child, (*trail, i)) for i, child in enumerate(node)]
        if not isinstance(node, str) or "${" not in node:
            return node
        found = _REFERENCE.fullmatch(node)
        if found is None:
            return OmegaConf.create({"_": node})["_"]  # such as oc.env; raises if it refers to others
        start = trail[: -len(found[1])] if found[1] else ()
        path = (*start, *found[2].split("."))
        target: Any = root
        for name in path:
            target = target[name]
        return value(target, path)

    try:
        return cast(Settings, value(root, ()))
    except (KeyError, TypeError, IndexError, OmegaConfBaseException):  # something rarer, or an error that it can tell
        cfg = OmegaConf.create(root)
        OmegaConf.resolve(cfg)
        return cast(Settings, OmegaConf.to_container(cfg))


@cache
def _defaults(group: str, name: str) -> dict[str, Any]:
    """A group's values as its YAML gives them; empty if it is a person's own file, from elsewhere."""
    path = conf_dir() / group / f"{name}.yaml"
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path))) if path.is_file() else {}


def _check_kinds(cfg: Settings, group: str) -> None:
    """Numbers stay numbers, switches stay switches, words stay words."""
    defaults = _defaults(group, cfg[group].get("name", cfg[group].get("profile")))
    values = cfg[group]
    for key, default in {**defaults, **defaults.get(cfg["data"]["profile"], {})}.items():
        if key not in values or default is None:
            continue
        value = values[key]
        if value is None and defaults[key] is None:
            continue
        if isinstance(default, str) and not default.startswith("${"):
            right, expected = isinstance(value, str), "a word"
        elif isinstance(default, bool):
            right, expected = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            least = -1 if key == "devices" else min(default, 1)
            right, expected = is_whole(value, least), f"a whole number >= {least}"
        elif isinstance(default, float):
            right, expected = is_number(value) and value >= 0, "a number >= 0"
        else:
            continue
        if not right and key != "precision":
            raise ConfigError(f"{group}.{key}: expected {expected}, got {value!r}")


_NO_STEPS = {"milestones": [], "warmup_epochs": 0.0, "warmup_from": 1.0}  # of a task that has no schedule of its own


def _fill_from_task(cfg: Settings) -> None:
    task = cfg["task"]
    if "protocols" not in task:  # settled before
        return
    protocols = task.pop("protocols")
    profiles = {name: task.pop(name) for name in PROFILES}
    choices, models = task.pop("choices", {}), task.pop("models", {})
    by = task.pop("data_by", "dataset")
    if isinstance(task["data"], dict):  # several data sets serve this task
        choices[by] = list(task["data"])
    profile, protocol = cfg["data"]["profile"], cfg["protocol"]["name"]
    if profile not in PROFILES:
        raise ConfigError(f"data.profile: expected {' or '.join(PROFILES)}, got {profile!r}")
    if lacking := _defaults("data", profile).keys() - cfg["data"].keys():
        raise ConfigError(f"data.profile: {profile} needs data.{', data.'.join(lacking)}, too; say data={profile}")
    if protocol not in protocols:
        raise ConfigError(f"protocol.name: expected one of {', '.join(protocols)}, got {protocol!r}")
    for key, allowed in choices.items():
        if task[key] is not None and task[key] not in allowed:
            raise ConfigError(f"task.{key}: expected one of {', '.join(allowed)}, got {task[key]!r}")
    model = models.get(task.get("model"), {})  # what differs for it
    numbers = protocols[protocol] | model.get("protocols", {}).get(protocol, {})
    own = profiles[profile] | model.get(profile, {})
    steps = _NO_STEPS | task.pop("schedule", {}) | model.get("schedule", {}) | own.pop("schedule", {})
    for key, value in cfg["schedule"].items():
        if value is None:
            cfg["schedule"][key] = steps[key]
    for key in ("epochs", "lr", "batch_size"):
        if cfg[key] is None:
            cfg[key] = own.get(key, numbers[key])
    if cfg["switch_epoch"] is None:
        cfg["switch_epoch"] = numbers["switch_epoch"]
        if profile == "tiny" and is_whole(cfg["epochs"], 1):
            # Keeps the switch's place in the run, and inside it, so that a tiny TM run really switches.
            share = numbers["switch_epoch"] / numbers["epochs"]
            cfg["switch_epoch"] = max(1, min(round(share * cfg["epochs"]), cfg["epochs"] - 1))
    for key, value in own.items():
        if key not in task:
            continue  # epochs, lr, batch_size
        if task[key] is None:
            task[key] = value
    if isinstance(task["data"], dict):
        task["data"] = task["data"][task[by]]


def _fill_from_trainer(cfg: Settings, launcher: Settings) -> None:
    trainer = cfg["trainer"]
    elsewhere = launcher.get("gpus_per_node", launcher.get("num_gpus"))  # those of a job on another machine
    gpus = count_gpus() if elsewhere is None else math.ceil(elsewhere)
    for key in ("devices", "num_nodes", "precision"):
        if cfg[key] is not None:
            trainer[key] = cfg[key]
        cfg[key] = None  # one place for each value; settled configs carry it in trainer
    trainer["precision"] = str(trainer["precision"])
    if trainer["accelerator"] == "auto":
        trainer["accelerator"] = "cuda" if gpus else "cpu"
    name, on_gpu = trainer["name"], trainer["accelerator"] == "cuda"
    if on_gpu and not gpus and elsewhere is not None:
        one = "gpus_per_node=1" if "gpus_per_node" in launcher else "num_gpus=1"
        raise ConfigError(f"trainer={name}: launcher={launcher['name']} gives a run no GPU; say launcher.{one}")
    if on_gpu and not gpus:
        raise ConfigError(f"trainer={name}: no NVIDIA GPU is visible here; use trainer=cpu or trainer=ddp_cpu")
    if trainer["devices"] == -1:
        trainer["devices"] = gpus if on_gpu else os.cpu_count()
    devices = trainer["devices"]
    if on_gpu and is_whole(devices, 1) and devices > gpus:
        raise ConfigError(f"devices: expected at most {gpus}, the GPUs visible here, got {devices}")
    if trainer["strategy"] == "auto" and devices != 1:
        ddp = "ddp" if on_gpu else "ddp_cpu"
        raise ConfigError(f"devices: trainer={name} uses one, got {devices}; use trainer={ddp}")
    if trainer["num_workers"] is None:
        few = trainer["accelerator"] == "cpu" or cfg["data"]["profile"] == "tiny"
        trainer["num_workers"] = 0 if few else min(8, os.cpu_count() or 1)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _whole(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda v: is_whole(v, least), f"a whole number >= {least}"


def _choice(*names: str) -> tuple[Callable[[Any], bool], str]:
    return lambda v: v in names, f"one of {', '.join(names)}"


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _whole(0),
    "epochs": _whole(1),
    "batch_size": _whole(1),
    "lr": (lambda v: is_number(v) and v > 0, "a number > 0"),
    "switch_epoch": (lambda v: v == NEVER or is_whole(v, 0), f"a whole number >= 0, or {NEVER}"),
    "clip_norm": (lambda v: v is None or (is_number(v) and v > 0), "a number > 0, or null"),
    "clip_value": (lambda v: v is None or (is_number(v) and v > 0), "a number > 0, or null"),
    "ema": (lambda v: v is None or (is_number(v) and 0 < v < 1), "a number between 0 and 1, or null"),
    "validation": (lambda v: v is None or (is_number(v) and 0 < v < 1), "a number between 0 and 1, or null"),
    "force": (lambda v: isinstance(v, bool), "true or false"),
    "plan": (lambda v: isinstance(v, bool), "true or false"),
    "trunk": (lambda v: v in ("auto", "off", False), "auto or off"),
    "trunk_gib": (lambda v: is_number(v) and v >= 0, "a number >= 0"),
    "data_dir": (lambda v: isinstance(v, str), "a folder"),
    "runs_dir": (lambda v: isinstance(v, str), "a folder"),
    "trainer.devices": _whole(1),
    "trainer.num_nodes": _whole(1),
    "trainer.accelerator": _choice("cpu", "cuda"),
    "trainer.precision": _choice(*PRECISIONS),
    "trainer.accumulate": _whole(1),
    "trainer.num_workers": _whole(0),
}
