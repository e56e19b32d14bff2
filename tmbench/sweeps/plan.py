"""What the jobs of a sweep ask for: their runs, which of them are done, what they share, how long they will take."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra.utils import get_class
from omegaconf import OmegaConf

from ..config.identity import run_id
from ..config.machine import cpu_model
from ..config.overrides import check_words
from ..config.settle import Settings, flat, settled
from ..data import open_dataset
from ..errors import ConfigError, DataError
from ..files import read_sealed_text
from ..result import FINAL, Result, epochs_done
from ..trunks import Trunk, trunk_of
from .record import JobOrder

PER_EPOCH = ("task", "data", "batch_size", "trainer")  # what the duration of an epoch depends on, beside the optimizer


@dataclass
class Job:
    """One job of a sweep: the words that ask for a run, and what is known of that run."""

    number: int
    overrides: list[str]
    raw: Settings  # as composed
    arm: str = ""  # of a study; empty for the jobs that were asked for
    cfg: Settings | None = None  # settled
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


class RunFinder:
    """Finds the run of each job; opens each data set once.

    Args:
        download: whether missing data may be fetched now.
    """

    def __init__(self, download: bool) -> None:
        self.download = download
        self._digests: dict[tuple[str, ...], str | None] = {}
        self._folders: set[Path] = set()

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
        with contextlib.suppress(DataError):  # a broken result.json: the job will say so
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
            try:
                self._digests[key] = open_dataset(OmegaConf.create(cfg | {"data": data}), get_class(key[0]))[2]
            except DataError:  # the job will say so
                self._digests[key] = None
        return self._digests[key]


def states_to_share(jobs: list[Job]) -> list[tuple[Trunk, int, int]]:
    """The states that the jobs need of their trunks: (trunk, epoch, number of differences of the weights)."""
    trunks = [job.trunk for job in jobs if job.is_due and job.trunk]
    ends = Counter((trunk.folder, trunk.end) for trunk in trunks)
    # The last state of a run without a switch is of use only to another such run.
    return [(t, t.end, t.differences) for t in trunks if t.switches or ends[t.folder, t.end] > 1]


def orders_of(jobs: list[Job], search: list[str]) -> list[JobOrder]:
    """What is to be done for each job, by whichever process.

    Args:
        jobs: those that are due.
        search: the word for a person's own YAML files, if they have any.
    """
    states: dict[Path, set[tuple[int, int]]] = {}
    for trunk, epoch, differences in states_to_share(jobs):
        states.setdefault(trunk.folder, set()).add((epoch, differences))
    return [
        JobOrder(
            job.number, job.arm, job.overrides, search,
            {key: value for key, value in job.raw.items() if key != "launcher"},
            # By each job itself: on another machine the trunk may have another name.
            sorted(states.get(job.trunk.folder, ())) if job.trunk else [],
        )
        for job in jobs
    ]  # fmt: skip


def forecast_epochs(jobs: list[Job]) -> None:
    """Fills in how many epochs each job trains and how many it takes from its trunk, if done one after another."""
    published: dict[Path, dict[int, int]] = {}  # by trunk: epoch -> differences, as they will be by then
    requested: dict[Path, dict[int, int]] = {}
    for shared, epoch, differences in states_to_share(jobs):
        published.setdefault(shared.folder, shared.states())
        epochs = requested.setdefault(shared.folder, shared.requests())
        epochs[epoch] = max(differences, epochs.get(epoch, 0))
    for job in jobs:
        if not job.is_due or job.cfg is None:
            continue
        start = job.epochs_done
        if trunk := job.trunk:
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
    study = job.raw.get("study") or {}
    arms: dict[str, list[str]] = {}
    if job.cfg is None or job.shared_prefix is None or not job.shared_prefix.switches:
        return arms
    settings = flat(job.cfg)
    for name, words in study.get("arms", {}).items():
        changes = dict(_filled(word, settings).split("=", 1) for word in words)
        other = "optimizer" in changes
        if other or changes.keys() <= settings.keys():
            kept = [w for w in job.overrides if w.split("=")[0] not in changes and not (other and _of_optimizer(w))]
            arms[name] = kept + [f"{key}={value}" for key, value in changes.items()]
    return arms


def _of_optimizer(word: str) -> bool:
    return word.lstrip("+~").startswith(("optimizer.", "optimizer="))


def _filled(word: str, settings: Settings) -> str:
    return re.sub(r"\$\{([\w.]+)\}", lambda found: str(settings[found[1]]).lower(), word)


@dataclass(frozen=True)
class Duration:
    """How long a run took, in seconds."""

    epoch: float  # one epoch with its evaluation
    overhead: float  # all but its epochs
    run: str  # the id of the run that was measured

    def of(self, epochs: int) -> float:
        return self.overhead + self.epoch * epochs


class MeasuredDurations:
    """How long runs took that are in the same folder, with the same task and batch on such a machine."""

    def __init__(self) -> None:
        self._results: dict[Path, list[Result]] = {}
        self._found: dict[str, Duration | None] = {}

    def like(self, job: Job) -> Duration | None:
        """That of the newest run with the job's optimizer, or else any; None if there is none to compare with."""
        if job.cfg is None or job.folder is None:
            return None
        optimizer, facts = job.cfg["optimizer"]["name"], {key: job.cfg[key] for key in PER_EPOCH}
        key = f"{optimizer} {facts}"
        if key not in self._found:
            self._found[key] = self._find(job.folder.parent, optimizer, facts)
        return self._found[key]

    def _find(self, runs: Path, optimizer: str, facts: Settings) -> Duration | None:
        if runs not in self._results:
            self._results[runs] = sorted(_results(runs), key=lambda result: result.started, reverse=True)
        for result in sorted(self._results[runs], key=lambda result: result.optimizer != optimizer):  # stable
            epochs = result.epochs["trained"]
            if not epochs or result.task != facts["task"]["name"]:
                continue
            try:
                cfg = yaml.safe_load(read_sealed_text(runs / result.run_id / "config.yaml"))
                same_machine = cpu_model() in result.hardware or cfg["trainer"]["accelerator"] == "cuda"
            except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):  # damaged
                continue
            if same_machine and all(cfg.get(key) == facts[key] for key in PER_EPOCH):
                # A run that was stopped has not drawn its figures.
                overhead = result.overhead_seconds if result.status == "completed" else 0.0
                return Duration((result.seconds + result.evaluation_seconds) / epochs, overhead, result.run_id)
        return None


def _results(runs: Path) -> Iterator[Result]:
    for path in runs.glob("*/result.json"):
        with contextlib.suppress(DataError):
            if result := Result.load(path.parent):
                yield result
