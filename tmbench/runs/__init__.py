"""The runs that are here: a folder that holds a config.yaml is one. Torch-free."""

import contextlib
import hashlib
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..config.settle import Settings, select
from ..errors import ConfigError, DataError
from ..files import locked, read_sealed_text
from ..result import FINAL, Result

GONE = ".removing-"  # what a run's folder is called while it is being removed
SHOWN = ("seed", "switch_epoch", "runs_dir", "data_dir", "logger", "study", "force", "plan", "trunk", "trunk_gib")


@dataclass
class Run:
    """One run's folder."""

    folder: Path
    result: Result | None
    status: str  # the result's; or running, stopped (begun, and nobody is at it), broken (its result is not ours)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        try:
            result = Result.load(folder)
            status = result.status if result else "stopped"
        except DataError:
            result, status = None, "broken"
        try:
            with locked(folder, wait=False):
                return cls(folder, result, status)
        except BlockingIOError:
            return cls(folder, result, "running")
        except OSError:  # not ours to write to, so nobody is at it
            return cls(folder, result, status)

    @cached_property
    def config(self) -> Settings:
        path = self.folder / "config.yaml"
        try:
            # Settled, so without interpolations: OmegaConf takes ten times as long.
            found = yaml.load(read_sealed_text(path), Loader=yaml.CSafeLoader)
        except DataError:
            raise
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{path}: not a configuration ({error})") from None
        if not isinstance(found, dict):
            raise DataError(f"{path}: not a configuration; expected key: value, got {found!r:.40}")
        return found

    @property
    def curves(self) -> str:
        """What curves.csv holds, nothing if there is none; DataError if it is not what the result was made of."""
        path = self.folder / "curves.csv"
        content = path.read_bytes() if path.is_file() else b""
        # A run that goes on has newer curves than its result.
        known = self.result.curves_sha256 if self.result and self.status in FINAL else None
        if known and hashlib.sha256(content).hexdigest() != known:
            raise DataError(
                f"{path}: damaged: not what result.json says by its sha256; remove result.json, and the run's own "
                "command writes both again"
            )
        return content.decode()

    def value(self, key: str) -> Any:
        """What a filter's key says of this run: its status, or a setting. Raises KeyError if it has none such."""
        if key in ("status", "profile", "headline"):
            return self.status if key == "status" else getattr(self.result, key, None)
        found = select(self.config, key)
        return found.get("name") if isinstance(found, dict) else found


def find(runs_dir: Path, words: list[str]) -> list[Run]:
    """The runs that all the words fit: key=value[,value...] (status, profile or any setting), or ids, or their starts.

    Raises:
        ConfigError: no run has such a key, or no run is called so.
    """
    folders = sorted(path.parent for path in runs_dir.glob("[!.]*/config.yaml"))
    names = [Path(word).name for word in words if "=" not in word]
    for name in names:
        if not any(folder.name.startswith(name) for folder in folders):
            raise ConfigError(f"{name}: no run in {runs_dir} is called so; python -m tmbench.runs lists them")
    found = [Run.open(f) for f in folders if not names or any(f.name.startswith(name) for name in names)]
    return fitting(found, [word for word in words if "=" in word])


def fitting(found: list[Run], filters: list[str]) -> list[Run]:
    """Those of the runs that all key=value[,value...] fit; ConfigError if no run has such a key."""
    for key, wanted in (word.split("=", 1) for word in filters):
        values = {}
        for run in found:
            try:
                values[run.folder] = run.value(key)
            except (KeyError, TypeError):
                continue
            except DataError as error:  # of this run alone; the others can be told apart
                print(error, file=sys.stderr)
        if found and not values:
            raise ConfigError(f"{key}: expected status, profile or a setting such as task, optimizer, seed, lr")
        found = [run for run in found if any(_same(values.get(run.folder), one) for one in wanted.split(","))]
    return found


def _same(value: Any, word: str) -> bool:
    with contextlib.suppress(ValueError, TypeError):
        return float(value) == float(word)
    return str(value).lower() == word.lower()


def told_apart(groups: list[str], settings: list[dict[str, Any]]) -> list[str]:
    """For each of some flat settings, those in which it differs from others of its group, as key=value words."""
    values: dict[tuple[str, str], Counter[str]] = {}
    for group, own in zip(groups, settings, strict=True):
        for key, value in own.items():
            values.setdefault((group, key), Counter())[str(value)] += 1
    sizes, words = Counter(groups), []
    for group, own in zip(groups, settings, strict=True):
        varied = [key for key in own if values[group, key][str(own[key])] < sizes[group]]
        # A rate goes by its first name, not by every place that it was filled into.
        words.append(" ".join(f"{key}={own[key]}" for key in varied if "lr" not in varied or not key.endswith(".lr")))
    return words
