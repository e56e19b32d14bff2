"""Tunes optimizers fairly: `python -m tmbench.tune task=tc optimizer=tmsgd,sgd trials=20 [any Hydra override]`.

Every optimizer gets as many trials, over the space that is declared for it. A trial is a run that holds out a share of
the training examples and is judged by them, after its last epoch. When all have had their trials, the best of each is
frozen in `choice.json`; only then do runs on all training examples, with fresh seeds, read the test split. A study is a
folder, and the same command goes on with it, however it was stopped:

    <runs>/.tune/<name>/study.json    what was asked for; another question is another study
                        trials.json   each optimizer's trials: what was drawn, and what came of it
                        choice.json   what was chosen, and when
                        result.json   schema'd: space, budget, trials, choice and confirmation of each optimizer

The first three are sealed with a digest. Trials are compared with their runs before anything is chosen, and the choice
with the trials before it is confirmed.

A study that is stopped and goes on draws what it would have drawn: each trial has a sampler of its own seed, which
knows the trials before it from trials.json. There are two exceptions. Trials after one that failed know less than they
would have; and a pruner does not look again at what a trial had reached when it was killed.
"""

import json
import math
import shlex
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from ..config.compose import SEARCH, composed
from ..config.identity import identity, world_size
from ..config.overrides import key_of
from ..config.settle import Settings, flat, settled
from ..config.table import conf_dir
from ..data import open_dataset
from ..errors import ConfigError, DataError
from ..files import locked, read_sealed, write, write_sealed
from ..result import FINAL, Result, epochs_done, shown, versions
from ..run import run
from ..runs import show
from ..sweeps.plan import Job, RunFinder, states_to_share
from ..verbs import EXPECTED, explain
from .space import Space, all_of, distributions, space_of, values_of, with_values

if TYPE_CHECKING:
    import optuna

STORE = ".tune"  # under runs_dir
SCHEMA = 2  # of a study's result.json
SAMPLERS, PRUNERS = ("tpe", "qmc", "grid"), ("none", "median")
RUNGS = 4  # parts of a run, after each of which a pruner looks at it
LEVEL = 0.95  # of intervals
MANY = 8  # differences that are told


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
        self.search = [f"{SEARCH}={json.dumps([f'file://{Path(config_dir).resolve()}'])}"] if config_dir else []

    def __call__(self, name: str, words: list[str]) -> Settings:
        return composed([*self.search, *words], name)


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
        mine = [w for w in words if key_of(w).split(".")[0] in ours]
        rest = [w for w in words if w not in mine]
        self.settings = settings = self.compose("tune", mine)
        named = [w.split("=", 1)[1] for w in rest if key_of(w) == "optimizer"]
        names = named[-1].split(",") if named else [self.compose("config", [])["optimizer"]["name"]]
        common = [w for w in rest if key_of(w) != "optimizer"]
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
        self.finder = RunFinder(download=True)
        self.records: dict[str, list[Settings]] = {}  # the trials of each optimizer, as in trials.json
        self.frozen = ""  # when the choice was
        self.begun: list[str] = []  # confirming runs that were begun before
        self.example: Result | None = None  # any of the confirming runs
        self.floor: float | None = None  # what one that diverged counts as

    def _contender(self, words: list[str], raw: Settings) -> Contender:
        cfg = settled(raw)
        space = space_of(self.settings["space"], raw)
        _, _, data_digest = open_dataset(OmegaConf.create(cfg), get_class(cfg["task"]["data"]))
        first = {key: spec["choices"][0] if "choices" in spec else spec["low"] for key, spec in space.items()}
        facts = identity(settled(with_values(raw, first)), data_digest)
        for key in map(key_of, words):
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
            trials, chosen = self.folder / "trials.json", self.folder / "choice.json"
            if trials.exists():
                self.records = self._load(trials, "remove it: the same command asks for the same trials, now known")
            for contender in self.contenders:
                self._tune(contender)
            if not chosen.exists():
                self._freeze(chosen)
            self._read(chosen)
            self._confirm()
            write(self.folder / "result.json", json.dumps(self.result(), indent=2, allow_nan=False) + "\n")

    def _is_the_one(self) -> None:
        """Checks that the folder's study, if there is one, asks what we ask."""
        asked = {key: self.settings[key] for key in ("trials", "validation", "sampler", "pruner")}
        asked |= {"seeds": self.seeds, "seed": self.seed}
        for contender in self.contenders:
            asked[contender.name] = {"space": contender.space, "runs": contender.identity}
        for key, value in flat(asked).items():
            if not _is_json(value):
                raise ConfigError(f"{key}: expected finite numbers in a study, got {value}")
        path = self.folder / "study.json"
        if not path.exists():
            write_sealed(path, asked)
        remedy = f"say name=... for a new study, or remove {self.folder}"
        was, now = (flat(facts) for facts in (self._load(path, remedy), asked))
        if was != now:
            differ = [key for key in was | now if was.get(key) != now.get(key)]
            told = "\n".join(f"  {key}: was {was.get(key)}, is {now.get(key)}" for key in differ[:MANY])
            told += f"\n  and {len(differ) - MANY} more" if len(differ) > MANY else ""
            raise ConfigError(
                f"{self.folder}: expected the study that is there, got another:\n{told}\n"
                "  ask as before to go on with it, say name=... for a new one, or remove the folder"
            )

    @staticmethod
    def _load(path: Path, remedy: str) -> Settings:
        try:
            return read_sealed(path)
        except DataError as error:
            raise DataError(f"{error}; {remedy}") from None

    # Trials

    def _tune(self, contender: Contender) -> None:
        """Gives the optimizer its trials, as far as it has not had them."""
        records = self.records.setdefault(contender.name, [])
        study = self._study(contender, records)
        if set(contender.space) == {"switch_epoch"} and len(records) < self.settings["trials"]:
            self._ask_for_states(contender)
        for record in records:
            if not record["done"] or record["done"]["status"] == "failed":  # stopped, or failed before
                self._try(contender, study, record)
        for number in range(len(records), self.settings["trials"]):
            if self.settings["sampler"] == "grid":
                study.enqueue_trial(self._point(contender, number))
            else:
                study.sampler = self._sampler(number)
            params = study.ask(distributions(contender.space)).params
            folder, known = self._recognized(contender, number, params)
            # From here on it counts.
            record = {
                "number": number, "run": folder.name, "known_before": known, "params": params, "reported": [],
                "done": None,
            }  # fmt: skip
            records.append(record)
            self._save()
            self._try(contender, study, record)
        contender.trials = [self._checked(contender, record) for record in records]
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
        finder = RunFinder(download=True)
        for job in jobs:
            finder.find(job)
        for trunk, epoch, needs in states_to_share(jobs):
            trunk.request(epoch, needs)

    def _recognized(self, contender: Contender, number: int, params: Settings) -> tuple[Path, bool]:
        """The folder of a trial's run, and whether it was done before."""
        job = Job(number, [], with_values(contender.raw, values_of(contender.space, params)))
        self.finder.find(job)
        if job.folder is None:
            raise ConfigError(job.error)
        return job.folder, job.state in ("known", "same")

    def _save(self) -> None:
        write_sealed(self.folder / "trials.json", self.records)

    def _study(self, contender: Contender, records: list[Settings]) -> "optuna.Study":
        """Optuna's study of the optimizer, in memory, made of the trials so far; unfinished ones are running there."""
        optuna = _optuna()
        higher = self._higher_is_better(contender)
        study = optuna.create_study(pruner=self._pruner(), direction="maximize" if higher else "minimize")
        for record in records:
            state, value = _told(record, higher)
            study.add_trial(optuna.trial.create_trial(
                state=optuna.trial.TrialState[state], value=value, params=record["params"],
                distributions=distributions(contender.space), intermediate_values=dict(record["reported"]),
            ))  # fmt: skip
        return study

    @staticmethod
    def _higher_is_better(contender: Contender) -> bool:
        cls: Any = get_class(contender.raw["task"]["_target_"])
        return bool(cls.higher_is_better)

    def _point(self, contender: Contender, number: int) -> dict[str, Any]:
        """A grid's point: all in an order of the seed's, then again."""
        import numpy as np

        from ..seeds import derive

        points = all_of(contender.space)
        order = np.random.default_rng(derive("trials", self.seed)).permutation(len(points))
        return points[order[number % len(points)]]

    def _sampler(self, number: int) -> Any:
        from ..seeds import derive

        if self.settings["sampler"] == "qmc":  # one sequence, of which each trial takes its point
            return _quasi_random(number, derive("trials", self.seed))
        # Said, not left to the version: knows pairs of settings, and no trial is under way while another is drawn.
        return _optuna().samplers.TPESampler(
            seed=derive("trial", self.seed, number), n_startup_trials=max(1, min(10, self.settings["trials"] // 2)),
            multivariate=True, constant_liar=False,
        )  # fmt: skip

    def _pruner(self) -> Any:
        pruners = _optuna().pruners
        return pruners.MedianPruner() if self.settings["pruner"] == "median" else pruners.NopPruner()

    def _try(self, contender: Contender, study: "optuna.Study", record: Settings) -> None:
        """Does a trial's run and notes what came of it; one that failed is tried again by the next command."""
        optuna = _optuna()
        number, values = record["number"], values_of(contender.space, record["params"])
        frozen = study.get_trials(deepcopy=False)[number]
        trial = optuna.trial.Trial(study, frozen._trial_id)  # there is no other way to an old one
        place = f"trial {number + 1} of {self.settings['trials']}"
        print(f"\n{contender.name} {place}: {_words(values)}", file=sys.stderr)
        ends: list[int | None] = [None]
        if self.settings["pruner"] != "none":
            ends = [*sorted({-(-contender.epochs * k // RUNGS) for k in range(1, RUNGS)} - {contender.epochs}), None]
        for end in ends:
            if end is not None and epochs_done(self.runs_dir / record["run"]) >= end:
                continue  # a study that was stopped
            try:
                result, folder = self._run(contender, values, end)
            except EXPECTED:
                raise
            except Exception as error:
                record["done"] = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
                self._save()
                print(explain(error), file=sys.stderr)
                return
            value = _finite(result.metrics["last"].get(result.headline))
            about: Settings = {
                "status": result.status, "seconds": result.seconds + result.evaluation_seconds,
                "device_seconds": 0.0 if record["known_before"] else device_seconds(contender, result),
                "diverged_at": result.diverged_at, "value": value,
            }  # fmt: skip
            if result.status in FINAL:
                break
            if end is None or epochs_done(folder) < end:
                raise KeyboardInterrupt
            if value is not None and end not in dict(record["reported"]):
                trial.report(value, end)
                record["reported"].append([end, value])
                self._save()
            if trial.should_prune():
                about["status"] = "pruned"
                break
        record["done"] = about
        self._save()
        state, told = _told(record, self._higher_is_better(contender))
        study.tell(number, None if state == "PRUNED" else told, state=optuna.trial.TrialState[state])

    def _run(self, contender: Contender, values: Settings, until: int | None = None) -> tuple[Result, Path]:
        """The optimizer's run with these values; by the validation split, unless they say otherwise."""
        said = {"validation": self.settings["validation"]} | values
        words = [w for w in contender.words if key_of(w) not in said]
        words += [word(key, value) for key, value in said.items() if value is not None]
        words = [*self.compose.search, *words]
        cfg = OmegaConf.create(with_values(contender.raw, said))
        result, folder, _ = run(cfg, f"python -m tmbench {shlex.join(words)}", until, words=words)
        return result, folder

    def _checked(self, contender: Contender, record: Settings) -> Settings:
        """What is known of a trial, once compared with its run; a run that is gone is repeated.

        Raises:
            DataError: the run says something else.
        """
        done: Settings = {"value": None, "seconds": 0.0, "device_seconds": 0.0, "diverged_at": None, "error": None}
        done |= record["done"]
        values = values_of(contender.space, record["params"])
        if done["status"] in FINAL:
            folder, _ = self._recognized(contender, record["number"], record["params"])
            noted: list[Any] = [record["run"], done["status"], done["value"]]
            found: list[Any] = [folder.name]
            if folder.name == record["run"]:
                result = Result.load(folder)
                if result is None or result.status not in FINAL:  # gone, or stopped while it was repeated
                    result = self._run(contender, values)[0]
                if result.status not in FINAL:
                    raise KeyboardInterrupt
                found += [result.status, _finite(result.metrics["last"].get(result.headline))]
            if noted != found:
                raise DataError(
                    f"{self.folder / 'trials.json'}: {contender.name}'s trial {record['number']} ({_words(values)}) is "
                    f"noted as {', '.join(map(str, noted))}; its run is {', '.join(map(str, found))}\n"
                    "  remove trials.json and choice.json to ask for the same trials again, or the run's folder if it "
                    "was changed"
                )
        if done["status"] != "completed":
            done["value"] = None
        kept = {key: record[key] for key in ("number", "run", "known_before")}
        return kept | {"values": values} | done

    # The choice and its confirmation

    def _freeze(self, path: Path) -> None:
        """Writes down the best trial of each optimizer."""
        choices = self._choices()
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
                self.finder.find(job)
                begun += [job.folder.name] if job.folder and job.state != "new" else []
        write_sealed(path, {
            "frozen": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "choices": choices, "begun_before": begun,
        })  # fmt: skip

    def _choices(self) -> dict[str, Settings | None]:
        """The best trial of each optimizer, of equals the first; None if none has a value."""
        choices = {}
        for contender in self.contenders:
            good = [trial for trial in contender.trials if trial["value"] is not None]
            sign = -1 if self._higher_is_better(contender) else 1
            best = min(good, key=lambda trial: sign * trial["value"], default=None)
            choices[contender.name] = best and {key: best[key] for key in ("number", "values", "value", "run")}
        return choices

    def _read(self, path: Path) -> None:
        """Takes what was chosen."""
        remedy = "remove it: the same command chooses again, from the same trials"
        told = self._load(path, remedy)
        if told["choices"] != self._choices():
            raise DataError(f"{path}: its choices are not the best of the trials in trials.json; {remedy}")
        self.frozen, self.begun = told["frozen"], told["begun_before"]
        for contender in self.contenders:
            contender.choice = told["choices"][contender.name]

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
        self._count()

    def _count(self) -> None:
        """Says what each confirming run counts as: its value; of one that diverged what the report counts it as."""
        from ..report.statistics import worth

        assert self.example is not None
        higher, baseline = self.example.higher_is_better, self.example.baseline.get(self.example.headline)
        runs = [own for contender in self.contenders for own in contender.confirmation]
        worst = (min if higher else max)((own["value"] for own in runs if own["value"] is not None), default=None)
        self.floor = worth(None, baseline, worst, higher)
        for own in runs:
            own["counts_as"] = worth(own["value"], baseline, worst, higher)

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
                "diverged_count_as": self.floor,
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
                        **summary([own["counts_as"] for own in contender.confirmation], self._limits()),
                        "diverged": sum(own["value"] is None for own in contender.confirmation),
                        "runs": contender.confirmation,
                    },
                    "trials": contender.trials,
                }
                for contender in self.contenders
            },
            "differences": self._differences(),
            "versions": {**versions(), "optuna": _optuna().__version__}, "hardware": example.hardware,
            "git_commit": example.git_commit, "data_digest": example.data_digest,
        }  # fmt: skip

    def _limits(self) -> tuple[float, float]:
        """Between which values the mean of the headline metric must be."""
        from ..result import BOUNDED

        assert self.example is not None
        return (0.0, 1.0) if self.example.headline.split("/")[-1] in BOUNDED else (-math.inf, math.inf)

    def _differences(self) -> Settings:
        """Of each two optimizers, the first less the second on the same seeds."""
        from ..report.statistics import RESOLUTION

        found = {}
        low, high = self._limits()
        for a, b in combinations(self.contenders, 2):
            first, second = ({own["seed"]: own for own in each.confirmation} for each in (a, b))
            pairs = [(first[seed], second[seed]) for seed in first if seed in second]
            values = [
                None if x["counts_as"] is None or y["counts_as"] is None else x["counts_as"] - y["counts_as"]
                for x, y in pairs
            ]
            # Scores come as float32: what is equal in truth comes out a little apart, which is no spread.
            near = [
                None if value is None else RESOLUTION * max(abs(x["counts_as"]), abs(y["counts_as"]))
                for value, (x, y) in zip(values, pairs, strict=True)
            ]
            found[f"{a.name} - {b.name}"] = {
                **summary(values, (low - high, high - low), near),
                "diverged": sum(x["value"] is None or y["value"] is None for x, y in pairs),
            }
        return found


def device_seconds(contender: Contender, result: Result) -> float:
    """What a run has cost here: training and evaluating its epochs, less those that came from a shared trunk."""
    trained = result.epochs["trained"]
    own = (trained - result.epochs["from_trunk"]) / trained if trained else 1.0
    return own * (result.seconds + result.evaluation_seconds) * world_size(settled(contender.raw))


def summary(
    values: list[float | None], limits: tuple[float, float], near: "list[float | None] | None" = None
) -> Settings:
    """Mean, deviation and Student's interval of the mean.

    Args:
        values: one a seed; None of a run that diverged and has no value. There is no mean then, nor an interval.
        limits: between which the mean must be; the interval ends there.
        near: how far from an equal one each value may come out, see report.statistics; None for not at all.

    Returns:
        None in place of what there is not: no interval of one seed, or of seeds without a spread, which is no evidence.
    """
    known = [value for value in values if value is not None]
    all_known = len(known) == len(values) > 0
    mean = statistics.fmean(known) if all_known else None
    spread = statistics.stdev(known) if all_known and len(known) > 1 else None
    if spread and near:
        import numpy as np

        from ..report.statistics import has_spread

        spread = spread if has_spread(np.array(known), np.array(near, float)) else 0.0
    interval = None
    if mean is not None and spread:
        from scipy.stats import t

        half = float(t.ppf((1 + LEVEL) / 2, len(known) - 1)) * spread / math.sqrt(len(known))
        interval = [max(mean - half, limits[0]), min(mean + half, limits[1])]
    return {"n": len(values), "mean": mean, "deviation": spread, "level": LEVEL, "interval": interval}


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
    if any(own["confirmation"]["diverged"] for own in result["optimizers"].values()):
        floor = result["test"]["diverged_count_as"]
        told = (
            "they are worse than every completed run, by an amount that nobody knows: no mean, no interval"
            if floor is None
            else f"they count as the worse of baseline and worst seen, {shown(floor, key)}"
        )
        console.print(f"diverged   {told}", highlight=False)
    test = result["test"]
    told = f"read only after the choice was frozen, {test['choice_frozen']}"
    if begun := len(test["runs_begun_before"]):
        told = f"[yellow]{begun} of the confirming runs were begun before the choice, by another command[/]"
    console.print(f"test       {told}", highlight=False)


def _interval(own: Settings, key: str) -> str:
    told = f"n={own['n']}" + (f", {own['diverged']} diverged" if own["diverged"] else "")
    if own["interval"] is None:
        why = "no spread between seeds, " if own["deviation"] == 0 else ""
        return f"{told}: {why}no interval"
    low, high = (shown(end, key) for end in own["interval"])
    return f"{low} to {high}, {told}"


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
        if any(key_of(w) == key for w in words):
            raise ConfigError(f"{key}: it is for runs and sweeps, not for tuning; leave it out")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_seeds(values: Any) -> bool:
    right = isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
    return right and 0 < len(values) == len(set(values))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and "/" not in value


def _words(values: Settings) -> str:
    shorter = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
    return " ".join(word(key, value) for key, value in shorter.items()) or "nothing to tune"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _told(record: Settings, higher_is_better: bool) -> tuple[str, float | None]:
    """What Optuna knows of a trial: its state, and its value; one that diverged is worse than every other."""
    status, value = (record["done"] or {}).get("status", "failed"), (record["done"] or {}).get("value")
    if status == "failed":
        return "RUNNING", None
    if status == "pruned":
        return "PRUNED", record["reported"][-1][1] if record["reported"] else None
    worst = -math.inf if higher_is_better else math.inf
    return "COMPLETE", worst if value is None or status == "diverged" else value


def _quasi_random(number: int, seed: int) -> Any:
    """A sampler of a scrambled Sobol sequence that takes the point of this trial, whatever was drawn before."""
    optuna = _optuna()
    sampler: Any = optuna.samplers.QMCSampler

    class Points(sampler):  # type: ignore[misc]
        def _find_sample_id(self, study: Any, search_space: Any) -> int:
            return max(0, number - 1)  # the first trial is a random one

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        return Points(scramble=True, seed=seed)


def _optuna() -> Any:
    try:
        import optuna
        import scipy  # noqa: F401  (of the quasi-random sampler, and of intervals)
    except ModuleNotFoundError:
        raise ConfigError("tuning needs packages: pip install 'tmbench[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
