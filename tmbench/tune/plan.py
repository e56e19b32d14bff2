"""What a study is asked to do: its settings, the optimizers that it compares, and its folder. Torch-free."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf

from ..config.compose import composed, own_files
from ..config.identity import identity, world_size
from ..config.overrides import key_of
from ..config.settle import Settings, flat, settled
from ..config.table import conf_dir
from ..config.values import Setting
from ..data import open_dataset
from ..errors import ConfigError
from ..verbs import CONFIG_DIR, JSON
from .space import Space, all_of, as_word, space_of, with_values

FOLDER = ".tune"  # of all studies, under runs_dir
NOT_FOR_STUDIES = ("force", "plan", "study")  # settings of runs and sweeps


def settings() -> dict[str, Setting]:
    """The settings of a study, with their defaults from conf/tune.yaml."""
    defaults = yaml.safe_load((conf_dir() / "tune.yaml").read_text())
    defaults["space"] = defaults["defaults"][0]["space"]
    declared = {
        "trials": Setting("a whole number >= 1", "trials of every optimizer"),
        "validation": Setting("a number between 0 and 1", "share of the training examples that judges the trials"),
        "seeds": Setting("a count or a list of seeds", "fresh seeds that confirm the choice: 5, or [11,12,13]"),
        "sampler": Setting(
            "one of tpe, qmc, grid",
            "tpe learns from earlier trials; qmc is quasi-random; grid takes each point of a finite space",
        ),
        "pruner": Setting("one of none, median", "median ends trials that are behind the median of the earlier ones"),
        "name": Setting("a word without slashes, or null", "of the study; null: of task, optimizers and data profile"),
        "space": Setting("a word", "a file of conf/space, which says what is tuned"),
    }
    declared = {key: replace(setting, default=defaults[key]) for key, setting in declared.items()}
    return declared | {"config_dir": CONFIG_DIR, "json": JSON}


@dataclass(frozen=True)
class Contender:
    """One optimizer of a study."""

    name: str
    words: list[str]  # Hydra's overrides of all its runs
    raw: Settings  # as composed of these, with the held-out share
    space: Space
    identity: Settings  # of its runs, at one point of the space
    higher_is_better: bool
    epochs: int
    processes: int  # of a run

    def settings_with(self, values: Mapping[str, Any]) -> Settings:
        """The configuration of its run with these values at dotted keys."""
        return with_values(self.raw, values)

    def words_with(self, values: Mapping[str, Any]) -> list[str]:
        """The words that compose to `settings_with(values)`."""
        kept = [word for word in self.words if key_of(word) not in values]
        return kept + [as_word(key, value) for key, value in values.items() if value is not None]


@dataclass(frozen=True)
class Plan:
    """What a study is asked to do."""

    settings: Settings  # see settings()
    contenders: list[Contender]
    task: str
    seed: int  # of the trials
    seeds: list[int]  # of the confirming runs
    runs_dir: Path
    name: str
    command: str

    @property
    def folder(self) -> Path:
        return self.runs_dir / FOLDER / self.name

    def question(self) -> Settings:
        """What tells this study from others, for study.json.

        Raises:
            ConfigError: a number in it is not finite.
        """
        facts = {key: self.settings[key] for key in ("trials", "validation", "sampler", "pruner")}
        facts |= {"seeds": self.seeds, "seed": self.seed}
        for contender in self.contenders:
            facts[contender.name] = {"space": contender.space, "runs": contender.identity}
        for key, value in flat(facts).items():
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                raise ConfigError(f"{key}: expected finite numbers in a study, got {value}") from None
        return facts


def plan_of(values: Settings, words: list[str]) -> Plan:
    """The plan that a command line asks for.

    Args:
        values: of `settings()`.
        words: all other words of the command line: Hydra's overrides of a run, or of the space. In optimizer=a,b the
            names are those of the contenders.

    Raises:
        ConfigError, HydraException: something that is asked for is not possible.
    """
    _check(values, words)
    files = own_files(values["config_dir"])
    of_space = [word for word in words if key_of(word).split(".")[0] == "space"]
    declared = composed([*files, f"space={values['space']}", *of_space], "tune")["space"]
    of_runs = [*files, *(word for word in words if word not in of_space and key_of(word) != "optimizer")]
    named = [word.partition("=")[2] for word in words if key_of(word) == "optimizer"]
    names = named[-1].split(",") if named else [composed([])["optimizer"]["name"]]
    contenders = [
        _contender([*of_runs, f"optimizer={name}"], declared, values) for name in dict.fromkeys(names)
    ]  # fmt: skip
    cfg = settled(contenders[0].raw)
    seed, seeds = cfg["seed"], values["seeds"]
    if isinstance(seeds, int):
        seeds = [seed + 1 + i for i in range(seeds)]
    if seed in seeds:
        raise ConfigError(f"seeds: expected fresh seeds, got {seeds}; the trials have seed={seed}")
    task = cfg["task"]["name"]
    name = values["name"] or "-".join([task, *(c.name for c in contenders), cfg["data"]["profile"]])
    return Plan(values, contenders, task, seed, seeds, Path(cfg["runs_dir"]), name, _command(values, words))


def _check(values: Settings, words: list[str]) -> None:
    name = values["name"]
    if name is not None and ("/" in name or name in (".", "..")):
        raise ConfigError(f"name: expected a word without slashes, got {name!r}")
    for key in NOT_FOR_STUDIES:
        if key in map(key_of, words):
            raise ConfigError(f"{key}: this is a setting of runs and sweeps, not of tuning; leave it out")


def _contender(words: list[str], declared: Settings, values: Settings) -> Contender:
    raw = composed([*words, as_word("validation", values["validation"])])
    cfg = settled(raw)
    space = space_of(declared, raw)
    for key in map(key_of, words):
        if key in space:
            raise ConfigError(f"{key}: space={values['space']} tunes it; leave it out of the command")
    if values["sampler"] == "grid":
        all_of(space)  # raises if the space has no end
    _, _, data_digest = open_dataset(OmegaConf.create(cfg), get_class(cfg["task"]["data"]))
    point = {key: spec["choices"][0] if "choices" in spec else spec["low"] for key, spec in space.items()}
    facts = identity(settled(with_values(raw, point)), data_digest)
    task: Any = get_class(cfg["task"]["_target_"])
    return Contender(
        cfg["optimizer"]["name"], words, raw, space, facts, bool(task.higher_is_better), cfg["epochs"], world_size(cfg)
    )


def _command(values: Settings, words: list[str]) -> str:
    """What a person would type for the study."""
    said = [as_word(key, values[key]) for key, setting in settings().items() if values[key] != setting.default]
    return f"python -m tmbench.tune {shlex.join([*words, *said])}"
