"""What a sweep's jobs will cost: which runs they are, which are known, what they share. Torch-free and fast."""

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
from ..config.settle import Settings, select, settled
from ..data import open_dataset
from ..errors import ConfigError, DataError
from ..files import read_sealed_text
from ..result import FINAL, Result, epochs_done
from ..trunks import Trunk, trunk_of

ALIKE = ("task", "data", "batch_size", "trainer")  # what an epoch's duration depends on, beside the optimizer


@dataclass
class Job:
    """One job of a sweep, as Hydra's override words, and the run that they ask for."""

    number: int
    overrides: list[str]
    raw: Settings  # as composed
    arm: str = ""  # of a study; empty for the jobs that were asked for
    cfg: Settings | None = None  # settled
    folder: Path | None = None  # its run's; unknown before the data are here
    beginning: Trunk | None = None  # what it is before its switch
    trunk: Trunk | None = None  # the same, if it is to be shared
    have: int = 0  # epochs on disk
    state: str = "new"  # or partial, known (done before), same (as an earlier job's), wrong
    error: str = ""
    trains: int = 0  # epochs, as forecast
    shares: int = 0  # epochs that it takes from its trunk

    @property
    def is_due(self) -> bool:
        return self.state in ("new", "partial")


class Recognizer:
    """Finds the run of each job; a data set is looked at once.

    Args:
        download: whether missing data may be fetched now.
    """

    def __init__(self, download: bool) -> None:
        self.download = download
        self._digests: dict[tuple[str, ...], str | None] = {}
        self._seen: set[Path] = set()

    def recognize(self, job: Job) -> None:
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
        job.beginning = trunk_of(job.cfg, digest)
        job.trunk = job.beginning if job.cfg["trunk"] == "auto" else None
        if job.folder in self._seen:
            job.state = "same"
            return
        self._seen.add(job.folder)
        with contextlib.suppress(DataError):  # a broken result.json: the job will say so
            result = None if job.cfg["force"] else Result.load(job.folder)
            if result and result.status in FINAL:
                job.state = "known"
                return
        job.have = 0 if job.cfg["force"] else min(epochs_done(job.folder), job.cfg["epochs"])
        job.state = "partial" if job.have else "new"

    def _digest(self, cfg: Settings) -> str | None:
        key = (cfg["task"]["data"], str(cfg["data"]), cfg["data_dir"], cfg["runs_dir"])
        if key not in self._digests:
            data = cfg["data"] | ({"download": False} if cfg["data"].get("download") and not self.download else {})
            try:
                self._digests[key] = open_dataset(OmegaConf.create(cfg | {"data": data}), get_class(key[0]))[2]
            except DataError:  # the job will say so
                self._digests[key] = None
        return self._digests[key]


def wanted(jobs: list[Job]) -> list[tuple[Trunk, int, int]]:
    """The states that the jobs will want of their trunks: (trunk, epoch, number of differences)."""
    due = [job.trunk for job in jobs if job.is_due and job.trunk]
    ends = Counter((trunk.folder, trunk.end) for trunk in due)
    # A run to the end has use for another's last state only if there is another.
    return [(t, t.end, t.needs) for t in due if t.switches or ends[t.folder, t.end] > 1]


def forecast(jobs: list[Job]) -> None:
    """Says how many epochs each job will train and share, if they are done one after another."""
    states: dict[Path, dict[int, int]] = {}  # epoch -> differences, as published by then
    asked: dict[Path, dict[int, int]] = {}
    for trunk, epoch, needs in wanted(jobs):
        states.setdefault(trunk.folder, trunk.states())
        wants = asked.setdefault(trunk.folder, trunk.asked())
        wants[epoch] = max(needs, wants.get(epoch, 0))
    for job in jobs:
        if not job.is_due or job.cfg is None:
            continue
        start, own = job.have, job.trunk
        if own:
            known = states.setdefault(own.folder, own.states())
            usable = (e for e, n in known.items() if e < own.end or (e == own.end and n >= own.needs))
            job.shares = max((e for e in usable if e > job.have), default=0)
            start = max(start, job.shares)
            for epoch, needs in asked.get(own.folder, {}).items():
                if start < epoch <= own.end:
                    known[epoch] = max(needs, known.get(epoch, 0))
        job.trains = int(job.cfg["epochs"]) - start


def arms(job: Job) -> dict[str, list[str]]:
    """The override words of the arms that the job's study adds to it."""
    study = job.raw.get("study") or {}
    added: dict[str, list[str]] = {}
    if job.beginning is None or not job.beginning.switches or job.cfg is None:
        return added
    for name, words in study.get("arms", {}).items():
        changes = dict(_filled(word, job.cfg).split("=", 1) for word in words)
        other = "optimizer" in changes
        if not other and any(not _has(job.cfg, key) for key in changes):
            continue
        kept = [w for w in job.overrides if w.split("=")[0] not in changes and not (other and _of_optimizer(w))]
        added[name] = kept + [f"{key}={value}" for key, value in changes.items()]
    return added


def _of_optimizer(word: str) -> bool:
    return word.lstrip("+~").startswith(("optimizer.", "optimizer="))


def _filled(word: str, cfg: Settings) -> str:
    return re.sub(r"\$\{([\w.]+)\}", lambda found: str(select(cfg, found[1])).lower(), word)


def _has(cfg: Settings, key: str) -> bool:
    try:
        select(cfg, key)
    except (KeyError, TypeError):
        return False
    return True


@dataclass
class Pace:
    """Seconds that an epoch takes with its evaluation, and a run beside its epochs; as measured in a run."""

    epoch: float
    around: float
    run: str


class Paces:
    """The pace of runs, from the newest that is here with the same task and batch on such a machine."""

    def __init__(self) -> None:
        self._runs: dict[Path, list[Result]] = {}
        self._found: dict[str, Pace | None] = {}

    def of(self, job: Job) -> Pace | None:
        """From a run with the job's optimizer if there is one, else with any; None if nothing was measured yet."""
        if job.cfg is None or job.folder is None:
            return None
        facts = {key: job.cfg[key] for key in ALIKE}
        key = f"{job.cfg['optimizer']['name']} {facts}"
        if key not in self._found:
            self._found[key] = self._find(job.folder.parent, job.cfg["optimizer"]["name"], facts)
        return self._found[key]

    def _find(self, runs: Path, optimizer: str, facts: Settings) -> Pace | None:
        if runs not in self._runs:
            self._runs[runs] = sorted(_results(runs), key=lambda result: result.started, reverse=True)
        for result in sorted(self._runs[runs], key=lambda result: result.optimizer != optimizer):  # stable
            here = result.epochs["trained"]
            if not here or result.task != facts["task"]["name"]:
                continue
            try:
                cfg = yaml.safe_load(read_sealed_text(runs / result.run_id / "config.yaml"))
                on_such = cpu_model() in result.hardware or cfg["trainer"]["accelerator"] == "cuda"
            except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):  # damaged: it tells nothing
                continue
            if on_such and all(cfg.get(key) == facts[key] for key in ALIKE):
                around = result.overhead_seconds if result.status == "completed" else 0.0  # else without the figures
                return Pace((result.seconds + result.evaluation_seconds) / here, around, result.run_id)
        return None


def _results(runs: Path) -> Iterator[Result]:
    for path in runs.glob("*/result.json"):
        with contextlib.suppress(DataError):
            if result := Result.load(path.parent):
                yield result
