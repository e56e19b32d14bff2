"""What a value must be, said in words that a person reads in messages and help, and that are the check as well."""

import math
import operator
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from ..errors import ConfigError

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """One key=value that a person may give.

    Args:
        expects: what its value must be; see `check_of`.
        help: what it does, in a few words, with its unit.
        default: the value if none is given.
    """

    expects: str
    help: str
    default: Any = None

    def checked(self, key: str, value: Any) -> Any:
        """The value; ConfigError if it is not what the setting expects."""
        if not check_of(self.expects)(value):
            most = ", at most 2^53" if isinstance(value, int) and abs(value) > 2**53 else ""
            raise ConfigError(f"{key}: expected {self.expects}{most}, got {value!r}")
        return value

    def parsed(self, key: str, text: str) -> Any:
        """The value that a word of the command line gives; ConfigError if it is not what the setting expects."""
        if text == "null" and self.expects.endswith(", or null"):
            return None
        if re.match("a word|a folder|a file|a sentence", self.expects):  # whatever YAML would make of it
            is_path = self.expects.startswith(("a folder", "a file")) and text.startswith("~")
            return self.checked(key, os.path.expanduser(text) if is_path else text)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if isinstance(value, str) and "number" in self.expects:  # 1e-3 is a word to YAML
            with suppress(ValueError):
                value = float(value)
        if value is None:  # `none` is a word of ours; YAML's null was asked for above
            value = text
        return self.checked(key, value)


def yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML file, in a line."""
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark else "a YAML file"
    return f"{where}: not YAML that can be read: {' '.join(str(getattr(error, 'problem', error)).split())}; correct it"


def is_number(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """Whether it is a whole number that JSON holds exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value and abs(value) <= 2**53


def _are_seeds(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole(seed, 0) for seed in value) and 0 < len(value) == len(set(value))


_KINDS: dict[str, Check] = {
    "true or false": lambda value: isinstance(value, bool),
    "a list": lambda value: isinstance(value, list),
    "a count or a list of seeds": lambda value: is_whole(value, 1) or _are_seeds(value),
    "anything": lambda value: True,
}
_NUMBER = re.compile(r"a (whole )?number(?: (>=?) (\S+))?(?: and (<=?) (\S+))?")
_SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@cache
def check_of(expects: str) -> Check:
    """Whether a value is what such words say.

    They are one of: `true or false`, `a word`, `a folder`, `a file`, `a sentence`, `a list`, `settings`,
    `settings such as {a: 1}`, `anything`, `a count or a list of seeds`, `one of a, b, c`, `a number` or `a whole
    number`, perhaps with `> 0`, `>= 0`, `>= 0 and < 1` or `between 0 and 1` (both ends excluded). Further values that
    are allowed follow, each after `, or `; null is None.

    Raises:
        ValueError: they say nothing that this function knows; a mistake of the program.
    """
    first, *others = expects.split(", or ")
    check = _check(first)

    def is_other(value: Any) -> bool:
        return ("null" if value is None else str(value) if is_number(value) else value) in others

    return lambda value: is_other(value) or (value is not None and check(value))


def _check(expects: str) -> Check:
    if expects in _KINDS:
        return _KINDS[expects]
    if re.match("a word|a folder|a file|a sentence", expects):
        return lambda value: isinstance(value, str) and value != ""
    if re.fullmatch(r"settings( such as \{.*\})?", expects):
        return lambda value: isinstance(value, dict)
    if expects.startswith("one of "):
        names = expects.removeprefix("one of ").split(", ")
        return lambda value: isinstance(value, str) and value in names
    found = _NUMBER.fullmatch(re.sub(r"between (\S+) and", r"> \1 and <", expects))
    if not found:
        raise ValueError(f"no check for {expects!r}")
    is_kind = is_whole if found[1] else is_number
    limits = [(_SIGNS[found[i]], float(found[i + 1])) for i in (2, 4) if found[i]]
    return lambda value: is_kind(value) and all(is_so(value, limit) for is_so, limit in limits)
