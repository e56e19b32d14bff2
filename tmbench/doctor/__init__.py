"""Will tmbench work on this machine, and does it? Findings in green, yellow or red, each with what to do."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError

State = Literal["green", "yellow", "red", "skipped"]
SCHEMA = 1  # of the JSON; docs/doctor.md has its fields


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        state: green: works; yellow: works with a limit; red: does not work; skipped: could not be tried here.
        found: in words, with units.
        remedy: what to do; empty if there is nothing to do.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


Check = Callable[[], "Finding | Iterable[Finding]"]
REPORT = "mend this; if it is a fault of tmbench, report it with this page"


def examined(name: str, check: Check, remedy: str = REPORT) -> Iterator[Finding]:
    """The findings of a check; one that raises is red, and stops no other.

    Raises:
        UsageError: a setting is not what it must be.
    """
    try:
        found = check()
        yield from [found] if isinstance(found, Finding) else found
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        yield Finding(name, "skipped", f"needs {error.name}, which is not installed")
    except Exception as error:  # whatever is broken here: this is what a person wants to know
        first = (str(error).strip() or "no message").splitlines()[0]
        yield Finding(name, "red", f"{type(error).__name__}: {first}", remedy)
