"""The table of settings: what each key of a configuration must be, what it does, and what it is to the result.

Each key is declared once, in conf/, by the comment behind it:

    momentum: 0.0   # a number >= 0: share of the last step that is kept

Before the colon stands what the value must be, in the words of `values.check_of`; without it, the type of the default
decides. After it come the help and clauses, each after `; `:

    null: TEXT         what null means, where it may be given
    only with KEY      nothing reads it while that key of the same group is false, null or 0; with its own KEY, a run
                       that leaves it so is the run that it was before there was such a key
    becomes KEY        it reaches the numbers through KEY alone, which is part of a run's identity in its place
    fixed: TEXT        no word of the command line may set it; what to do instead. `may be set` is the opposite
    of the method      its kind, where that is not its group's: one of the four below

A key without a comment has that of another file of its group. In a file that a person keeps elsewhere, only what a
comment says before its colon is checked, see `own_keys`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from os.path import isfile  # False of a name that no file can have, as in a damaged config.yaml
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any, cast

from omegaconf import OmegaConf

from ..errors import ConfigError
from .values import Setting, check_of

NUMBERS = "changes the numbers"  # of a run, but neither the method nor the problem: the seed
METHOD = "of the method"
PROBLEM = "of the problem"
BOOKKEEPING = "bookkeeping"  # changes no number

GROUPS = ("task", "optimizer", "data", "protocol", "schedule", "trainer", "logger", "study", "curvature")  # of a run
KINDS = {"task": PROBLEM, "optimizer": METHOD, "schedule": METHOD, "data": PROBLEM, "world_size": PROBLEM}
OF_NO_NUMBER = ("name", "trunk", "lazy_rows", "elementwise")  # keys of an optimizer that change no number
FOR_THE_RUN = (*OF_NO_NUMBER, "parts")  # and those that its class does not take
NEVER = "never"
STABLE = "stable"  # switch_epoch: where the curvature allows it
PROFILES = ("tiny", "full")
OTHER_FILE = "choose another file, or write one of your own (--config-dir DIR)"

_BY_MEANING = {  # keys that mean the same in many files
    "name": "a word: the name of this file; fixed: say {group}={value}",
    "data.profile": "a word: the name of this file; fixed: say {group}={value}",
    "_target_": "a word: the class or function in Python; fixed",
    "_partial_": "true or false: the run gives it further arguments; fixed",
    "optimizer.switch_step": "anything, or null: switch_epoch in steps; an optimizer with this key has a switch; "
    "null: the run fills it in; fixed: the run fills it in, say switch_epoch",
    "optimizer.lazy_rows": "anything: true if a step without a gradient is linear in the state, so that it can be "
    "taken later; or a list of the parts that must be so; bookkeeping; fixed",
    "optimizer.elementwise": "anything: true if each element of a tensor is stepped by its own gradients and state "
    "alone, so that runs can be stacked; or a list of the parts that must be so; bookkeeping; fixed",
    "optimizer.trunk": "settings such as {part: first}: what it is before its switch, see identity.before_switch; "
    "bookkeeping; fixed",
    "task.data": "anything: the class that reads the data, or several by name; fixed",
    # What these fill in is in the identity.
    "task.alone": "a word: why its runs cannot be stacked; bookkeeping; fixed",
    "task.data_by": "a word: the key that chooses one of several; bookkeeping; fixed",
    "task.choices": "settings: the values that these keys may have; bookkeeping; fixed",
    "task.protocols": "settings: epochs, lr, batch size and switch epoch under each protocol; bookkeeping; fixed",
    "task.full": "settings: the values of null on the real data; bookkeeping; fixed",
    "task.tiny": "settings: the values of null on tiny data; bookkeeping; fixed",
    "task.models": "settings: what differs for a model; bookkeeping; fixed",
    "task.schedule": "settings: what schedule=source makes of its null; bookkeeping; fixed",
}
_LINE = re.compile(r"(  )?(\w+): *(.*?) *(?:# (.*))?")
_MORE = re.compile(r" {4,}# +(.*)")
_EXPECTS = re.compile(r"((?:[^:{]|\{.*?\})+): (.*)")
_CLAUSE = re.compile(r"(null: |only with |becomes |fixed(?:: |$))(.*)")


@dataclass(frozen=True, kw_only=True)
class Key(Setting):
    """One key of a configuration; its fields are the clauses above."""

    kind: str
    null: str = ""
    only_with: str = ""
    becomes: str = ""
    fixed: str = ""

    def is_identity(self, group: Mapping[str, Any]) -> bool:
        """Whether its value makes a run another one, beside these values of its group."""
        is_read = not self.only_with or bool(group.get(self.only_with))
        return self.kind != BOOKKEEPING and not self.becomes and is_read


def conf_dir() -> Path:
    """The folder of our YAML files: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def choices(group: str) -> list[str]:
    """The names of a group's files."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def file_of(values: Mapping[str, Any]) -> str:
    """The name of the file that the values of a group come from."""
    return str(values.get("name", values.get("profile")))


@cache
def values_of(file: str) -> dict[str, Any]:
    """What a file of conf/ says, interpolations as they are; empty if it is not there, as a person's own is not."""
    path = conf_dir() / file
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path))) if isfile(path) else {}


def optimizer_says(optimizer: Mapping[str, Any], key: str) -> bool:
    """Whether a key of an optimizer's YAML, such as lazy_rows, is true; or is so of each of the parts that it lists."""
    said = optimizer.get(key, False)
    if not isinstance(said, list):
        return bool(said)
    looks_at_all = optimizer.get("criterion") or optimizer.get("handover")  # at the whole step
    return not looks_at_all and all(optimizer[part]["_target_"] in _classes_with(key) for part in said)


def measures_curvature(cfg: Mapping[str, Any]) -> bool:
    """Whether a run is to measure its curvature."""
    return "every" in cfg["curvature"]


@cache
def _classes_with(key: str) -> set[str]:
    files = [values_of(f"optimizer/{name}.yaml") for name in choices("optimizer")]
    return {values["_target_"] for values in files if values.get(key) is True}


@cache
def keys(group: str, name: str) -> dict[str, Key]:
    """The keys in one file of a group, with their defaults; those of a mapping that stands on lines of its own as a.b.

    Empty if there is no such file in conf/, as for a person's own.
    """
    values = values_of(f"{group}/{name}.yaml")
    found = {}
    for key, comment in _comments(group, name).items():
        top, _, inner = key.rpartition(".")
        default = values[top][inner] if top else values[inner]
        if inner in (meanings := _by_meaning(group)):
            declared = _declared(comment, meanings[inner])
        else:
            declared = key_of_group(group, comment or _shared(group).get(inner, ""), _expected(values, key, default))
        found[key] = replace(declared, default=default)
    return found


def own_keys(group: str, file: Path) -> dict[str, Key]:
    """The keys of a person's own file whose comment says what they must be; ConfigError for one that nearly does."""
    comments = {key: comment for key, comment in _comments_of(group, file).items() if comment}
    for key, comment in comments.items():
        _check_condition(f"{file}: {key}", comment)
    declared = {key: key_of_group(group, comment) for key, comment in comments.items()}
    return {key: setting for key, setting in declared.items() if setting.expects != "anything"}


def _check_condition(where: str, comment: str) -> None:
    """Raises ConfigError for a misspelt condition, such as `a numer > 0: rate`, which nothing would check."""
    match = _EXPECTS.fullmatch(comment)
    if not match or not match[1].startswith(("a ", "one ", "true ")):
        return
    with suppress(ValueError):
        check_of(match[1])
        return
    kinds = ["a number", "a whole number", "a word", "a folder", "a sentence", "a list", "one of", "true or false"]
    head = re.split(r"\s*[<>=]|,? (?:between|in|from|or|and) ", match[1])[0]
    heads = (match[1], head, " ".join(head.split()[:2]) if head.startswith("one ") else head)
    likely = next((near[0] for head in heads if (near := get_close_matches(head, kinds, 1, 0.85))), None)
    if likely:
        expected = f"{likely}, perhaps with limits such as > 0 or between 0 and 1" if "number" in likely else likely
        raise ConfigError(
            f"{where}: expected before the colon of its comment a condition such as `{expected}`, got `{match[1]}`; "
            "write it so, or leave the colon out"
        )


@cache
def top_keys() -> dict[str, Key]:
    """The keys that stand in no group."""
    return keys(".", "config")


def known_words() -> list[str]:
    """The words that may stand before the = of a word, but for those that go on behind a dot."""
    return [*top_keys(), *GROUPS, "launcher"]


@cache
def known_keys(group: str, name: str) -> dict[str, Key]:
    """What is known of the keys that a file of a group may have, also if it is a person's own."""
    known = dict(_by_meaning(group))
    for file in {"trainer": ["auto"], "logger": choices("logger")}.get(group, ()):  # several loggers may be chosen
        known |= keys(group, file)
    return known | keys(group, name)


@cache
def kind_of(key: str) -> str:
    """What a setting is to the result: one of the four kinds above.

    Args:
        key: dotted, such as `optimizer.momentum`. A key that nothing is declared for is of its group's kind.
    """
    group, _, name = key.partition(".")
    declared = _by_meaning(group).get(name) if name else top_keys().get(key)
    return (declared or key_of_group(group, _shared(group).get(name, ""))).kind


def reference() -> Iterator[tuple[str, str, Key]]:
    """Every key of a run's configuration: the file in conf/, the dotted key, and what is declared for it."""
    for key, declared in top_keys().items():
        yield "config.yaml", key, declared
    for group in (*GROUPS, "launcher"):
        for name in choices(group):
            for key, declared in keys(group, name).items():
                yield f"{group}/{name}.yaml", f"{group}.{key}", declared


def settings_help() -> str:
    """The keys that stand in no group, for --help."""
    heads = {key: f"{setting.help} ({setting.expects}{f'; null: {setting.null}' if setting.null else ''})"
             for key, setting in top_keys().items()}  # fmt: skip
    return "\n".join(columns(heads))


def columns(texts: Mapping[str, str], most: int = 30) -> list[str]:
    """Lines of a help: each key, and beside it its text, if it has one, within the terminal's width.

    Args:
        most: characters of the left column; a longer key stands out.
    """
    left = 4 + min(most, max(map(len, texts)))
    width = help_width()
    lines: list[str] = []
    for key, text in texts.items():
        head = f"  {key:<{left - 2}}"
        if not text or len(key) > left - 4:
            lines, head = [*lines, head.rstrip()], " " * left
        lines += wrap(text, width, initial_indent=head, subsequent_indent=" " * left, break_on_hyphens=False)
    return lines


def help_width() -> int:
    """Characters of a line of a help: the terminal's, within reason."""
    return max(60, min(120, get_terminal_size((100, 24)).columns))


@cache
def _by_meaning(group: str) -> dict[str, Key]:
    places = {key.rpartition(".")[::2]: comment for key, comment in _BY_MEANING.items()}
    return {name: key_of_group(group, comment) for (top, name), comment in places.items() if top in ("", group)}


@cache
def _shared(group: str) -> dict[str, str]:
    """The comments of a group's keys, by their last name, each from the first file that has one."""
    found: dict[str, str] = {}
    for name in choices(group):
        for key, comment in _comments(group, name).items():
            if comment:
                found.setdefault(key.rpartition(".")[2], comment)
    return found


@cache
def _comments(group: str, name: str) -> dict[str, str]:
    return _comments_of(group, conf_dir() / group / f"{name}.yaml")


def _comments_of(group: str, path: Path) -> dict[str, str]:
    """The comment behind each key of a file, empty where there is none, but for what is for Hydra itself."""
    found: dict[str, str] = {}
    opened = last = ""  # the mapping whose keys follow, and the key before
    for line in path.read_text().splitlines() if isfile(path) else ():
        if match := _LINE.fullmatch(line):
            inside, key, value, comment = match.groups(default="")
            if not inside:
                opened = "" if value or comment or key in _by_meaning(group) else key
            if key != "defaults" and opened != "hydra" and bool(inside) == bool(opened):
                last = f"{opened}.{key}" if opened else key
                found[last] = comment.strip()
        elif (more := _MORE.fullmatch(line)) and last and found[last]:
            found[last] += f" {more[1]}"
    return found


def key_of_group(group: str, comment: str = "", expects: str = "anything") -> Key:
    """The key of a group that a comment describes, or of which nothing is known but the group."""
    return _declared(comment, Key(expects=expects, help="", kind=KINDS.get(group, BOOKKEEPING)))


def _declared(comment: str, otherwise: Key) -> Key:
    """The key that a comment describes; what it leaves open is as in `otherwise`."""
    fields: dict[str, str] = {}
    if match := _EXPECTS.fullmatch(comment):
        with suppress(ValueError):  # a comment that begins with its help, and the default's type decides
            check_of(match[1])
            fields["expects"], comment = match.groups()
    help = []
    for clause in comment.split("; "):
        if match := _CLAUSE.fullmatch(clause):
            fields[match[1].strip(": ").replace(" ", "_")] = match[2] or OTHER_FILE
        elif clause == "may be set":
            fields["fixed"] = ""
        elif clause in (NUMBERS, METHOD, PROBLEM, BOOKKEEPING):
            fields["kind"] = clause
        else:
            help.append(clause)
    return replace(otherwise, help="; ".join(help) or otherwise.help, **fields)


def _expected(values: dict[str, Any], key: str, default: Any) -> str:
    """What a value must be where no comment says it: one of the file's choices, or of the default's type."""
    allowed = dict(values.get("choices", {}))
    if isinstance(values.get("data"), dict):
        allowed[values.get("data_by", "dataset")] = list(values["data"])
    if key in allowed:
        return f"one of {', '.join(allowed[key])}"
    if default is None:  # as the profiles fill it in
        filled = [values[profile][key] for profile in PROFILES if key in values.get(profile, {})]
        default = min((value for value in filled if type(value) is int), default=next(iter(filled), None))
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int):
        return f"a whole number >= {min(default, 1)}"
    if isinstance(default, float):
        return "a number >= 0"
    if isinstance(default, str) and not default.startswith("${"):
        return "a word"
    return "a list" if isinstance(default, list) else "settings" if isinstance(default, dict) else "anything"
