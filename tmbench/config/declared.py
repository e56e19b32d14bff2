"""The settings that the YAML files of conf/ declare, by the comment behind each key.

    momentum: 0.0   # a number >= 0: share of the last step that is kept

Before the colon stands what the value must be, in the words of `values.check_of`; without it, the type of the default
decides. After it come the help and, each after `; `, perhaps: `null: what null means`, `only with KEY` (nothing reads
it while that key of the same group is false, null or 0), `fixed` (no word of the command line may set it) and `may be
set` (the opposite). A key without a comment has that of another file of its group. Nothing is known of the files that
a person keeps elsewhere: their values are checked by those who read them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from .table import BOOKKEEPING, GROUPS, KINDS, OTHER_FILE, PROFILES, TABLE, Key, choices, conf_dir
from .values import check_of


def is_identity(group: str, name: str, values: Mapping[str, Any]) -> bool:
    """Whether the value of a key in a group makes a run another one."""
    file = str(values.get("name", values.get("profile")))
    key = keys(group, file).get(name) or TABLE.get(f"{group}.{name}")
    return key.is_identity(values) if key else KINDS.get(group, BOOKKEEPING) != BOOKKEEPING


def reference() -> Iterator[tuple[str, str, Key]]:
    """Every key of a run's configuration: the file in conf/, the dotted key, and what is declared for it."""
    for key, default in values_of("config.yaml").items():
        if key not in ("defaults", "hydra"):
            yield "config.yaml", key, replace(TABLE.get(key, Key(expects="anything", help="")), default=default)
    for group in (*GROUPS, "launcher"):
        for name in choices(group):
            for key, declared in keys(group, name).items():
                yield f"{group}/{name}.yaml", f"{group}.{key}", declared


@cache
def values_of(file: str) -> dict[str, Any]:
    """What a file of conf/ says, interpolations as they are; empty if it is not there, as a person's own is not."""
    path = conf_dir() / file
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path))) if path.is_file() else {}


@cache
def keys(group: str, name: str) -> dict[str, Key]:
    """The keys in one file of a group, with their defaults; those of a mapping that stands on lines of its own as a.b.

    Empty if there is no such file in conf/, as for a person's own.
    """
    path = conf_dir() / group / f"{name}.yaml"
    if not path.is_file():
        return {}
    values = values_of(f"{group}/{name}.yaml")
    found: dict[str, Key] = {}
    comments = _comments(path)
    for key, comment in comments.items():
        top, _, inner = key.rpartition(".")
        opened = f"{group}.{top or inner}" not in TABLE and any(other.startswith(f"{inner}.") for other in comments)
        if key == "defaults" or (opened and not top) or f"{group}.{top}" in TABLE:
            continue
        default = values[top][inner] if top else values[inner]
        structural = TABLE.get(f"{group}.{inner}")
        if structural and not _is_known(comment.partition(": ")[0]):
            declared = structural
        elif structural:
            declared = _declared(comment, structural)
        else:
            plain = Key(expects=_expected(values, key, default), help="", kind=KINDS.get(group, BOOKKEEPING))
            declared = _declared(comment or _shared(group).get(inner, ""), plain)
        found[key] = replace(declared, default=default)
    return found


@cache
def _shared(group: str) -> dict[str, str]:
    """The comments of a group's keys, by their last name, each from the first file that has one."""
    found: dict[str, str] = {}
    for name in choices(group):
        for key, comment in _comments(conf_dir() / group / f"{name}.yaml").items():
            if comment:
                found.setdefault(key.rpartition(".")[2], comment)
    return found


@cache
def _comments(path: Path) -> dict[str, str]:
    """The comment behind each key of a YAML file; empty where there is none."""
    found: dict[str, str] = {}
    parent = last = ""
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"(  )?(\w+):(?:\s+(.*))?", line):
            inside, name, rest = match[1], match[2], match[3] or ""
            value, _, comment = rest.partition("# ") if not rest.startswith("#") else ("", "", rest[1:])
            if not inside:
                parent = "" if value.strip() else f"{name}."
            elif not parent:
                continue
            last = f"{parent}{name}" if inside else name
            found[last] = comment.strip()
        elif (more := re.fullmatch(r"\s{4,}#\s+(.*)", line)) and last and found[last]:
            found[last] += f" {more[1]}"
    return found


def _declared(comment: str, plain: Key) -> Key:
    """The key that a comment describes; what it leaves open is as in `plain`."""
    expects, colon, rest = comment.partition(": ")
    if colon and _is_known(expects):
        plain, comment = replace(plain, expects=expects), rest
    told = []
    for clause in comment.split("; "):
        if clause.startswith("null: "):
            plain = replace(plain, null=clause.removeprefix("null: "))
        elif clause.startswith("only with "):
            plain = replace(plain, only_with=clause.removeprefix("only with "))
        elif clause in ("fixed", "may be set"):
            plain = replace(plain, fixed=OTHER_FILE if clause == "fixed" else "")
        else:
            told.append(clause)
    return replace(plain, help="; ".join(told) or plain.help)


def _is_known(expects: str) -> bool:
    try:
        check_of(expects)
    except ValueError:
        return False
    return True


def _expected(values: dict[str, Any], key: str, default: Any) -> str:
    """What a value must be where no comment says it: one of the file's choices, or of the default's type."""
    allowed = dict(values.get("choices", {}))
    if isinstance(values.get("data"), dict):
        allowed[values.get("data_by", "dataset")] = list(values["data"])
    if key in allowed:
        return f"one of {', '.join(allowed[key])}"
    if default is not None:
        return _type(default)
    fillings = [values[profile][key] for profile in PROFILES if key in values.get(profile, {})]
    whole = [value for value in fillings if type(value) is int]
    return _type(min(whole) if whole else fillings[0]) if fillings else "anything"


def _type(default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int):
        return f"a whole number >= {min(default, 1)}"
    if isinstance(default, float):
        return "a number >= 0"
    if isinstance(default, str):
        return "anything" if default.startswith("${") else "a word"
    return "a list" if isinstance(default, list) else "settings"
