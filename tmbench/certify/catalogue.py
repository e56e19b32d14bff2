"""What `optimizer=any` reaches: each class of torch.optim and pytorch_optimizer, with its certificate in short."""

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import metadata, version
from pathlib import Path

import torch
from torch.optim import Optimizer

from ..errors import DataError
from ..files import folder_for, read_sealed, write_sealed
from ..training.optimizers import find, named
from . import CHECKS, certify
from .checks import stepping
from .descent import Candidate, Descent, Quadratic, summary_of

LIBRARIES = ("torch", "pytorch_optimizer")
SIDE = 256  # of the matrix whose state is counted
NON_COMMERCIAL = re.compile(r"CC[ -]BY-NC[-\w]*( \d\.\d)?")
LINK = re.compile(r"https?://[^\s>`)\]]+")


@dataclass(frozen=True)
class Entry:
    """One class, made with the library's defaults.

    `library`: and its version. `closure`: step() needs one. `state`: numbers kept for each weight of a 256 x 256 matrix
    after two steps; None if it takes no step. `elementwise`: it acts on each element alone. `holds`, `fails`: checks of
    `tmbench certify`, counted and named. `licence`: where it forbids commercial use, else empty. `paper`: an address,
    or empty. `problem`: why it cannot be made or takes no step, else empty.
    """

    name: str
    library: str
    closure: bool = False
    state: float | None = None
    elementwise: bool = False
    holds: int = 0
    fails: tuple[str, ...] = ()
    licence: str = ""
    paper: str = ""
    problem: str = ""


def entries(names: Sequence[str], store: Path) -> Iterator[tuple[Entry, bool]]:
    """The entries of these classes, and whether each was known. One takes seconds, and is kept in the folder `store`.

    Raises:
        ValueError: a name is not among the classes.
    """
    for name, kind in {name: named(name) for name in names}.items():
        made_with = " ".join(f"{library} {version(library)}" for library in ("tmbench", *LIBRARIES))
        file = store / f"{name}.json"
        with suppress(FileNotFoundError, DataError):
            known = read_sealed(file)
            if known.pop("made_with") == made_with:
                yield Entry(**known | {"fails": tuple(known["fails"])}), True
                continue
        entry = entry_of(name, kind)
        write_sealed(folder_for("runs_dir", store) / file.name, asdict(entry) | {"made_with": made_with})
        yield entry, False


def entry_of(name: str, kind: type[Optimizer]) -> Entry:
    """Certifies a class; what it is like otherwise."""
    library = kind.__module__.partition(".")[0]
    facts = partial(
        Entry, name, f"{library} {version(library)}", licence=licence_of(name, kind), paper=paper_of(name, kind)
    )
    new = partial(find, method=name, lr=0.01, weight_decay=0.0, options={})
    try:
        new([torch.zeros(2, requires_grad=True)])
    except Exception as error:
        return facts(problem=f"needs more than parameters and a rate: {summary_of(error)}")
    first, *findings = certify(new, devices=["cpu"])
    if first.verdict != "holds":
        return facts(problem=first.detail)
    by_check = dict(zip(CHECKS, findings, strict=True))
    closure, state = _state_of(new)
    return facts(
        closure=closure, state=state, elementwise=by_check["elementwise"].verdict == "holds",
        holds=sum(f.verdict == "holds" for f in findings),
        fails=tuple(check for check, f in by_check.items() if f.verdict == "does not"),
    )  # fmt: skip


def _state_of(new: partial[Optimizer]) -> tuple[bool, float]:
    """Whether a step needs a closure, and the numbers that are kept for each weight."""
    (candidate, _), random = stepping(Candidate(new)), torch.Generator().manual_seed(0)
    assert candidate
    start, target = (torch.randn(SIDE, SIDE, generator=random) for _ in range(2))
    descent = Descent(candidate, [Quadratic(start, target, torch.ones(SIDE, SIDE))], torch.float32).go(2)
    tensors = {id(t): t.numel() for t in _tensors(list(descent.optimizer.state.values()))}
    return candidate.closure, round(sum(tensors.values()) / SIDE**2, 3)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def licence_of(name: str, kind: type[Optimizer]) -> str:
    """A licence that forbids commercial use, by the class's own file or the library's notes; empty if none does."""
    source = Path(inspect.getsourcefile(kind) or os.devnull).read_text(encoding="utf-8")
    if found := NON_COMMERCIAL.search(source):
        return found[0]
    noted = [NON_COMMERCIAL.search(line) for line in _notes().splitlines() if f"`{name}`" in line]
    return next((found[0] for found in noted if found), "") if kind.__module__.startswith(LIBRARIES[1]) else ""


@cache
def _notes() -> str:
    """The description that pytorch_optimizer brings along: it has a table of papers, and notes on licences."""
    return "".join(metadata(LIBRARIES[1]).json.get("description", ""))


def paper_of(name: str, kind: type[Optimizer]) -> str:
    """The address of the paper: what torch's docstring links to first, or what pytorch_optimizer's table has."""
    own = LINK.findall(inspect.getdoc(kind) or "")
    if kind.__module__.startswith("torch."):
        return own[0] if own else ""
    papers, lower = _papers(), name.lower()

    def likeness(method: str) -> tuple[bool, int, int]:  # Apollo and APOLLO are two methods
        return method.lower() == lower, _alike(method.lower(), lower), _alike(method, name)

    family = max(papers, key=likeness)  # ScheduleFreeSGD is of ScheduleFree
    is_same, letters, _ = likeness(family)
    return papers[family] if is_same or letters >= 6 else own[0] if own else ""


@cache
def _papers() -> dict[str, str]:
    """The addresses in pytorch_optimizer's table of papers, by the method's letters."""
    table = re.findall(r"^\| (\S[^|]*?) +\| \*.*?\[paper\]\(([^)]*)\)", _notes(), re.MULTILINE)
    return {re.sub(r"\W", "", method): address for method, address in table}


def _alike(one: str, other: str) -> int:
    """How many letters they begin with together."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
