"""What a study keeps in its folder between commands, checked when it is read back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..errors import DataError
from ..files import read_sealed

T = TypeVar("T")


@dataclass
class Outcome:
    """What came of a trial's run."""

    status: Literal["completed", "diverged", "pruned", "failed"]
    value: float | None = None  # of the headline metric; None unless the run completed with a finite one
    seconds: float = 0.0  # of training and evaluation
    device_seconds: float = 0.0  # what this trial cost: 0 if its run was done before
    diverged_at: dict[str, int] | None = None  # epoch and step
    error: str | None = None


@dataclass
class Trial:
    """One trial; it counts from the moment at which its point is drawn."""

    number: int
    run: str  # the name of its folder
    known_before: bool  # its run was done before the trial was drawn
    params: dict[str, Any]  # the point of the space; see space.values_of
    reported: list[tuple[int, float]] = field(default_factory=list)  # (epochs, value) that the pruner has seen
    outcome: Outcome | None = None  # None: not done yet

    @property
    def is_open(self) -> bool:
        return self.outcome is None or self.outcome.status == "failed"


@dataclass
class Choice:
    """The best trial of one optimizer."""

    number: int
    values: dict[str, Any]
    value: float
    run: str


@dataclass
class Choices:
    """The content of choice.json."""

    frozen: str  # when, in UTC
    choices: dict[str, Choice | None]  # by optimizer; None: no trial has a value
    begun_before: list[str]  # confirming runs that another command had begun


def load(path: Path, kind: type[T], remedy: str) -> T:
    """The content of a sealed file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, or is not of this kind; the message ends with the remedy.
    """
    try:
        return TypeAdapter(kind).validate_python(read_sealed(path))
    except DataError as error:
        raise DataError(f"{error}; {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {where}: {first['msg']}, got {first['input']!r:.60}; {remedy}") from None
