"""What a study is asked to do: its settings, the optimizers that it compares, and its folder. Torch-free."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..config.compose import composed, own_files
from ..config.identity import identity, run_id
from ..config.overrides import key_of
from ..config.settle import Settings, flat, settled
from ..config.values import Setting
from ..data import open_dataset
from ..errors import ConfigError, imported
from ..verbs import CONFIG_DIR, JSON
from .space import Space, all_of, as_word, space_of, with_values

FOLDER = ".tune"  # of all studies, under runs_dir
NOT_FOR_STUDIES = ("force", "plan", "study", "fail_fast")  # settings of runs and sweeps
SETTINGS = {
    "trials": Setting("a whole number >= 1", "trials of every optimizer", 20),
    "validation": Setting("a number between 0 and 1", "share of the training examples that judges the trials", 0.2),
    "seeds": Setting("a count or a list of seeds", "fresh seeds that confirm the choice: 5, or [11,12,13]", 5),
    "sampler": Setting("one of tpe, qmc, grid", "tpe learns from earlier trials; qmc is quasi-random; grid takes each "
                       "point of a finite space", "tpe"),
    "pruner": Setting("one of none, median", "median ends trials behind the median of the earlier ones; unfair to a "
                      "method that switches late", "none"),
    "name": Setting("a word without slashes, or null", "of the study; null: of task, optimizers and data profile"),
    "space": Setting("a word", "a file of conf/space, which says what is tuned", "default"),
    "config_dir": CONFIG_DIR,
    "json": JSON,
}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One optimizer of a study."""

    name: str
    words: list[str]  # Hydra's overrides of all its runs
    raw: Settings  # as composed of these, with the held-out share
    cfg: Settings  # settled
    data_digest: str
    space: Space
    identity: Settings  # of its runs, at one point of the space
    higher_is_better: bool

    def words_with(self, values: Mapping[str, Any]) -> list[str]:
        """The words that compose to the configuration of its run with these values at dotted keys."""
        kept = [word for word in self.words if key_of(word) not in values]
        return kept + [as_word(key, value) for key, value in values.items() if value is not None]

    def run_folder(self, values: Mapping[str, Any]) -> Path:
        """Where its run with these values is; ConfigError if there is no such run."""
        cfg = settled(with_values(self.raw, values))
        return Path(cfg["runs_dir"]) / run_id(cfg, self.data_digest)


@dataclass(frozen=True)
class Plan:
    settings: Settings  # see SETTINGS
    contenders: list[Contender]
    seed: int  # of the trials
    seeds: list[int]  # of the confirming runs
    folder: Path
    command: str

    def question(self) -> Settings:
        """What tells this study from others, for study.json; ConfigError if a number in it is not finite."""
        facts = {key: self.settings[key] for key in ("trials", "validation", "sampler", "pruner")}
        facts |= {"seeds": self.seeds, "seed": self.seed}
        facts |= {c.name: {"space": c.space, "runs": c.identity} for c in self.contenders}
        for key, value in flat(facts).items():
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                raise ConfigError(f"{key}: expected finite numbers in a study, got {value}") from None
        return facts


def plan_of(values: Settings, words: list[str]) -> Plan:
    """The plan that a command line asks for.

    Args:
        values: of SETTINGS.
        words: all others: Hydra's overrides of a run, or of the space; optimizer=a,b names the contenders.
    """
    name, seeds = values["name"], values["seeds"]
    if name is not None and ("/" in name or name in (".", "..")):
        raise ConfigError(f"name: expected a word without slashes, got {name!r}")
    keys = [key_of(word) for word in words]
    if refused := [key for key in NOT_FOR_STUDIES if key in keys]:
        raise ConfigError(f"{refused[0]}: this is a setting of runs and sweeps, not of tuning; leave it out")
    named = [word.partition("=")[2] for word, key in zip(words, keys, strict=True) if key == "optimizer"]
    names = named[-1].split(",") if named else [composed([])["optimizer"]["name"]]
    shared = [*own_files(values["config_dir"]), *(word for word in words if key_of(word) != "optimizer")]
    contenders = [_contender([*shared, f"optimizer={optimizer}"], values) for optimizer in dict.fromkeys(names)]
    cfg = contenders[0].cfg
    seed = cfg["seed"]
    if isinstance(seeds, int):
        seeds = [seed + 1 + i for i in range(seeds)]
    if seed in seeds:
        raise ConfigError(f"seeds: expected fresh seeds, got {seeds}; the trials have seed={seed}")
    name = name or "-".join([cfg["task"]["name"], *(c.name for c in contenders), cfg["data"]["profile"]])
    said = [as_word(key, values[key]) for key, setting in SETTINGS.items() if values[key] != setting.default]
    command = f"python -m tmbench.tune {shlex.join([*words, *said])}"
    return Plan(values, contenders, seed, seeds, Path(cfg["runs_dir"]) / FOLDER / name, command)


def _contender(words: list[str], values: Settings) -> Contender:
    of_space = [word for word in words if key_of(word).split(".")[0] == "space"]
    words = [word for word in words if word not in of_space]
    held_out = as_word("validation", values["validation"])
    raw = composed([*words, held_out, f"+space={values['space']}", *of_space])
    declared = raw.pop("space")
    cfg, space = settled(raw), space_of(declared, raw)
    if tuned := [key for key in map(key_of, words) if key in space]:
        raise ConfigError(f"{tuned[0]}: space={values['space']} tunes it; leave it out of the command")
    if values["sampler"] == "grid":
        all_of(space)  # raises if the space has no end
    file = f"task/{cfg['task']['name']}.yaml"
    _, _, data_digest = open_dataset(OmegaConf.create(cfg), imported(f"{file}: data", cfg["task"]["data"]))
    point = {key: spec["choices"][0] if "choices" in spec else spec["low"] for key, spec in space.items()}
    facts = identity(settled(with_values(raw, point)), data_digest)
    task: Any = imported(f"{file}: _target_", cfg["task"]["_target_"])
    return Contender(cfg["optimizer"]["name"], words, raw, cfg, data_digest, space, facts, task.higher_is_better)
