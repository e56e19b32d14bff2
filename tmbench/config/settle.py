"""What exactly is asked for: fills and checks a run's configuration, without torch."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from annotated_types import MaxLen
from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError, did_you_mean
from ..files import Whole
from .machine import settle_trainer
from .replicas import settle_replicas
from .sparse import settle_sparse
from .table import (
    GROUPS,
    PROFILES,
    STABLE,
    file_of,
    keys,
    known_keys,
    known_words,
    measures_curvature,
    top_keys,
    values_of,
)
from .values import Setting, is_whole

Settings = dict[str, Any]
Name = Annotated[str, MaxLen(200)]  # of a file


@dataclass
class _Named:
    name: Name


@dataclass
class _Data:
    profile: Name


@dataclass
class _Processes:
    devices: Whole = 1
    num_nodes: Whole = 1


@dataclass
class Saved:
    """The settings of a run's config.yaml that all commands read, and their types; see files.read_yaml."""

    task: _Named
    optimizer: _Named
    data: _Data
    protocol: _Named
    epochs: Whole
    seed: Whole
    lr: float
    batch_size: Whole
    switch_epoch: Whole | str
    trainer: _Processes
    validation: float | None = None
    runs_dir: str = "."
    data_dir: str = "."


# The tables of a task's YAML from which null is filled in, `*` for any name; and what each must be.
_TABLES = ("protocols", "protocols.*", "full", "tiny", "full.schedule", "tiny.schedule", "choices", "schedule",
           "models", "models.*", "models.*.protocols", "models.*.protocols.*", "models.*.full", "models.*.tiny",
           "models.*.schedule")  # fmt: skip
_FORMS = [(table.split("."), "settings") for table in _TABLES] + [(["choices", "*"], "a list")]
_CONSTANT = {"milestones": [], "warmup_epochs": 0.0, "warmup_from": 1.0}  # the rate of a task without a schedule


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
        older: Settings = {"fail_fast": False, "replicas": 1, "curvature": {"name": "none"}}
        for key, value in older.items():  # older runs' config.yaml has none
            cfg.setdefault(key, value)
        _check_form(cfg)
        _check_rate(cfg)
        _fill_from_task(cfg)
        if cfg["switch_epoch"] == STABLE and not measures_curvature(cfg):
            cfg["curvature"] = dict(values_of("curvature/measure.yaml"))
        settle_trainer(cfg, cfg.pop("launcher", {}))
        cfg["study"].pop("arms", None)  # for the sweep alone
        _name_loggers(cfg["logger"])
        cfg = _resolved(cfg)
        _check(cfg)
        _check_read(raw, cfg)
        settle_replicas(cfg)
        settle_sparse(cfg)
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


def _check_form(cfg: Settings) -> None:
    """Raises ConfigError where what is filled in cannot even be read, as in a YAML of a person's own."""
    for group in GROUPS:
        Setting("settings", "").checked(group, cfg[group])
        if _name_of(group) not in cfg[group]:
            raise KeyError(f"{group}.{_name_of(group)}")
    if lacking := keys("trainer", "auto").keys() - cfg["trainer"].keys():
        raise KeyError(f"trainer.{min(lacking)}")
    launcher = cfg.get("launcher", {})
    Setting("settings", "").checked("launcher", launcher)
    for name in ("gpus_per_node", "num_gpus"):
        Setting("a number >= 0, or null", "").checked(f"launcher.{name}", launcher.get(name))
    for form, expects in _FORMS:
        for key, value in _matching(cfg["task"], form, "task"):
            Setting(expects, "").checked(key, value)
    for protocol, numbers in _matching(cfg["task"], ["protocols", "*"], "task"):
        for key in ("epochs", "lr", "batch_size", "switch_epoch"):
            top_keys()[key].checked(f"{protocol}.{key}", numbers.get(key))


def _check_read(raw: Settings, cfg: Settings) -> None:
    """Raises ConfigError for a key beside the groups that nothing reads, not even another setting by ${...}."""
    for key in cfg.keys() - {*known_words(), "space"}:
        if not re.search(rf"\$\{{{re.escape(str(key))}\b", str(raw)):
            hint = did_you_mean(key, known_words())
            raise ConfigError(f"{key}: nothing reads this setting{hint or '; leave it out'}")


def _check_rate(cfg: Settings) -> None:
    """Raises ConfigError for an lr that would have no effect, since a person's own optimizer does not refer to it."""
    optimizer, name = cfg["optimizer"], file_of(cfg["optimizer"])
    is_settled = "protocols" not in cfg["task"]
    if cfg["lr"] is None or is_settled or keys("optimizer", name):
        return
    if not re.search(r"\$\{[^}]*\blr\b", str((optimizer, cfg["task"]))):
        own = f"say optimizer.lr={cfg['lr']}" if "lr" in optimizer else "leave lr= out"
        raise ConfigError(
            f"lr: optimizer={name} does not read it, since its YAML file has no ${{lr}}; {own}, or write lr: ${{lr}} "
            "in that file"
        )


def _name_of(group: str) -> str:
    return "profile" if group == "data" else "name"


def _matching(node: Any, form: list[str], prefix: str) -> list[tuple[str, Any]]:
    """The dotted keys of this form, and their values; `*` stands for any name."""
    if not form:
        return [(prefix, node)]
    names = list(node) if form[0] == "*" else [name for name in form[:1] if name in node]
    return [found for name in names for found in _matching(node[name], form[1:], f"{prefix}.{name}")]


def _fill_from_task(cfg: Settings) -> None:
    """Puts the values of the task's YAML under this protocol and profile in place of null.

    Raises:
        ConfigError: a choice is none of those that the YAML files offer.
    """
    task = cfg["task"]
    if "protocols" not in task:  # settled before
        if cfg["epochs"] is None:
            raise KeyError("task.protocols")
        return
    protocols = task.pop("protocols")
    profiles = {name: task.pop(name) for name in PROFILES}
    choices, models = task.pop("choices", {}), task.pop("models", {})
    chooses_data = task.pop("data_by", "dataset")
    if isinstance(task["data"], dict):  # several data sets serve this task
        choices[chooses_data] = list(task["data"])
    profile, protocol = cfg["data"]["profile"], cfg["protocol"]["name"]
    if unknown := choices.keys() - task.keys():
        raise KeyError(f"task.{min(unknown)}")
    allowed = {f"task.{key}": (task[key], names) for key, names in choices.items() if task[key] is not None}
    allowed |= {"data.profile": (profile, PROFILES), "protocol.name": (protocol, list(protocols))}
    for name, (value, names) in allowed.items():
        if value not in names:
            raise ConfigError(f"{name}: expected one of {', '.join(map(str, names))}, got {value!r}")
    if lacking := values_of(f"data/{profile}.yaml").keys() - cfg["data"].keys():
        raise ConfigError(f"data.profile: {profile} needs data.{', data.'.join(lacking)}, too; say data={profile}")
    model = models.get(task.get("model"), {})  # what differs for it
    numbers = protocols[protocol] | model.get("protocols", {}).get(protocol, {})
    values = profiles[profile] | model.get(profile, {})
    steps = _CONSTANT | task.pop("schedule", {}) | model.get("schedule", {}) | values.pop("schedule", {})
    for key, value in cfg["schedule"].items():
        if value is None:
            if key not in steps:
                raise ConfigError(f"schedule.{key}: expected a value, got null, and the task has none for it")
            cfg["schedule"][key] = steps[key]
    for key in ("epochs", "lr", "batch_size"):
        if cfg[key] is None:
            cfg[key] = values.get(key, numbers[key])
    if cfg["switch_epoch"] is None:
        cfg["switch_epoch"] = _switch_epoch(cfg, numbers)
    for key in values.keys() & task.keys():  # the others are epochs, lr and batch_size
        if task[key] is None:
            task[key] = values[key]
    if isinstance(task["data"], dict):
        task["data"] = task["data"].get(task[chooses_data])


def _switch_epoch(cfg: Settings, numbers: Settings) -> Any:
    """The protocol's; in a tiny run at the same share of its epochs and inside it, so that it really switches."""
    if cfg["data"]["profile"] != "tiny" or not is_whole(cfg["epochs"], 1):
        return numbers["switch_epoch"]
    if not (is_whole(numbers["switch_epoch"], 0) and is_whole(numbers["epochs"], 1)):
        return numbers["switch_epoch"]  # never, or what is refused later
    share = numbers["switch_epoch"] / numbers["epochs"]
    return max(1, min(round(share * cfg["epochs"]), cfg["epochs"] - 1))


def loggers(settings: Settings) -> list[str]:
    """The names of the loggers that were chosen: each has a mapping of its own that says which class it is."""
    return [key for key, value in settings.items() if isinstance(value, dict) and "_target_" in value]


def _name_loggers(settings: Settings) -> None:
    """Puts the names of all chosen loggers in place of the last one's."""
    if target := settings.pop("_target_", None):  # saved when a run could have one alone
        name = settings["name"]
        settings[name] = values_of(f"logger/{name}.yaml").get(name, {"_target_": target})
        settings.pop("_partial_", None)
    settings["name"] = "-".join(loggers(settings)) or "none"


def _resolved(root: Settings) -> Settings:
    """With every interpolation replaced by its value.

    OmegaConf does the same, but takes ten times as long as all else here, and a sweep settles a thousand jobs.
    """

    def value(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: value(child) for key, child in node.items()}
        if isinstance(node, list):
            return [value(child) for child in node]
        if not isinstance(node, str) or "${" not in node:
            return node
        return value(select(root, node.removeprefix("${").removesuffix("}")))

    try:
        return cast(Settings, value(root))
    except (KeyError, TypeError, RecursionError):  # OmegaConf knows more of them, such as oc.env, or has the message
        return cast(Settings, OmegaConf.to_container(OmegaConf.create(root), resolve=True))


def _check(cfg: Settings) -> None:
    """Raises ConfigError for a value that is not what the table expects."""
    for group in GROUPS:
        # It becomes part of a folder's name, also where a saved configuration comes from somebody else.
        name = cfg[group][_name_of(group)] if isinstance(cfg[group], dict) else cfg[group]
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f"{group}.{_name_of(group)}: expected a name of letters, digits, _ . and -, got {name!r:.100}"
            )
    for key in ("task.data", "task._target_", "optimizer._target_"):
        group, _, name = key.partition(".")
        if not isinstance(target := cfg[group].get(name), str):
            raise ConfigError(f"{key}: expected the name of a class, such as torch.optim.SGD, got {target!r:.100}")
    if (partial := cfg["optimizer"].get("_partial_")) is not True:
        got = "none" if partial is None else repr(partial)
        why = "since the run gives the optimizer its parameters"
        raise ConfigError(f"optimizer._partial_: expected true, {why}, got {got}; add _partial_: true to its YAML file")
    for key, setting in top_keys().items():
        setting.checked(key, cfg[key])
    for group in GROUPS:
        required = keys("trainer", "auto") if group == "trainer" else {}  # a person may take the others away
        for key, setting in known_keys(group, file_of(cfg[group])).items():
            value: Any = cfg[group]
            for part in key.split("."):
                value = value.get(part, ...) if isinstance(value, dict) else ...
            if value is not ...:
                setting.checked(f"{group}.{key}", value)
            elif key in required:
                raise KeyError(f"{group}.{key}")
