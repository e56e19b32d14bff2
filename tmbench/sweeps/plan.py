"""The jobs of a sweep: their runs, which of them are done, what they share, how long they will take."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import OmegaConf

from ..config.compose import composed
from ..config.identity import run_id
from ..config.machine import cpu_model
from ..config.overrides import check_words, key_of
from ..config.settle import Settings, flat, plain, settled
from ..data import open_dataset
from ..errors import ConfigError, DataError, imported
from ..result import FINAL, Result, epochs_done
from ..runs import Run
from ..trunks import Trunk, trunk_of
from .job import JobOrder

# What the duration of an epoch depends on, beside the optimizer.
PER_EPOCH = ("task", "data", "batch_size", "trainer", "replicas")


_OF_RUN = re.compile(r"\$\{([\w.]+)\}")  # in a word of a study's arm: a setting of the run


@dataclass
class Job:
    """One job of a sweep: the words that ask for a run, and what is known of that run."""

    number: int
    overrides: list[str]
    raw: Settings  # as composed
    search: list[str] = field(default_factory=list)  # the word for a person's own YAML files, if they have any
    arm: str = ""  # of a study; empty for the jobs that were asked for
    cfg: Settings = field(default_factory=dict)  # settled; empty of a wrong job
    folder: Path | None = None  # its run's; unknown before the data are here
    shared_prefix: Trunk | None = None  # the part before its switch
    trunk: Trunk | None = None  # the same, unless trunk=off
    epochs_done: int = 0  # on disk
    state: str = "new"  # or partial, known (done before), same (as an earlier job's), wrong
    error: str = ""
    result: Result | None = None  # of a known run
    epochs_to_train: int = 0  # see forecast_epochs
    epochs_from_trunk: int = 0

    @property
    def is_due(self) -> bool:
        return self.state in ("new", "partial")


def combinations(overrides: Iterable[Override]) -> list[list[str]]:
    """Every combination of the listed values, as the words of one job each; the last list varies fastest."""
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key, word = override.get_key_element(), str(override.input_line)
        if override.is_interval_sweep():
            raise ConfigError(f"{word}: expected values to list, got an interval; say range(0,1,0.1)")
        is_list = override.is_sweep_override()
        choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()] if is_list else [word]
    return [list(words) for words in itertools.product(*choices.values())]


class JobComposer:
    """Composes jobs. Hydra takes 0.06 s or more for one, so it composes one for each choice of files.

    The others are copies in which the plain values, such as those of seed=7 or optimizer.momentum=0.5, are set.
    `search` is the word for a person's own YAML files, if they have any; `groups` are the keys that choose a file.
    """

    def __init__(self, search: list[str], groups: Collection[str]) -> None:
        self.search, self._groups = search, groups
        self._parsed = cache(OverridesParser.create().parse_override)
        self._composed = cache(self._by_hydra)

    def __call__(self, words: list[str]) -> Settings:
        """The job's configuration with its interpolations; HydraException for a word that is no setting."""
        overrides = {word: self._parsed(word) for word in words}
        values = {word: override for word, override in overrides.items() if self._is_plain(override)}
        cfg = dict(self._composed(tuple(word for word in words if word not in values)))
        replaced = tuple(f"{o.key_or_group}." for o in overrides.values() if isinstance(o.value(), dict))
        for override in values.values():
            key = override.key_or_group
            if key.startswith(replaced) or not _set(cfg, key.split("."), override.value()):
                return self._by_hydra(tuple(words))  # which knows what comes first, or why it cannot be
        return cfg

    def _is_plain(self, override: Override) -> bool:
        return (
            override.type == OverrideType.CHANGE and override.package is None
            and override.key_or_group not in self._groups and not isinstance(override.value(), (dict, list))
        )  # fmt: skip

    def _by_hydra(self, words: tuple[str, ...]) -> Settings:
        cfg = composed([*self.search, *words])
        # The environment's words once for all jobs: OmegaConf's parser takes longer than all else that a job needs.
        of_environment = OmegaConf.create({k: v for k, v in cfg.items() if str(v).startswith("${oc.env:")})
        OmegaConf.resolve(of_environment)
        return cfg | plain(of_environment)


def _set(cfg: Settings, path: list[str], value: Any) -> bool:
    """Sets a plain value, in copies of the settings above it; returns False if there is no such setting."""
    *groups, last = path
    for name in groups:
        if not isinstance(cfg.get(name), dict):
            return False
        cfg[name] = dict(cfg[name])
        cfg = cfg[name]
    if last not in cfg or isinstance(cfg[last], dict):
        return False
    cfg[last] = value
    return True


class RunFinder:
    """Finds the run of each job; opens each data set once."""

    def __init__(self, download: bool) -> None:
        self.download = download  # whether missing data may be fetched now
        self._digests: dict[tuple[str, ...], str | None] = {}
        self._folders: set[Path] = set()

    def find_all(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self.find(job)

    def find(self, job: Job) -> None:
        """Fills in what is known of the job's run."""
        try:
            check_words(job.overrides)
            job.cfg = settled(job.raw)
            digest = self._digest(job.cfg)
        except ConfigError as error:
            job.state, job.error = "wrong", str(error)
            return
        if digest is None:
            return
        job.folder = Path(job.cfg["runs_dir"]) / run_id(job.cfg, digest)
        job.shared_prefix = trunk_of(job.cfg, digest)
        job.trunk = job.shared_prefix if job.cfg["trunk"] == "auto" else None
        if job.folder in self._folders:
            job.state = "same"
            return
        self._folders.add(job.folder)
        if job.cfg["force"]:
            return
        with suppress(DataError):  # a broken result.json: the job will say so
            result = Result.load(job.folder)
            if result and result.status in FINAL:
                job.state, job.result = "known", result
                return
        job.epochs_done = min(epochs_done(job.folder), job.cfg["epochs"])
        job.state = "partial" if job.epochs_done else "new"

    def _digest(self, cfg: Settings) -> str | None:
        """The digest of the data; None if they are not here."""
        key = (cfg["task"]["data"], str(cfg["data"]), cfg["data_dir"], cfg["runs_dir"])
        if key not in self._digests:
            data = cfg["data"] | ({"download": False} if cfg["data"].get("download") and not self.download else {})
            data_class = imported(f"task/{cfg['task']['name']}.yaml: data", key[0])
            try:
                self._digests[key] = open_dataset(OmegaConf.create(cfg | {"data": data}), data_class)[2]
            except DataError:  # the job will say so
                self._digests[key] = None
        return self._digests[key]


def states_to_share(jobs: list[Job]) -> list[tuple[Trunk, int, int]]:
    """The states that the jobs need of their trunks: (trunk, epoch, number of differences of the weights)."""
    trunks = [job.trunk for job in jobs if job.is_due and job.trunk and not job.trunk.is_open]
    ends = Counter((trunk.folder, trunk.end) for trunk in trunks)
    # The last state of a run without a switch is of use only to another such run.
    return [(t, t.end, t.differences) for t in trunks if t.switches or ends[t.folder, t.end] > 1]


def stacks_of(jobs: list[Job]) -> list[list[Job]]:
    """The jobs that are due, in their order; together those whose runs differ by their seed alone and are equally far.

    Of a run with replicas=K, at most K are together: they are trained as one stack. Most jobs are alone. Stacks that
    lack seeds are joined with those of other learning rates, where that makes fewer of them.
    """
    stacks, open_ones = list[list[Job]](), dict[str, list[Job]]()
    for job in jobs:
        slots, key = job.cfg.get("replicas", 1), _stack_of(job, "seed")
        if len(open_ones.get(key, range(slots))) >= slots:
            stacks.append([])
            open_ones[key] = stacks[-1]
        open_ones[key].append(job)
    short = dict[str, list[list[Job]]]()
    for stack in stacks:
        if len(stack) < stack[0].cfg.get("replicas", 1):
            short.setdefault(_stack_of(stack[0], "seed", "lr"), []).append(stack)
    for of_rates in short.values():
        slots, all_jobs = of_rates[0][0].cfg["replicas"], [job for stack in of_rates for job in stack]
        joined = [all_jobs[first : first + slots] for first in range(0, len(all_jobs), slots)]
        if len(joined) < len(of_rates):
            for place, stack in enumerate(of_rates):
                stack[:] = joined[place] if place < len(joined) else []
    return [stack for stack in stacks if stack]


def _stack_of(job: Job, *differ: str) -> str:
    """The same for jobs that may be one stack: those that differ by no other of these settings."""
    if job.cfg.get("replicas", 1) == 1 or job.folder is None:
        return f"job {job.number}"
    facts = {key: value for key, value in job.cfg.items() if key not in differ} | {"epochs_done": job.epochs_done}
    if "lr" in differ:  # as composed: what else has the rate in it says so
        facts["optimizer"] = job.raw["optimizer"]
    return json.dumps(facts, sort_keys=True, default=str)


def orders_of(stacks: list[list[Job]]) -> list[JobOrder]:
    """What is to be done for each stack of jobs, by whichever process."""
    states: dict[Path, set[tuple[int, int]]] = {}
    for trunk, epoch, differences in states_to_share([job for stack in stacks for job in stack]):
        states.setdefault(trunk.folder, set()).add((epoch, differences))

    def order(job: Job, *others: Job) -> JobOrder:
        return JobOrder(
            job.number, job.arm, job.overrides, job.search,
            {key: value for key, value in job.raw.items() if key != "launcher"},
            # By each job itself: on another machine the trunk may have another name.
            sorted(states.get(job.trunk.folder, ())) if job.trunk else [],
            others=[order(other) for other in others],
        )  # fmt: skip

    return [order(*stack) for stack in stacks]


def forecast_epochs(jobs: list[Job]) -> None:
    """Fills in how many epochs each job trains and how many it takes from its trunk, if done one after another."""
    published: dict[Path, dict[int, int]] = {}  # by trunk: epoch -> differences, as they will be by then
    requested: dict[Path, dict[int, int]] = {}
    for shared, epoch, differences in states_to_share(jobs):
        published.setdefault(shared.folder, shared.states())
        epochs = requested.setdefault(shared.folder, shared.requests())
        epochs[epoch] = max(differences, epochs.get(epoch, 0))
    for job in jobs:
        if not job.is_due:
            continue
        start = job.epochs_done
        if (trunk := job.trunk) and not trunk.is_open:
            states = published.setdefault(trunk.folder, trunk.states())
            usable = (e for e, n in states.items() if e < trunk.end or (e == trunk.end and n >= trunk.differences))
            job.epochs_from_trunk = max((e for e in usable if e > job.epochs_done), default=0)
            start = max(start, job.epochs_from_trunk)
            for epoch, differences in requested.get(trunk.folder, {}).items():
                if start < epoch <= trunk.end:
                    states[epoch] = max(differences, states.get(epoch, 0))
        job.epochs_to_train = int(job.cfg["epochs"]) - start


def words_of_arms(job: Job) -> dict[str, list[str]]:
    """The arms that the job's study adds to it: the name of each, and the override words of its run."""
    if job.shared_prefix is None or not job.shared_prefix.switches:
        return {}
    arms, settings = dict[str, list[str]](), flat(job.cfg)
    for name, words in job.raw["study"].get("arms", {}).items():
        if not {key for word in words for key in _OF_RUN.findall(word)} <= settings.keys():
            continue  # this optimizer has no such setting
        filled = (_OF_RUN.sub(lambda found: str(settings[found[1]]).lower(), word) for word in words)
        changes = dict(word.split("=", 1) for word in filled)
        replaced = {*changes, "optimizer"} if "optimizer" in changes else changes.keys()
        if "optimizer" in changes or changes.keys() <= settings.keys():
            kept = [w for w in job.overrides if not {key_of(w), key_of(w).split(".")[0]} & replaced]
            arms[name] = kept + [f"{key}={value}" for key, value in changes.items()]
    return arms


@dataclass(frozen=True)
class Duration:
    """How long a run took, in seconds."""

    epoch: float  # one epoch with its evaluation
    overhead: float  # all but its epochs
    run: str  # the id of the run that was measured

    def of(self, epochs: int) -> float:
        return self.overhead + self.epoch * epochs


def measured_durations(jobs: list[Job]) -> dict[int, Duration]:
    """By job number, how long a run took that is in the same folder, of the same task and batch, on such a machine.

    It is the newest one with the job's optimizer, or else with any; a job that no run is like has none.
    """
    newest_first = cache(lambda runs: sorted(_results(runs), key=lambda result: result.started, reverse=True))
    found, keys = dict[str, Duration | None](), dict[int, str]()
    for job in (job for job in jobs if job.folder):
        runs, optimizer = Path(job.cfg["runs_dir"]), job.cfg["optimizer"]["name"]
        facts = {key: job.cfg[key] for key in PER_EPOCH}
        keys[job.number] = key = f"{runs} {optimizer} {facts}"
        if key not in found:
            results = sorted(newest_first(runs), key=lambda result: result.optimizer != optimizer)  # stable
            found[key] = next(filter(None, (_duration(runs, result, facts) for result in results)), None)
    return {number: duration for number, key in keys.items() if (duration := found[key])}


def _duration(runs: Path, result: Result, facts: Settings) -> Duration | None:
    """How long a run took; None if it is not known, or of other facts or on another machine."""
    epochs = result.epochs["trained"]
    is_same_machine = cpu_model() in result.hardware or facts["trainer"]["accelerator"] == "cuda"
    if not (epochs and is_same_machine and result.task == facts["task"]["name"]):
        return None
    with suppress(DataError):
        cfg = {"replicas": 1} | Run(runs / result.run_id, result, result.status).config  # an older one has none
        if all(cfg.get(key) == facts[key] for key in PER_EPOCH):
            # A run that was stopped has not drawn its figures.
            overhead = result.overhead_seconds if result.status == "completed" else 0.0
            return Duration((result.seconds + result.evaluation_seconds) / epochs, overhead, result.run_id)
    return None


def _results(runs: Path) -> Iterator[Result]:
    for path in runs.glob("*/result.json"):
        with suppress(DataError):
            if result := Result.load(path.parent):
                yield result
