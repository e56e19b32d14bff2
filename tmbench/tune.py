"""Tunes optimizers fairly: `python -m tmbench.tune task=tc optimizer=tmsgd,sgd trials=20 [any Hydra override]`.

Every optimizer gets as many trials, over the space that is declared for it. A trial is a run that holds out a share of
the training examples and is judged by them, after its last epoch. When all have had their trials, the best of each is
frozen in `choice.json`; only then do runs on all training examples, with fresh seeds, read the test split. A study is a
folder, and the same command goes on with it, however it was stopped:

    <runs>/.tune/<name>/study.json    what was asked for; another question is another study
                        trials.db     Optuna's record, a study for each optimizer
                        choice.json   what was chosen, and when
                        result.json   schema'd: space, budget, trials, choice and confirmation of each optimizer

A study that is stopped and goes on draws what it would have drawn: each trial has a sampler of its own seed, which
knows the trials before it. There are three exceptions. Trials after one that failed know less than they would have; the
quasi-random sampler leaves out a point if it is killed while it draws one; and a pruner does not look again at what a
trial had reached when it was killed.
"""

import argparse
import json
import math
import shlex
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from . import show
from .__main__ import EXPECTED, explain
from .config import Settings, conf_dir, identity, plain, settled, world_size
from .data import open_dataset
from .errors import ConfigError, DataError
from .files import locked, write
from .plan import Job, Recognizer, wanted
from .result import FINAL, Result, shown, versions
from .run import epochs_done, leave, run
from .runs import flat
from .space import Space, all_of, distributions, space_of, values_of, with_values

if TYPE_CHECKING:
    import optuna

STORE = ".tune"  # under runs_dir
SCHEMA = 1  # of a study's result.json
SAMPLERS, PRUNERS = ("tpe", "qmc", "grid"), ("none", "median")
RUNGS = 4  # parts of a run, after each of which a pruner looks at it
LEVEL = 0.95  # of intervals
MANY = 8  # differences that are told
PROGRAM = "python -m tmbench.tune"


@dataclass
class Contender:
    """One optimizer in a study."""

    name: str
    words: list[str]  # what all of its runs are asked for by
    raw: Settings  # as composed of these, held-out share included
    space: Space
    identity: Settings  # of its runs, at one point of the space
    epochs: int
    trials: list[Settings] = field(default_factory=list)
    choice: Settings | None = None
    confirmation: list[Settings] = field(default_factory=list)


class Composer:
    """Composes configurations from the words of a command line, with conf/ and a person's own folder of such files."""

    def __init__(self, config_dir: str | None) -> None:
        self.search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []

    def __call__(self, name: str, words: list[str]) -> Settings:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return plain(compose(name, [*self.search, *words]))


def word(key: str, value: Any) -> str:
    """A setting as a word of the command line."""
    return f"{key}={value}" if isinstance(value, str) else f"{key}={json.dumps(value)}"


class Study:
    """One study, from its command line to its result.

    Args:
        words: Hydra overrides, those of conf/tune.yaml among them.
        config_dir: a person's own folder of YAML files.
        command: what a person typed.

    Raises:
        ConfigError: something that was asked for cannot be.
    """

    def __init__(self, words: list[str], config_dir: str | None, command: str) -> None:
        self.compose, self.command = Composer(config_dir), command
        ours = {"space", *OmegaConf.load(conf_dir() / "tune.yaml")}
        mine = [w for w in words if _key(w).split(".")[0] in ours]
        rest = [w for w in words if w not in mine]
        self.settings = settings = self.compose("tune", mine)
        named = [w.split("=", 1)[1] for w in rest if _key(w) == "optimizer"]
        names = named[-1].split(",") if named else [self.compose("config", [])["optimizer"]["name"]]
        common = [w for w in rest if _key(w) != "optimizer"]
        _check(settings, rest)
        self.contenders = []
        for name in dict.fromkeys(names):
            own = [*common, f"optimizer={name}"]
            raw = self.compose("config", [*own, word("validation", settings["validation"])])
            self.contenders.append(self._contender(own, raw))
        cfg = settled(self.contenders[0].raw)
        self.task, self.seed, self.runs_dir = cfg["task"]["name"], cfg["seed"], Path(cfg["runs_dir"])
        seeds = settings["seeds"]
        self.seeds = [self.seed + 1 + i for i in range(seeds)] if isinstance(seeds, int) else seeds
        if self.seed in self.seeds:
            raise ConfigError(f"seeds: expected fresh ones, got {self.seeds}; the trials have seed={self.seed}")
        title = settings["name"] or "-".join([self.task, *(c.name for c in self.contenders), cfg["data"]["profile"]])
        self.folder = self.runs_dir / STORE / title
        self.recognizer = Recognizer(download=True)
        self.frozen = ""  # when the choice was
        self.begun: list[str] = []  # confirming runs that were begun before
        self.example: Result | None = None  # any of the study's runs

    def _contender(self, words: list[str], raw: Settings) -> Contender:
        cfg = settled(raw)
        space = space_of(self.settings["space"], raw)
        _, _, data_digest = open_dataset(OmegaConf.create(cfg), get_class(cfg["task"]["data"]))
        first = {key: spec["choices"][0] if "choices" in spec else spec["low"] for key, spec in space.items()}
        facts = identity(settled(with_values(raw, first)), data_digest)
        for key in map(_key, words):
            if key in space:
                raise ConfigError(f"{key}: it is tuned, by space={self.settings['space']['name']}; leave it out")
        if self.settings["sampler"] == "grid":
            all_of(space)  # or tells why not
        return Contender(cfg["optimizer"]["name"], words, raw, space, facts, cfg["epochs"])

    def run(self) -> None:
        """Does what of the study has to be done.

        Raises:
            ConfigError: the folder holds another study; a trial failed; or no trial of any optimizer has a value.
            DataError: what the folder holds is damaged.
            KeyboardInterrupt: a person or the scheduler wanted it to stop.
        """
        with locked(self.folder):
            self._is_the_one()
            chosen = self.folder / "choice.json"
            if not chosen.exists():
                for contender in self.contenders:
                    self._tune(contender)
                self._freeze(chosen)
            self._read(chosen)
            self._confirm()
            write(self.folder / "result.json", json.dumps(self.result(), indent=2) + "\n")

    def _is_the_one(self) -> None:
        """Checks that the folder's study, if there is one, asks what we ask."""
        asked = {key: self.settings[key] for key in ("trials", "validation", "sampler", "pruner")}
        asked |= {"seeds": self.seeds, "seed": self.seed}
        for contender in self.contenders:
            asked[contender.name] = {"space": contender.space, "runs": contender.identity}
        path = self.folder / "study.json"
        if not path.exists():
            write(path, json.dumps(asked, indent=2) + "\n")
        was, now = (flat(facts) for facts in (self._load(path), asked))
        if was != now:
            differ = [key for key in was | now if was.get(key) != now.get(key)]
            told = "\n".join(f"  {key}: was {was.get(key)}, is {now.get(key)}" for key in differ[:MANY])
            told += f"\n  and {len(differ) - MANY} more" if len(differ) > MANY else ""
            raise ConfigError(
                f"{self.folder}: expected the study that is there, got another:\n{told}\n"
                "  ask as before to go on with it, say name=... for a new one, or remove the folder"
            )

    def _load(self, path: Path) -> Settings:
        try:
            return dict(json.loads(path.read_text()))
        except ValueError:
            raise self._damaged(path) from None

    def _damaged(self, path: Path) -> DataError:
        return DataError(f"{path}: not as this program left it; say name=... for a new study, or remove {self.folder}")

    # Trials

    def _tune(self, contender: Contender) -> None:
        """Gives the optimizer its trials, as far as it has not had them."""
        study = self._open(contender)
        if set(contender.space) == {"switch_epoch"}:
            self._ask_for_states(contender)
        for trial in _asked(study):
            if trial.state.name == "RUNNING":  # stopped, or failed before
                self._try(contender, study, trial.number)
        while len(_asked(study)) < self.settings["trials"]:
            number = len(_asked(study))
            if self.settings["sampler"] == "grid":
                self._enqueue(contender, study, number)
            else:
                study.sampler = self._sampler(number)
            drawn = study.ask(distributions(contender.space))
            job = Job(number, [], with_values(contender.raw, values_of(contender.space, drawn.params)))
            self.recognizer.recognize(job)
            if job.folder is None:
                raise ConfigError(job.error)
            # From here on it counts.
            known = job.state in ("known", "same")
            drawn.set_user_attr("asked", {"number": number, "run": job.folder.name, "known_before": known})
            self._try(contender, study, drawn.number)
        contender.trials = self._trials(contender, study)
        failed = [trial for trial in contender.trials if trial["status"] == "failed"]
        if failed:
            told = "\n".join(f"  trial {t['number']} ({_words(t['values'])}): {t['error']}" for t in failed)
            raise ConfigError(
                f"{contender.name}: {len(failed)} of {len(contender.trials)} trials failed, so nothing is chosen yet:\n"
                f"{told}\n  mend it and give the same command again, which repeats them; or leave it out of the space"
            )

    def _ask_for_states(self, contender: Contender) -> None:
        """Trials that differ in their switch alone train their common beginning once, whatever the order."""
        points = [values_of(contender.space, point) for point in all_of(contender.space)]
        jobs = [Job(i, [], with_values(contender.raw, values)) for i, values in enumerate(points)]
        recognizer = Recognizer(download=True)
        for job in jobs:
            recognizer.recognize(job)
        for trunk, epoch, needs in wanted(jobs):
            trunk.ask(epoch, needs)

    @cached_property
    def _storage(self) -> Any:
        optuna = _optuna()
        from sqlalchemy import URL
        from sqlalchemy.exc import DatabaseError

        path = (self.folder / "trials.db").resolve()
        try:
            return optuna.storages.RDBStorage(URL.create("sqlite", database=str(path)).render_as_string())
        except DatabaseError:
            raise self._damaged(path) from None

    def _open(self, contender: Contender) -> "optuna.Study":
        optuna = _optuna()
        study = optuna.create_study(
            storage=self._storage, study_name=contender.name, load_if_exists=True, pruner=self._pruner(),
            direction="maximize" if self._higher_is_better(contender) else "minimize",
        )  # fmt: skip
        for trial in study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING" and "asked" not in trial.user_attrs:  # killed while it was asked for
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return study

    @staticmethod
    def _higher_is_better(contender: Contender) -> bool:
        cls: Any = get_class(contender.raw["task"]["_target_"])
        return bool(cls.higher_is_better)

    def _enqueue(self, contender: Contender, study: "optuna.Study", number: int) -> None:
        """Says which point is next: all in an order of the seed's, then again."""
        import numpy as np

        from .loader import derive

        points = all_of(contender.space)
        order = np.random.default_rng(derive("trials", self.seed)).permutation(len(points))
        if not any(trial.state.name == "WAITING" for trial in study.get_trials(deepcopy=False)):
            study.enqueue_trial(points[order[number % len(points)]])

    def _sampler(self, number: int) -> Any:
        from .loader import derive

        samplers = _optuna().samplers
        if self.settings["sampler"] == "qmc":  # one sequence, of which each trial takes the next point
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=_optuna().exceptions.ExperimentalWarning)
                return samplers.QMCSampler(scramble=True, seed=derive("trials", self.seed))
        seed = derive("trial", self.seed, number)
        return samplers.TPESampler(seed=seed, n_startup_trials=max(1, min(10, self.settings["trials"] // 2)))

    def _pruner(self) -> Any:
        pruners = _optuna().pruners
        return pruners.MedianPruner() if self.settings["pruner"] == "median" else pruners.NopPruner()

    def _try(self, contender: Contender, study: "optuna.Study", number: int) -> None:
        """Does a trial's run and tells Optuna what came of it; nothing if it failed, so that it is tried again."""
        optuna = _optuna()
        frozen = study.get_trials(deepcopy=False)[number]
        trial = optuna.trial.Trial(study, frozen._trial_id)  # there is no other way to an old one
        values = values_of(contender.space, frozen.params)
        asked = frozen.user_attrs["asked"]
        place = f"trial {asked['number'] + 1} of {self.settings['trials']}"
        print(f"\n{contender.name} {place}: {_words(values)}", file=sys.stderr)
        ends: list[int | None] = [None]
        if self.settings["pruner"] != "none":
            ends = [*sorted({-(-contender.epochs * k // RUNGS) for k in range(1, RUNGS)} - {contender.epochs}), None]
        for end in ends:
            if end is not None and epochs_done(self.runs_dir / asked["run"]) >= end:
                continue  # a study that was stopped
            try:
                result, folder = self._run(contender, values, end)
            except EXPECTED:
                raise
            except Exception as error:
                trial.set_user_attr("done", {"status": "failed", "error": f"{type(error).__name__}: {error}"})
                print(explain(error), file=sys.stderr)
                return
            value = _finite(result.metrics["last"].get(result.headline))
            about: Settings = {
                "status": result.status, "seconds": result.seconds + result.evaluation_seconds,
                "device_seconds": 0.0 if asked["known_before"] else device_seconds(contender, result),
                "diverged_at": result.diverged_at, "value": value,
            }  # fmt: skip
            if result.status in FINAL:
                break
            if end is None or epochs_done(folder) < end:
                raise KeyboardInterrupt
            if value is not None and end not in frozen.intermediate_values:
                trial.report(value, end)
            if trial.should_prune():
                about["status"] = "pruned"
                break
        trial.set_user_attr("done", about)
        if about["status"] == "pruned":
            study.tell(number, state=optuna.trial.TrialState.PRUNED)
            return
        worst = -math.inf if result.higher_is_better else math.inf
        study.tell(number, worst if value is None or result.status == "diverged" else value)

    def _run(self, contender: Contender, values: Settings, until: int | None = None) -> tuple[Result, Path]:
        """The optimizer's run with these values; by the validation split, unless they say otherwise."""
        said = {"validation": self.settings["validation"]} | values
        words = [w for w in contender.words if _key(w) not in said]
        words += [word(key, value) for key, value in said.items() if value is not None]
        cfg = OmegaConf.create(with_values(contender.raw, said))
        result, folder, _ = run(cfg, f"python -m tmbench {shlex.join(words)}", until)
        return result, folder

    def _trials(self, contender: Contender, study: "optuna.Study") -> list[Settings]:
        """What is known of each trial, in order."""
        found = []
        for trial in _asked(study):
            done: Settings = {"value": None, "seconds": 0.0, "device_seconds": 0.0, "diverged_at": None, "error": None}
            done |= trial.user_attrs["done"]
            if done["status"] != "completed":
                done["value"] = None
            found.append(trial.user_attrs["asked"] | {"values": values_of(contender.space, trial.params)} | done)
        return found

    # The choice and its confirmation

    def _freeze(self, path: Path) -> None:
        """Writes down the best trial of each optimizer, of equals the first; None if none has a value."""
        choices = {}
        for contender in self.contenders:
            good = [trial for trial in contender.trials if trial["value"] is not None]
            sign = -1 if self._higher_is_better(contender) else 1
            choices[contender.name] = min(good, key=lambda trial: sign * trial["value"], default=None)
        if not any(choices.values()):
            raise ConfigError(
                f"{', '.join(choices)}: no trial came to a finite value, so there is nothing to choose; "
                "expected a space with smaller rates"
            )
        begun = []  # by another command: these have read the test split already
        for contender in self.contenders:
            if (own := choices[contender.name]) is None:
                continue
            for seed in self.seeds:
                values = {**own["values"], "validation": None, "seed": seed}
                job = Job(seed, [], with_values(contender.raw, values))
                self.recognizer.recognize(job)
                begun += [job.folder.name] if job.folder and job.state != "new" else []
        kept = ("number", "values", "value", "run")
        write(path, json.dumps({
            "frozen": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "choices": {name: own and {key: own[key] for key in kept} for name, own in choices.items()},
            "begun_before": begun,
        }, indent=2) + "\n")  # fmt: skip

    def _read(self, path: Path) -> None:
        """What was chosen, and the trials that led to it."""
        told = self._load(path)
        self.frozen, self.begun = told["frozen"], told["begun_before"]
        for contender in self.contenders:
            contender.choice = told["choices"][contender.name]
            contender.trials = contender.trials or self._trials(contender, self._open(contender))
            if len(contender.trials) < self.settings["trials"]:
                raise self._damaged(self.folder / "trials.db")

    def _confirm(self) -> None:
        """Runs what was chosen on all training examples, with fresh seeds; the first to read the test split."""
        for contender in self.contenders:
            if contender.choice is None:
                continue
            for seed in self.seeds:
                values = contender.choice["values"]
                print(f"\n{contender.name} with seed={seed}, to confirm {_words(values)}", file=sys.stderr)
                result, folder = self._run(contender, values | {"validation": None, "seed": seed})
                if result.status not in FINAL:
                    raise KeyboardInterrupt
                value = result.metrics["last"].get(result.headline) if result.status == "completed" else None
                contender.confirmation.append({
                    "seed": seed, "status": result.status, "value": _finite(value), "run": folder.name,
                    "command": result.command, "device_seconds": device_seconds(contender, result),
                })  # fmt: skip
                self.example = result

    def result(self) -> Settings:
        """All that there is to say of the study."""
        example = self.example
        assert example is not None
        return {
            "schema_version": SCHEMA, "name": self.folder.name, "task": self.task, "profile": example.profile,
            "headline": example.headline, "higher_is_better": example.higher_is_better, "command": self.command,
            "budget": {
                "trials": self.settings["trials"], "epochs": self.contenders[0].epochs, "seed": self.seed,
                **{key: self.settings[key] for key in ("sampler", "pruner")},
            },
            "validation": {
                "share": self.settings["validation"], "of": "the training examples, the same ones in every trial",
                "judged_by": "the headline metric after the last epoch",
            },
            "test": {
                "choice_frozen": self.frozen, "read_only_after_it": not self.begun, "runs_begun_before": self.begun,
                "judged_by": "the headline metric after the last epoch; nothing is chosen by it",
            },
            "optimizers": {
                contender.name: {
                    "space": contender.space,
                    "used": {
                        "trials": len(contender.trials), **_counts(contender.trials),
                        **{key: sum(t[key] for t in contender.trials) for key in ("device_seconds", "seconds")},
                    },
                    "choice": contender.choice,
                    "confirmation": {
                        **summary([own["value"] for own in contender.confirmation]), "runs": contender.confirmation,
                    },
                    "trials": contender.trials,
                }
                for contender in self.contenders
            },
            "differences": self._differences(),
            "versions": {**versions(), "optuna": _optuna().__version__}, "hardware": example.hardware,
            "git_commit": example.git_commit, "data_digest": example.data_digest,
        }  # fmt: skip

    def _differences(self) -> Settings:
        """Of each two optimizers, the first less the second on the same seeds."""
        found = {}
        for i, a in enumerate(self.contenders):
            for b in self.contenders[i + 1 :]:
                pairs = zip(a.confirmation, b.confirmation, strict=False)
                values = [
                    None if x["value"] is None or y["value"] is None else x["value"] - y["value"] for x, y in pairs
                ]
                found[f"{a.name} - {b.name}"] = summary(values)
        return found


def device_seconds(contender: Contender, result: Result) -> float:
    """What a run has cost here: training and evaluating its epochs, less those that came from a shared trunk."""
    trained = result.epochs["trained"]
    own = (trained - result.epochs["from_trunk"]) / trained if trained else 1.0
    return own * (result.seconds + result.evaluation_seconds) * world_size(settled(contender.raw))


def summary(values: list[float | None]) -> Settings:
    """Mean, deviation and Student's interval of the mean, of the values that there are."""
    known = [value for value in values if value is not None]
    n, spread = len(known), statistics.stdev(known) if len(known) > 1 else None
    mean = statistics.fmean(known) if known else None
    interval = None
    if mean is not None and spread is not None:
        from scipy.stats import t

        half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * spread / math.sqrt(n)
        interval = [mean - half, mean + half]
    return {"n": n, "missing": len(values) - n, "mean": mean, "deviation": spread, "level": LEVEL, "interval": interval}


def table(result: Settings, console: Console) -> None:
    """What came of a study: a line an optimizer, then the differences."""
    key, budget = result["headline"], result["budget"]
    title = f"{result['task']}: {budget['trials']} trials of {budget['epochs']} epochs each, by {budget['sampler']}"
    lines = Table(title=f"{title}   {result['profile']} data", title_justify="left")
    for name in ("optimizer", "choice", "validation", "trials", "device time", key, f"{LEVEL:.0%} interval"):
        words = name in ("optimizer", "choice")
        lines.add_column(name, justify="left" if words else "right", no_wrap=name != "choice")
    for name, own in result["optimizers"].items():
        used, choice, confirmed = own["used"], own["choice"], own["confirmation"]
        bad = [f"{used[status]} {status}" for status in ("diverged", "pruned", "without value") if used[status]]
        lines.add_row(
            name, _words(choice["values"]) if choice else "[yellow]none: no trial came to a finite value[/]",
            shown(choice and choice["value"], key), ", ".join([str(used["trials"]), *bad]),
            show.duration(used["device_seconds"]), shown(confirmed["mean"], key), _interval(confirmed, key),
        )  # fmt: skip
    console.print()
    console.print(lines)
    for name, own in result["differences"].items():
        told = f"{shown(own['mean'], key)} ({_interval(own, key)})".replace(" %", " points")
        console.print(f"{name}   {told}, paired by seed", highlight=False)
    test = result["test"]
    told = f"read only after the choice was frozen, {test['choice_frozen']}"
    if begun := len(test["runs_begun_before"]):
        told = f"[yellow]{begun} of the confirming runs were begun before the choice, by another command[/]"
    console.print(f"test       {told}", highlight=False)


def _interval(own: Settings, key: str) -> str:
    missing = f", {own['missing']} diverged" if own["missing"] else ""
    if own["interval"] is None:
        return f"n={own['n']}{missing}: no interval"
    low, high = (shown(end, key) for end in own["interval"])
    return f"{low} to {high}, n={own['n']}{missing}"


def _counts(trials: list[Settings]) -> Settings:
    statuses = [trial["status"] for trial in trials]
    nothing = sum(t["status"] == "completed" and t["value"] is None for t in trials)
    return {status: statuses.count(status) for status in ("completed", "diverged", "pruned")} | {
        "without value": nothing,
        "known_before": sum(trial["known_before"] for trial in trials),
    }


def _check(settings: Settings, words: list[str]) -> None:
    """Raises ConfigError for a setting of the study that cannot be."""
    rules = {
        "trials": (_is_count(settings["trials"]), "a whole number >= 1"),
        "validation": (
            isinstance(settings["validation"], float) and 0 < settings["validation"] < 1, "a number between 0 and 1"
        ),
        "sampler": (settings["sampler"] in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
        "pruner": (settings["pruner"] in PRUNERS, f"one of {', '.join(PRUNERS)}"),
        "seeds": (_is_count(settings["seeds"]) or _are_seeds(settings["seeds"]), "how many, or a list of them"),
        "name": (settings["name"] is None or _is_name(settings["name"]), "a word without slashes"),
    }  # fmt: skip
    for key, (right, expected) in rules.items():
        if not right:
            raise ConfigError(f"{key}: expected {expected}, got {settings[key]!r}")
    for key in ("force", "plan", "study"):
        if any(_key(w) == key for w in words):
            raise ConfigError(f"{key}: it is for runs and sweeps, not for tuning; leave it out")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_seeds(values: Any) -> bool:
    right = isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
    return right and 0 < len(values) == len(set(values))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value


def _key(w: str) -> str:
    return w.lstrip("+~").split("=", 1)[0]


def _words(values: Settings) -> str:
    shorter = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
    return " ".join(word(key, value) for key, value in shorter.items()) or "nothing to tune"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _asked(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials that count, in order."""
    trials = [t for t in study.get_trials(deepcopy=False) if "asked" in t.user_attrs]
    return sorted(trials, key=lambda t: t.user_attrs["asked"]["number"])


def _optuna() -> Any:
    try:
        import optuna
        import scipy  # noqa: F401  (of the quasi-random sampler, and of intervals)
    except ModuleNotFoundError:
        raise ConfigError("tuning needs packages: pip install 'tmbench[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Gives every optimizer the same number of trials on a validation split, then confirms each choice "
        "with fresh seeds on the test split.",
        epilog="Example: python -m tmbench.tune task=tc optimizer=tmsgd,sgd trials=20 seeds=5. Its own settings are "
        "those of conf/tune.yaml: trials validation seeds sampler pruner name space; all others are a run's.",
    )
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="Hydra overrides; optimizer=a,b,... compares")
    parser.add_argument("--config-dir", metavar="DIR", help="your own space/, task/ and optimizer/ files")
    asked = parser.parse_args(words)
    try:
        _optuna()
        study = Study(asked.words, asked.config_dir, f"{PROGRAM} {shlex.join(words)}")
        study.run()
    except EXPECTED as error:
        print(explain(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    console = show.console()
    table(study.result(), console)
    console.print(f"files      {study.folder}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    leave(main())
