"""What all commands share: key=value words, messages of errors, exit status, --help. Light to import.

A command is `python -m tmbench.<name>`, or `tmbench <name>`. It takes words `key=value`; `--key value` and
`--key=value` mean the same, and `--key` alone is key=true. It ends with 0 (done; a run that diverged is a result),
1 (an error, which the message explains), 2 (the words are no command) or 130 (interrupted). `judge` alone ends with its
verdict as well.
"""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any, NoReturn

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from yaml import YAMLError

from . import signals
from .config.table import choices, columns, help_width, keys, known_words
from .config.values import Setting, yaml_problem
from .errors import ConfigError, DataError, RunError, UsageError, did_you_mean

# Whose message is enough.
EXPECTED = (ConfigError, DataError, RunError, HydraException, OmegaConfBaseException, YAMLError)
# Of the system, as well: the disk is full or read-only, a folder is gone, a file is not ours.
OF_THE_DISK = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
               errno.ENOENT, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE}  # fmt: skip
ERROR, USAGE, INTERRUPTED = 1, 2, 130  # exit status

Values = dict[str, Any]

RUNS_DIR = Setting("a folder", "where the runs are", "./runs")
DATA_DIR = Setting("a folder, or null", "where the data sets are; null: where the run found them")
CONFIG_DIR = Setting("a folder, or null", "your own YAML files: task/, optimizer/, space/ ...")
JSON = Setting("true or false", "print JSON for another program in place of a table", False)


def out_dir(default: str) -> Setting:
    return Setting("a folder", "where the files go", default)


@dataclass(frozen=True)
class Verb:
    """One command.

    Args:
        name: as a person types it after `tmbench`: `report`, `runs list`.
        do: (values of the settings, the other words) -> exit status. It may raise what `EXPECTED` names. None: one of
            the choices must be named.
        takes: the words besides key=value that it takes, such as `[RUN | KEY=VALUE ...]`; none if empty.
        examples: lines that the help ends with.
        choices: the commands below this one, by their word; `do` is then for when none is named.
    """

    name: str
    summary: str
    do: Callable[[Values, list[str]], int] | None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    takes: str = ""
    examples: str = ""
    choices: Mapping[str, "Verb"] = field(default_factory=dict)

    def __call__(self, arguments: list[str] | None = None) -> int:
        """Does what the words ask for; returns the exit status."""
        words = sys.argv[1:] if arguments is None else arguments
        if words and words[0] in self.choices:
            return self.choices[words[0]](words[1:])
        return guarded(lambda: self._do(words))

    def _do(self, words: list[str]) -> int:
        if {"-h", "--help"} & set(words):
            print(self.help())
            return 0
        values, others = self.parse(words)
        if self.do is None:
            raise UsageError(self.help())
        first = others[0] if others else "="
        if "=" not in first and not os.path.exists(first) and (hint := did_you_mean(first, self.choices)):
            raise UsageError(f"{first}: tmbench {self.name} has no such command{hint}")
        return self.do(values, others)

    def parse(self, words: list[str]) -> tuple[Values, list[str]]:
        """The values of the settings, and all other words.

        Raises:
            UsageError: a word is not known, or its value is not what it must be.
        """
        values: Values = {key: setting.default for key, setting in self.settings.items()}
        others = []
        remaining = list(words)
        while remaining:
            word = remaining.pop(0)
            key, equals, text = word.partition("=")
            if is_option := word.startswith("-") and len(word) > 1:
                key = key.lstrip("-").replace("-", "_")
            top, _, inner = key.partition(".")
            setting = self.settings.get(top)
            if setting is None or (inner and setting.expects != "settings") or not (equals or is_option):
                if is_option or not self.takes:
                    raise UsageError(self._unknown(word))
                others.append(word)
                continue
            if not equals and setting.expects == "true or false":
                text = "true"
            elif not equals and remaining and not remaining[0].startswith("--"):
                text = remaining.pop(0)
            try:
                if inner:  # one of several values under one name, such as margin.accuracy
                    value = Setting("a number", "").parsed(key, text)
                    values[top] = setting.checked(top, values[top] | {inner: value})
                else:
                    values[key] = setting.parsed(key, text)
            except ConfigError as error:
                raise UsageError(str(error)) from None
        return values, others

    def _unknown(self, word: str) -> str:
        known = [*self.choices, *self.settings]
        hint = did_you_mean(word.lstrip("-").replace("-", "_").partition("=")[0], known)
        here = f"\n  possible here: {' '.join(known)}" * bool(known)
        return f"{word}: tmbench {self.name} has no such word{hint}{here}; see tmbench {self.name} --help"

    def help(self) -> str:
        """What `--help` prints."""
        command = "COMMAND" if self.choices and not self.do else "[COMMAND]" if self.choices else ""
        words = [self.name, command, self.takes, "[key=value ...]" if self.settings else ""]
        width = help_width()
        lines = [f"usage: tmbench {' '.join(filter(None, words))}", ""]
        for text in self.summary.splitlines():
            lines += wrap(text, width, subsequent_indent="  " * text.startswith(" ")) or [""]
        if self.choices:
            lines += ["", "Commands:", *columns({word: verb.summary for word, verb in self.choices.items()})]
        if self.settings:
            texts = {f"{key}={_as_word(s.default)}": f"{s.help} ({s.expects})" for key, s in self.settings.items()}
            lines += ["", "Settings, with their defaults (--key value is accepted as well):", *columns(texts)]
        if self.examples:
            parts = (line.partition("  ") for line in self.examples.strip().splitlines())
            examples = {command: text.strip() for command, _, text in parts}
            lines += ["", "Examples:", *columns(examples, 45 * width // 100)]
        return "\n".join(lines)


def _as_word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def guarded(do: Callable[[], int]) -> int:
    """Does it, and prints what went wrong, or what an interrupted command has saved; returns the exit status."""
    try:
        with signals.raising():
            code = do()
            sys.stdout.flush()
        return code
    except UsageError as error:
        print(error, file=sys.stderr)
        return USAGE
    except BrokenPipeError:  # `| head` has read enough; nothing more may be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except (Exception, KeyboardInterrupt) as error:
        if not signals.is_interrupt(error):
            print(explain(error), file=sys.stderr)
            return ERROR
        saved = f": {error}" if isinstance(error, KeyboardInterrupt) and str(error) else ""
        print(f"interrupted{saved}; the same command continues", file=sys.stderr)
        return INTERRUPTED
    finally:
        signals.forget()


def is_expected(error: BaseException) -> bool:
    """Whether a person can mend the cause, so that the message is enough."""
    return isinstance(error, EXPECTED) or (isinstance(error, OSError) and error.errno in OF_THE_DISK)


def explain(error: BaseException) -> str:
    """What a person needs to know of an error: a message for what they can mend, else where it happened."""
    if not is_expected(error):
        return "".join(traceback.format_exception(error)).strip()
    if isinstance(error, OSError) and not isinstance(error, EXPECTED):
        where = f"{error.filename}: " if error.filename else ""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{where}{error.strerror}{'; free some space and give the same command again' if is_full else ''}"
    # Hydra's own words name a group's options; where it searched helps nobody here.
    message = str(error).split("\nConfig search path")[0].removeprefix("In 'config': ").strip()
    cause = error.__cause__ or error
    if isinstance(error, (ConfigError, DataError)):
        message = str(error)
    elif isinstance(error, YAMLError):  # of a person's own file
        message = yaml_problem(error)
    elif isinstance(error, OverrideParseException):
        message = f"{error.override}: expected key=value; {_meant(str(error.override))}"
    elif several := re.match(r"Ambiguous value for argument '(.+)'", message):
        key, _, value = several[1].partition("=")
        message = f"{several[1]}: several values make a sweep: add -m; a single value that is a list is {key}=[{value}]"
    elif isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = error.options or choices(group)  # Hydra names none for one of a list
        hint = did_you_mean(name, options)
        file = re.match("In '(.+?)'", str(error))
        where = f"{file[1]}.yaml: defaults: " if file and file[1] != "config" else ""
        is_ours = set(options) <= set(choices(group))  # nobody has named a folder with more
        own = "; your own files need --config-dir DIR (config_dir in Python)" * (is_ours and not hint)
        message = f"{where}{group}={name}: there is no such choice{hint}{own}\n  possible here: {' '.join(options)}"
    elif isinstance(error, InstantiationException) and (
        found := re.search(r"Error (?:locating|loading) .*?'(.+?)'", message)
    ):
        message = f"_target_: expected a class or a function that can be imported, got {found[1]}"
    elif isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and OmegaConf.is_dict(cause.parent_node):
        names = sorted(str(name) for name in cause.parent_node if not str(name).startswith(("_", "hydra")))
        group, _, name = str(cause.full_key).partition(".")
        elsewhere = [f"{group}={file}" for file in choices(group) if name in keys(group, file)]
        hint = did_you_mean(name or group, names) or f"; it is a setting of {' or '.join(elsewhere[:3])}" * bool(
            elsewhere
        )
        message = f"{cause.full_key}: there is no such setting{hint}\n  possible here: {' '.join(names)}"
    elif isinstance(cause, (GrammarParseError, InterpolationResolutionError)):
        where = message.removeprefix("Error merging override ") if error is not cause else str(cause.full_key)
        message = f"{where}: {str(cause).splitlines()[0]}; in a text, ${{KEY}} stands for the value of another setting"
    return "\n".join([message, *getattr(error, "__notes__", [])])


def _meant(word: str) -> str:
    """What a person probably meant by a word that Hydra cannot read."""
    key, equals, value = (part.strip() for part in word.partition("="))
    values = [part.strip() for part in value.split(",")]
    if not equals:
        return f"say {key}=VALUE" if key in known_words() else "several values are written without spaces: seed=0,1,2"
    if value.startswith("="):
        return f"say {key}{value}"
    if len(values) > 1 and not all(values):
        return f"there is nothing before or after a comma; several values are written without spaces: {key}=A,B,C"
    if word != f"{key}={value}" and re.fullmatch(r"[\w.-]+", value):
        return f"say {key}={value}, without spaces"
    return "text with special characters needs quotes that reach Hydra, such as key=\"'a=b'\""


def leave(code: int) -> NoReturn:
    """Ends the process; without its exit hooks if a logger hangs, which would wait for it for ever.

    Nor with them if it was interrupted: a half-imported library may crash, and Python end itself by a signal.
    """
    loggers = sys.modules.get("tmbench.training.loggers")
    if (signals.disown() and code == INTERRUPTED) or (loggers is not None and loggers.hung):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
