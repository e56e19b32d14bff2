"""What a judgement is asked to do: its settings, its methods, and its folder. Torch-free."""

import json
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from ..config.compose import composed, own_files
from ..config.identity import digest, identity, run_id, world_size
from ..config.overrides import key_of
from ..config.settle import Settings, flat, settled
from ..config.table import choices, conf_dir
from ..config.values import Setting
from ..data import open_dataset
from ..errors import ConfigError, DataError, did_you_mean, imported
from ..report.problems import problem_facts
from ..result import BOUNDED, FINAL, Result
from ..verbs import CONFIG_DIR, JSON

FOLDER = ".judge"  # of all judgements, under runs_dir
INSTEAD = {
    "seed": "say first_seed=..., from which the seeds are counted", "force": "remove runs that are to be repeated",
    **dict.fromkeys(("plan", "study", "fail_fast"), "this is a setting of sweeps; leave it out"),
}  # fmt: skip
SETTINGS = {
    "against": Setting("a word", "the baseline: the optimizer that the others are compared with", "sgd"),
    "margin": Setting("a number > 0, or null", "the largest difference that does not matter, in the metric's unit "
                      "(0.01 is one point of accuracy); null: that of conf/report.yaml"),
    "max_seeds": Setting("a whole number >= 1", "the last look; 34 find half a standard deviation in 4 of 5 cases", 34),
    "first_seed": Setting("a whole number >= 0", "the seeds are this one, the next, ...", 0),
    "alpha": Setting("a number between 0 and 1", "probability of a false verdict, over all looks and methods", 0.05),
    "name": Setting("a word without slashes, or null", "of the judgement's folder; null: of what it asks"),
    "out": Setting("a folder", "where the page, its figures and tables go, in a folder of the judgement's name",
                   "./judge"),
    "config_dir": CONFIG_DIR,
    "json": JSON,
}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One method, or the baseline."""

    name: str
    words: list[str]  # Hydra's overrides of all its runs, but for the seed
    raw: Settings  # as composed of these
    cfg: Settings  # settled
    data_digest: str

    def run_folder(self, seed: int) -> Path:
        cfg = settled(self.raw | {"seed": seed}) if self._seed_is_read else self.cfg | {"seed": seed}
        return Path(cfg["runs_dir"]) / run_id(cfg, self.data_digest)

    @cached_property
    def _seed_is_read(self) -> bool:
        """Whether another setting follows the seed, as one of a person's own may; to settle each seed takes time."""
        return "${seed" in json.dumps(self.raw, default=str)

    @cached_property
    def _known(self) -> dict[int, Result]:
        return {}

    def result(self, seed: int) -> Result | None:
        """The result of its run with this seed, if that is done; a damaged one is not, and the run says so."""
        if seed not in self._known:
            with suppress(DataError):
                result = Result.load(self.run_folder(seed))
                if result and result.status in FINAL:
                    self._known[seed] = result
        return self._known.get(seed)

    def facts(self) -> Settings:
        """What makes its numbers, but for the seed."""
        facts = identity(self.cfg, self.data_digest)
        del facts["seed"]
        return facts

    @property
    def processes(self) -> int:
        return world_size(self.cfg)


@dataclass(frozen=True)
class Plan:
    settings: Settings  # see SETTINGS
    methods: list[Contender]
    baseline: Contender
    search: list[str]  # the word for a person's own YAML files, if they have any
    command: str

    @property
    def contenders(self) -> list[Contender]:
        return [self.baseline, *self.methods]

    @property
    def runs_dir(self) -> Path:
        return Path(self.baseline.cfg["runs_dir"])

    @property
    def seeds(self) -> range:
        """All that it may take."""
        first = self.settings["first_seed"]
        return range(first, first + self.settings["max_seeds"])

    @cached_property
    def question(self) -> Settings:
        """What tells this judgement from others."""
        asked = {key: self.settings[key] for key in ("margin", "max_seeds", "first_seed", "alpha")}
        return {
            **asked, "against": self.baseline.name, "margins": report_defaults(),
            "methods": {contender.name: contender.facts() for contender in self.contenders},
        }  # fmt: skip

    @cached_property
    def name(self) -> str:
        cfg, names = self.baseline.cfg, [method.name for method in self.methods]
        words = [cfg["task"]["name"], *(names if len(names) < 5 else [f"{len(names)}-methods"]), self.baseline.name]
        return self.settings["name"] or "-".join([*words, cfg["data"]["profile"], digest(self.question)[:8]])

    @property
    def folder(self) -> Path:
        return self.runs_dir / FOLDER / self.name

    @property
    def page_folder(self) -> Path:
        return Path(self.settings["out"]) / self.name


def plan_of(values: Settings, words: list[str]) -> Plan:
    """The plan that a command line asks for.

    Args:
        values: of SETTINGS.
        words: all others: Hydra's overrides of a run; optimizer=a,b names the methods, and a.lr=0.1 is a setting of
            the method a alone.

    Raises:
        ConfigError, HydraException: a word is no setting, or there is nothing to compare.
    """
    name, against = values["name"], values["against"]
    if name is not None and ("/" in name or name.startswith(".")):
        raise ConfigError(f"name: expected a word without slashes, not beginning with a dot, got {name!r}")
    for word in words:
        if (key := key_of(word)) in INSTEAD:
            raise ConfigError(f"{key}: this is no setting of a judgement; {INSTEAD[key]}")
    named = [word.partition("=")[2] for word in words if key_of(word) == "optimizer"]
    names = named[-1].split(",") if named else [composed([])["optimizer"]["name"]]
    _check_names(names, against, values["config_dir"])
    search = own_files(values["config_dir"])
    contenders = [_contender(name, [against, *names], search, words, values) for name in (against, *names)]
    for contender in contenders[1:]:
        _check_problem(contender, contenders[0])
    said = [_as_word(key, values[key]) for key, setting in SETTINGS.items()
            if values[key] != setting.default and key != "json"]  # fmt: skip
    command = f"python -m tmbench.judge {shlex.join([*words, *said])}"
    return Plan(values, contenders[1:], contenders[0], search, command)


def _as_word(key: str, value: Any) -> str:
    return f"{key}={value}" if isinstance(value, str) else f"{key}={json.dumps(value)}"


def _check_names(names: list[str], against: str, config_dir: str | None) -> None:
    own = Path(config_dir) / "optimizer" if config_dir else None
    known = [*choices("optimizer"), *(sorted(path.stem for path in own.glob("*.yaml")) if own else [])]
    if against not in known:
        raise ConfigError(
            f"against: expected an optimizer, got {against}{did_you_mean(against, known)}\n"
            f"  possible here: {' '.join(known)}"
        )
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ConfigError(f"optimizer: expected each method once, got {twice[0]} twice; leave one out")
    if against in names:
        raise ConfigError(
            f"optimizer: expected methods other than the baseline, got {against}, which is against={against}; leave it "
            "out (the noise floor says how far its own runs are apart)"
        )


def _contender(name: str, names: list[str], search: list[str], words: list[str], settings: Settings) -> Contender:
    """One of the methods, whose own settings are words such as NAME.lr=0.1."""
    shared = [word for word in words if key_of(word).split(".")[0] not in (*names, "optimizer")]
    shared += [word for word in words if key_of(word).startswith("optimizer.")]
    own = [word.removeprefix(f"{name}.") for word in words if key_of(word).startswith(f"{name}.")]
    own_keys = {key_of(word) for word in own}
    words = [f"optimizer={name}", *(word for word in shared if key_of(word) not in own_keys), *own]
    raw = composed([*search, *words])
    if raw["replicas"] == "auto":
        words, raw = _with_replicas(words, raw, settings, len(names) - 1)
    cfg = settled(raw)
    data_class = imported(f"task/{cfg['task']['name']}.yaml: data", cfg["task"]["data"])
    return Contender(name, words, raw, cfg, open_dataset(OmegaConf.create(cfg), data_class)[2])


def _with_replicas(words: list[str], raw: Settings, settings: Settings, methods: int) -> tuple[list[str], Settings]:
    """The words and settings with the number that replicas=auto comes to: the fastest for the first look's seeds."""
    from ..sweeps.launchers.base import launcher_of
    from ..sweeps.plan import Job
    from ..sweeps.replicas import settle_auto
    from .design import Design

    least = Design(settings["max_seeds"], 1.0, settings["alpha"], methods).least_seeds()
    jobs = [Job(seed, words, raw | {"seed": seed}) for seed in range(least)]
    launcher = launcher_of(jobs)
    settle_auto(jobs, launcher is not None and launcher.elsewhere)
    return jobs[0].overrides, raw | {"replicas": jobs[0].raw["replicas"]}


def _check_problem(method: Contender, baseline: Contender) -> None:
    """Raises ConfigError where a setting of one method alone makes its problem another, such as NAME.epochs=5."""
    ours, theirs = flat(problem_facts(method.cfg)), flat(problem_facts(baseline.cfg))
    if differ := [key for key in ours | theirs if ours.get(key) != theirs.get(key)]:
        key = differ[0]
        raise ConfigError(
            f"{method.name}.{key}: expected the same problem for all methods, got {ours.get(key)} and, of "
            f"{baseline.name}, {theirs.get(key)}; say {key}=... for all of them"
        )


# ---- the metric and the margin


@dataclass(frozen=True)
class Metric:
    name: str
    higher_is_better: bool


def metric_of(plan: Plan, results: Iterable[Result]) -> Metric | None:
    """What ranks the runs, by a result if there is one; None if only a run can tell.

    Raises:
        ConfigError: the task does not say whether a higher value is better.
    """
    for result in results:
        return Metric(result.metric, result.higher_is_better)
    cfg = plan.baseline.cfg["task"]
    task = imported(f"task/{cfg['name']}.yaml: _target_", cfg["_target_"])
    if not isinstance(direction := getattr(task, "higher_is_better", None), bool):
        raise ConfigError(
            f"{cfg['_target_']}.higher_is_better: expected True or False, got {direction!r}; without it no method is "
            "better or worse"
        )
    return Metric(name, direction) if (name := getattr(task, "headline", "")) else None


def check_margin(margin: float | None, metric: str) -> None:
    """Raises ConfigError for a margin that no difference of the metric can exceed."""
    if margin is not None and margin >= 1 and metric in BOUNDED:
        raise ConfigError(
            f"margin: expected a difference below 1, since {metric} is between 0 and 1 (0.01 is one point), got "
            f"{margin:g}"
        )


def report_defaults() -> Settings:
    """What conf/report.yaml says of margins."""
    settings = yaml.safe_load((conf_dir() / "report.yaml").read_text(encoding="utf-8"))
    return {key: settings[key] for key in ("margin", "relative_margin")}
