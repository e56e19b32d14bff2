"""What a person can mend: shown as one message, without a traceback."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOT_THEIRS = ("tmbench", "tasks", "torch", "pytorch_optimizer")  # an error in these keeps its traceback


class ConfigError(ValueError):
    """A setting is not what it must be; the message names the key, the expected and the given value."""


class DataError(ValueError):
    """A data file is missing or broken; the message names the file (and line) and what to do."""


class RunError(RuntimeError):
    """A run cannot continue; the message says why, or which of its processes failed, and how."""


class UsageError(ConfigError):
    """The words of a command line make no command; the message names the word and what is possible."""


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
        place = traceback.extract_tb(error.__traceback__)[-1]
        is_ours = Path(place.filename).is_relative_to(Path(__file__).parent)  # it was called with other arguments
        where = "" if is_ours else f" ({place.filename}:{place.lineno})"
        message = " ".join(str(error).split()) or "no message"
        raise ConfigError(f"{name}{where}: {type(error).__name__}: {message}") from error
