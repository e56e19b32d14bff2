"""What exactly is asked for: fills and checks a run's configuration, without torch."""

import copy
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import ConfigError
from .declared import keys
from .fill import fill_from_task, fill_from_trainer
from .table import GROUPS, TABLE, Key

Settings = dict[str, Any]


def settle(cfg: DictConfig) -> DictConfig:
    """The configuration with every null replaced by its value and every value checked.

    Settling twice changes nothing, so the saved config.yaml of a run asks for that run again.

    Raises:
        ConfigError: a value is not what the table of settings expects.
    """
    return OmegaConf.create(settled(plain(cfg)))


def settled(raw: Settings) -> Settings:
    """As settle, on plain dictionaries, which is what the thousand jobs of a sweep have time for."""
    cfg = plain(raw)
    try:
        if cfg["trunk"] is False:
            cfg["trunk"] = "off"  # YAML reads off as false
        fill_from_task(cfg)
        fill_from_trainer(cfg, cfg.pop("launcher", {}))
        cfg["study"].pop("arms", None)  # for the sweep alone
        cfg = _resolved(cfg)
        _check(cfg)
    except KeyError as error:
        raise ConfigError(f"{error.args[0]}: expected a setting of this name, got none; leave it in") from error
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
    """With every interpolation replaced by its value.

    OmegaConf does the same, but takes ten times as long as all else here, and a sweep settles a thousand jobs.
    """

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
    except (KeyError, TypeError, IndexError, OmegaConfBaseException):  # OmegaConf knows it, or has the message
        cfg = OmegaConf.create(root)
        OmegaConf.resolve(cfg)
        return cast(Settings, OmegaConf.to_container(cfg))


@cache
def _checks(group: str, name: str) -> list[tuple[str, Key]]:
    """The keys of a group's file whose values are checked, each with what is declared for it."""
    declared = {key: setting for key, setting in keys(group, name).items() if setting.expects != "anything"}
    general = {key.partition(".")[2]: setting for key, setting in TABLE.items() if key.startswith(f"{group}.")}
    return list({**general, **declared}.items())


_TOP = [(key, setting) for key, setting in TABLE.items() if "." not in key]


def _check(cfg: Settings) -> None:
    """Raises ConfigError for a value that is not what the table expects."""
    for key, setting in _TOP:
        setting.checked(key, cfg[key])
    for group in GROUPS:
        for key, setting in _checks(group, file_of(cfg, group)):
            value: Any = cfg[group]
            for part in key.split("."):
                value = value.get(part, ...) if isinstance(value, dict) else ...
            if value is not ...:
                setting.checked(f"{group}.{key}", value)
            elif group == "trainer":  # of the others a person may take a key away
                raise KeyError(f"{group}.{key}")


def file_of(cfg: Settings, group: str) -> str:
    """The name of the file that was chosen from a group."""
    return str(cfg[group].get("name", cfg[group].get("profile")))
