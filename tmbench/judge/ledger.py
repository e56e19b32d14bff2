"""The ledger: all judgements that were ever begun in a folder of runs, also those whose folders are gone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..config.identity import digest
from ..config.settle import Settings
from ..files import locked, read_sealed, write_sealed
from ..report.problems import problem_facts
from .plan import FOLDER, Plan


@dataclass
class Entry:
    """One judgement."""

    name: str
    question: str  # its digest
    begun: str  # UTC
    problem: str  # what the runs have in common, as a digest
    task: str
    methods: list[str]
    against: str
    alpha: float
    has_margin: bool  # whether it may find equivalence, which may be false as well
    seeds: list[int]  # the first, and how many were taken; 0 until it ends
    verdicts: dict[str, str] = field(default_factory=dict)  # empty until it ends


@dataclass
class Ledger:
    """What one judgement knows of all others."""

    path: Path
    own: Entry
    earlier: list[Entry]  # begun before it

    @classmethod
    def begun(cls, plan: Plan) -> "Ledger":
        """Enters a judgement before its first look, unless it is there."""
        folder = plan.runs_dir / FOLDER
        settings, cfg = plan.settings, plan.baseline.cfg
        problem = digest(problem_facts(cfg) | {"digest": plan.baseline.data_digest})
        own = Entry(
            plan.name, digest(plan.question), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), problem,
            cfg["task"]["name"], [method.name for method in plan.methods], plan.baseline.name, settings["alpha"], True,
            [settings["first_seed"], 0],
        )  # fmt: skip
        path = folder / "ledger.json"
        with _changed(path) as entries:
            places = [i for i, e in enumerate(entries) if (e.name, e.question) == (own.name, own.question)]
            if places:
                return cls(path, entries[places[0]], entries[: places[0]])
            earlier = list(entries)
            entries.append(own)
        return cls(path, own, earlier)

    def end(self, content: Settings) -> None:
        """Enters the outcome."""
        verdicts = {name: method["verdict"] for name, method in content["methods"].items()}
        with _changed(self.path) as entries:
            for entry in entries:
                if (entry.name, entry.question) == (self.own.name, self.own.question):
                    entry.verdicts, entry.seeds[1] = verdicts, content["spent"]["seeds"]

    def on_the_same_seeds(self, taken: int) -> list[Entry]:
        """Earlier judgements on the same problem that share a seed with this one, which has taken so many."""
        first = self.own.seeds[0]
        return [
            entry for entry in self.earlier
            if entry.problem == self.own.problem and entry.seeds[0] < first + taken
            and first < entry.seeds[0] + max(1, entry.seeds[1])
        ]  # fmt: skip

    def false_chance(self) -> float:
        """The most that the probability can be that a verdict among all these, this one included, is false."""
        return min(1.0, sum(entry.alpha * (1 + entry.has_margin) for entry in (*self.earlier, self.own)))


def entries_of(path: Path) -> list[Entry]:
    """All judgements in a ledger, in the order in which they were begun; none if there is no ledger."""
    remedy = "restore it from a copy; if it is removed, earlier judgements are no longer counted"
    entries: list[Entry] = read_sealed(path, dict[str, list[Entry]], remedy)["judgements"] if path.exists() else []
    return entries


@contextmanager
def _changed(path: Path) -> Iterator[list[Entry]]:
    """The entries, which are written back."""
    with locked(path.parent):
        entries = entries_of(path)
        before = [asdict(entry) for entry in entries]
        yield entries
        if (after := [asdict(entry) for entry in entries]) != before:
            write_sealed(path, {"judgements": after})
