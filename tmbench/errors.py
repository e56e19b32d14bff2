"""What a person can mend: shown as one message, without a traceback."""

import difflib
import inspect
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

NOT_THEIRS = ("tmbench", "tasks", "torch", "pytorch_optimizer")  # an error in these keeps its traceback


class ConfigError(ValueError):
    """A setting is not what it must be; the message names the key, the expected and the given value."""


class DataError(ValueError):
    """A data file is missing or broken; the message names the file (and line) and what to do."""


class RunError(RuntimeError):
    """A run cannot continue; the message says why, or which of its processes failed, and how."""


class CannotStackError(ConfigError):
    """Runs that cannot be trained as one stack; `why`, without the way out, says what about them."""

    def __init__(self, why: str, instead: str = "replicas=1") -> None:
        super().__init__(f"replicas: {why}; use {instead}")
        self.why = why


class UsageError(ConfigError):
    """The words of a command line make no command; the message names the word and what is possible."""


def count(n: int, word: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that this one is like; nothing if there is none."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def making(name: str) -> Iterator[None]:
    """Says in one line what a person's own class raises while an object of it is made.

    Args:
        name: of the class, as `_target_` has it.

    Raises:
        ConfigError: the class, the file and line that raised, and the message.
    """
    try:
        yield
    except (ConfigError, DataError, RunError):
        raise
    except Exception as error:
        if name.partition(".")[0] in NOT_THEIRS:
            raise
        raise ConfigError(f"{name}{_place(name, error)}: {_told(error)}") from error


def imported(where: str, name: str) -> Any:
    """The class or function that a configuration names.

    Args:
        where: the file and key that name it, such as `optimizer/mine.yaml: _target_`.

    Raises:
        ConfigError: it cannot be imported; whether a module is missing, the name in it, or what the import raised.
    """
    expected = f"{where}: expected a class or a function that can be imported, got {name}"
    found, path = None, ""
    for part in name.split("."):
        owner, path = path, f"{path}.{part}" if path else part
        try:
            if found is None or (isinstance(found, ModuleType) and not hasattr(found, part)):
                found = import_module(path)
            else:
                found = getattr(found, part)
        except Exception as error:
            raise ConfigError(f"{expected}: {_why_not(error, found, owner, path)}") from error
    if not callable(found):
        raise ConfigError(f"{expected}: it is a {type(found).__name__}")
    return found


def _why_not(error: Exception, found: Any, owner: str, path: str) -> str:
    """Why what is at `path` could not be had of `found`, which is what is at `owner`; None: of nothing."""
    if isinstance(error, AttributeError) or (isinstance(error, ModuleNotFoundError) and error.name == path):
        if found is None:
            return f"there is no module {path}; install it, or call tmbench in the folder where it is"
        part, file = path.rpartition(".")[2], getattr(found, "__file__", None)
        return f"{owner}{f' ({file})' * bool(file)} has no {part}{did_you_mean(part, dir(found))}"
    place = f"{error.filename}:{error.lineno}: " if isinstance(error, SyntaxError) else ""
    for frame in traceback.extract_tb(error.__traceback__)[2:]:  # after ours and that of import_module
        if not isinstance(error, SyntaxError) and not frame.filename.startswith("<"):
            place = f"{frame.filename}:{frame.lineno}: "
    return f"{place}{_told(error)}"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def _place(name: str, error: BaseException) -> str:
    """Where a person's own class raised it; if it was called with other arguments than it takes, the class's file."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    with suppress(ConfigError, TypeError, OSError):
        made = imported("", name)
        file = inspect.getsourcefile(made) or ""
        if file not in [filename for filename, _ in places]:
            places.append((file, inspect.getsourcelines(made)[1]))
    return f" ({places[-1][0]}:{places[-1][1]})"
