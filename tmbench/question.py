"""The question that a folder answers: a study or a judgement goes on only if it is asked the same again."""

from pathlib import Path

from .config.settle import Settings, flat
from .errors import ConfigError
from .files import read_sealed, write_sealed

SHOWN = 8  # differences that an error lists


def check_question(path: Path, question: Settings, what: str, instead: str) -> None:
    """Notes the question in a file, or compares it with the one that is there.

    Args:
        what: what the file's folder holds, such as `study`.
        instead: what a person can do who has asked another.

    Raises:
        ConfigError: it is another; names the settings that differ.
        DataError: the file is damaged.
    """
    if not path.exists():
        write_sealed(path, question)
    remedy = f"say name=... for a new {what}, or remove {path.parent}"
    there, now = flat(read_sealed(path, Settings, remedy)), flat(question)
    if there != now:
        differ = [key for key in there | now if there.get(key) != now.get(key)]
        lines = [f"  {key}: was {there.get(key)}, is {now.get(key)}" for key in differ[:SHOWN]]
        lines += [f"  and {len(differ) - SHOWN} more"] if len(differ) > SHOWN else []
        told = "\n".join(lines)
        raise ConfigError(f"{path.parent}: expected the {what} that is there, got another:\n{told}\n  {instead}")
