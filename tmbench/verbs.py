"""What all commands share: key=value words, what errors say, the exit status, --help. Light to import.

A command is `python -m tmbench.<name>`, or `tmbench <name>`. It takes words `key=value`; `--key value` and
`--key=value` mean the same, and `--key` alone is key=true. It ends with 0 (done; a run that diverged is a result),
1 (an error, which the message explains), 2 (the words make no command) or 130 (interrupted).
"""

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from .config.values import Setting
from .errors import ConfigError, DataError, RunError, UsageError

EXPECTED = (ConfigError, DataError, RunError, HydraException, OmegaConfBaseException)  # their message says it all
ERROR, USAGE, INTERRUPTED = 1, 2, 130  # exit status

Values = dict[str, Any]

RUNS_DIR = Setting("a folder", "where the runs are", "./runs")
DATA_DIR = Setting("a folder, or null", "where the data sets are now; null: where the run found them")
JSON = Setting("true or false", "print JSON for another program in place of a table", False)


def out_dir(default: str) -> Setting:
    return Setting("a folder", "where the files go", default)


@dataclass(frozen=True)
class Verb:
    """One command.

    Args:
        name: as a person types it after `tmbench`: `report`, `runs list`.
        summary: one sentence that says what it does.
        do: (values of the settings, the other words) -> exit status. It raises what `EXPECTED` names.
        settings: what key=value words it knows.
        takes: what other words it takes, such as `[RUN | KEY=VALUE ...]`; none if empty.
        examples: lines that the help ends with.
        choices: commands below this one, by their word; `do` is then for when none is named.
    """

    name: str
    summary: str
    do: Callable[[Values, list[str]], int]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    takes: str = ""
    examples: str = ""
    choices: Mapping[str, "Verb"] = field(default_factory=dict)

    def __call__(self, arguments: list[str] | None = None) -> int:
        """Does what the words ask for; returns the exit status."""
        words = sys.argv[1:] if arguments is None else arguments
        if words and words[0] in self.choices:
            return self.choices[words[0]](words[1:])
        if {"-h", "--help"} & set(words):
            print(self.help())
            return 0
        return guarded(lambda: self.do(*self.parse(words)))

    def parse(self, words: list[str]) -> tuple[Values, list[str]]:
        """The settings' values, and the words that are none.

        Raises:
            UsageError: a word is not known, or its value is not what it must be.
        """
        values: Values = {key: setting.default for key, setting in self.settings.items()}
        rest = []
        todo = list(words)
        while todo:
            key, equals, text = (word := todo.pop(0)).partition("=")
            if word.startswith("--") and len(word) > 2:
                key = key[2:].replace("-", "_")
                if key not in self.settings:
                    raise UsageError(self._unknown(word))
                if not equals:
                    is_flag = self.settings[key].expects == "true or false"
                    text = "true" if is_flag else todo.pop(0) if todo else ""
            elif not equals or key.split(".")[0] not in self.settings:
                rest.append(word)
                continue
            top, _, inner = key.partition(".")
            try:
                if not inner:
                    values[key] = self.settings[key].parsed(key, text)
                else:  # one of several values under one name, such as margin.accuracy
                    one = Setting("a number", "").parsed(key, text)
                    values[top] = self.settings[top].checked(top, values[top] | {inner: one})
            except ConfigError as error:
                raise UsageError(str(error)) from None
        if rest and not self.takes:
            raise UsageError(self._unknown(rest[0]))
        return values, rest

    def _unknown(self, word: str) -> str:
        known = [*self.settings, *self.choices]
        near = difflib.get_close_matches(word.lstrip("-").replace("-", "_").partition("=")[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{word}: tmbench {self.name} has no such word{hint}\n  possible here: {' '.join(known)}; see --help"

    def help(self) -> str:
        """What `--help` prints."""
        words = [self.name, self.takes, "[key=value ...]" if self.settings else ""]
        lines = [f"usage: tmbench {' '.join(filter(None, words))}", "", self.summary]
        if self.choices:
            width = max(map(len, self.choices))
            lines += ["", "Commands:", *(f"  {word:<{width}}  {verb.summary}" for word, verb in self.choices.items())]
        if self.settings:
            heads = {key: f"{key}={_as_word(setting.default)}" for key, setting in self.settings.items()}
            width = min(30, max(map(len, heads.values())))
            lines += ["", "Settings, with their defaults (--key value is accepted as well):"]
            lines += [f"  {heads[key]:<{width}}  {s.help} ({s.expects})" for key, s in self.settings.items()]
        if self.examples:
            lines += ["", "Examples:", *(f"  {line}" for line in self.examples.strip().splitlines())]
        return "\n".join(lines)


def _as_word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def guarded(do: Callable[[], int]) -> int:
    """Does it, and says what went wrong where a person can mend it; returns the exit status."""
    try:
        return do()
    except UsageError as error:
        print(error, file=sys.stderr)
        return USAGE
    except EXPECTED as error:
        print(explain(error), file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED


def explain(error: BaseException) -> str:
    """What a person needs to know of an error: a message for what they can mend, else where it happened."""
    if not isinstance(error, EXPECTED):
        return "".join(traceback.format_exception(error)).strip()
    return "\n".join([_message(error), *getattr(error, "__notes__", [])])


def _message(error: BaseException) -> str:
    if isinstance(error, (ConfigError, DataError)):
        return str(error)
    cause = error.__cause__ or error
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and OmegaConf.is_dict(cause.parent_node):
        key, parent = str(cause.full_key), cause.parent_node
        names = sorted(str(name) for name in parent if not str(name).startswith(("_", "hydra")))
        near = difflib.get_close_matches(key.split(".")[-1], names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}: there is no such setting{hint}\n  possible here: {' '.join(names)}"
    # Hydra's own words name a group's options; where it searched helps nobody here.
    return str(error).split("\nConfig search path")[0].removeprefix("In 'config': ").strip()


def leave(code: int) -> NoReturn:
    """Ends the process; without its exit hooks if W&B hangs, which would wait for it for ever."""
    loggers = sys.modules.get("tmbench.training.loggers")
    if loggers is not None and loggers.hung:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
