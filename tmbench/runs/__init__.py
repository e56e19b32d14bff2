"""The runs in a folder: each sub-folder that holds a config.yaml is one. Torch-free."""

import contextlib
import hashlib
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint import WRITING
from ..config.identity import rate_of, reads_switch
from ..config.settle import Saved, Settings, select
from ..config.table import known_words, reference
from ..errors import ConfigError, DataError, did_you_mean
from ..files import LOCK, locked, read, read_yaml, scratch_in
from ..result import FINAL, Result, counted_from_1
from ..trunks import FETCHED

REMOVING = ".removing-"  # the name of a run's folder starts with it while the run is being removed
# A result has one of the first four. running: a process works on it; stopped: begun, and no process works on it;
# broken: its result cannot be read.
STATUSES = ("completed", "diverged", "failed", "interrupted", "running", "stopped", "broken")


@dataclass
class Run:
    """One run's folder."""

    folder: Path
    result: Result | None
    status: str  # one of STATUSES

    @classmethod
    def open(cls, folder: Path) -> "Run":
        try:
            result = Result.load(folder)
            status = result.status if result else "stopped"
        except DataError:
            result, status = None, "broken"
        try:
            if (folder / LOCK).exists():  # else nobody has ever worked there
                with locked(folder, wait=False):
                    pass
        except BlockingIOError:
            status = "running"
        except OSError:  # a folder that is read-only, so no process works in it
            pass
        return cls(folder, result, status)

    @cached_property
    def config(self) -> Settings:
        config: Settings = read_yaml(self.folder / "config.yaml", Saved)
        return config

    @property
    def curves(self) -> str:
        """The text of curves.csv, with epochs from 1; empty if there is none.

        Raises:
            DataError: it is not the file that the result describes.
        """
        path = self.folder / "curves.csv"
        try:
            content = read(path, bytes)
        except FileNotFoundError:
            content = b""
        # A run that goes on has newer curves than its result.
        known = self.result.curves_sha256 if self.result and self.status in FINAL else None
        if known and hashlib.sha256(content).hexdigest() != known:
            raise DataError(
                f"{path}: damaged: its sha256 is not the one in result.json; remove result.json, and the run's own "
                "command writes both again"
            )
        return counted_from_1(read(path, bytes.decode)) if content else ""

    def value(self, key: str) -> Any:
        """What a filter compares: the status, a fact of the result, or a setting; KeyError if there is none."""
        if key in ("status", "run_id"):
            return self.status if key == "status" else self.folder.name
        if key in ("profile", "split", "metric", "headline"):
            return getattr(self.result, key, None)
        if key == "switch_epoch" and not reads_switch(self.config):
            return "never"  # an optimizer without a switch, whatever its sweep gave
        if key == "lr":
            return rate_of(self.config)
        value = select(self.config, key)
        return value.get("name") if isinstance(value, dict) else value


def leftovers_in(folder: Path) -> list[Path]:
    """What a killed process left half-written in a run's folder, whose lock the caller holds."""
    more = (folder / "checkpoints" / WRITING, folder / FETCHED)
    return [*scratch_in(folder), *(path for path in more if path.exists())]


def find(runs_dir: Path, words: list[str]) -> list[Run]:
    """The runs that fit all the words: filters key=value[,value...], and ids of runs, or their starts.

    An id may stand behind a folder, such as old/tc-sgd-0; else it is one in runs_dir.

    A key is run_id, status, profile, split, metric or any setting; an optimizer without a switch has
    switch_epoch=never, and lr is the optimizer's own rate where it has one.

    Raises:
        ConfigError: there is no such folder, no run has such a key, or no run has such an id.
    """
    ids = [word for word in words if "=" not in word]
    folders = {f.resolve(): f for word in ids for f in _meant(word, runs_dir)}
    runs = [Run.open(folder) for folder in (sorted(folders.values()) if ids else _in(runs_dir))]
    return fitting(runs, [word for word in words if "=" in word])


def _meant(word: str, runs_dir: Path) -> list[Path]:
    """The folders of the runs that a folder, an id or the start of either names; ConfigError if there is none."""
    path = Path(word)
    if (path / "config.yaml").is_file():
        return [path]
    place = path.parent if "/" in word else runs_dir
    if found := [folder for folder in _in(place) if folder.name.startswith(path.name)]:
        return found
    raise ConfigError(f"{path.name}: no run in {place} has an id that starts so; tmbench runs list shows all")


def _in(runs_dir: Path) -> list[Path]:
    """The folders of all runs."""
    if not runs_dir.is_dir():
        raise ConfigError(f"{runs_dir}: expected a folder with runs, there is none; name another with runs_dir=DIR")
    return sorted(p.parent for p in runs_dir.glob("[!.]*/config.yaml") if p.parent.name.isprintable())


def find_one(word: str, runs_dir: Path) -> Run:
    """The run with this folder, id or start of an id; ConfigError if there is none, or more than one."""
    folders = _meant(word, runs_dir)
    if len(folders) != 1:
        raise ConfigError(f"{word}: expected one run, got {', '.join(folder.name for folder in folders[:5])}")
    return Run.open(folders[0])


def fitting(runs: list[Run], filters: list[str], settings: Iterable[str] = ()) -> list[Run]:
    """Those of the runs that fit every filter, key=value[,value...]; ConfigError if no run has such a key.

    Args:
        settings: of the command, that a misspelled key may have meant.
    """
    for key, wanted in (word.split("=", 1) for word in filters):
        if key == "status" and (unknown := set(wanted.split(",")) - set(STATUSES)):
            raise ConfigError(f"status: expected one of {', '.join(STATUSES)}, got {', '.join(sorted(unknown))}")
        values = {}
        for run in runs:
            try:
                values[run.folder] = run.value(key)
            except (KeyError, TypeError):
                continue
            except DataError as error:  # of this run alone
                print(error, file=sys.stderr)
        if runs and not values:
            known = {"status", "profile", *settings, *known_words(), *(name for _, name, _ in reference())}
            hint = did_you_mean(key, known)
            raise ConfigError(f"{key}: expected status, profile or a setting such as task, optimizer, seed, lr{hint}")
        runs = [run for run in runs if any(_same(values.get(run.folder), one) for one in wanted.split(","))]
    return runs


def _same(value: Any, word: str) -> bool:
    if value is None:
        return word.lower() in ("null", "none")
    with contextlib.suppress(ValueError, TypeError):
        return float(value) == float(word)
    return str(value).lower() == word.lower()


def distinguishing_words(groups: list[str], settings: list[dict[str, Any]]) -> list[str]:
    """For each of some flat settings, as key=value words, those in which it differs from others of its group."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for group, flat_settings in zip(groups, settings, strict=True):
        for key, value in flat_settings.items():
            counts.setdefault((group, key), Counter())[str(value)] += 1
    sizes, words = Counter(groups), []
    for group, flat_settings in zip(groups, settings, strict=True):
        varied = [key for key, value in flat_settings.items() if counts[group, key][str(value)] < sizes[group]]
        if "lr" in varied:  # one word for a rate that was filled in at several places
            varied = [key for key in varied if not key.endswith(".lr")]
        words.append(" ".join(f"{key}={flat_settings[key]}" for key in varied))
    return words
