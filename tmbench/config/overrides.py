"""The words that a run was asked for with, kept beside what they became, so that a change is composed anew."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError, DataError
from ..files import checked, loads, read, read_sealed_text, read_yaml, sealed_text, write
from .compose import SEARCH, composed, search_word
from .identity import OVERRIDES, SCHEMA, identity
from .settle import Saved, Settings, flat, plain, settled
from .table import BOOKKEEPING, GROUPS, OTHER_FILE, keys, known_keys
from .trust import check_classes

OF_A_SWEEP = ("launcher", "plan", "study", "fail_fast")
# Where a run lies and whether it is repeated: nothing follows from these, so a saved configuration takes them as it is.
AROUND = ("force", "runs_dir", "data_dir")
_OF_TRAINER = [name for name, key in keys("trainer", "auto").items() if key.kind != BOOKKEEPING]

_KEY = re.compile(r"\+{0,2}(?!hydra\b)[A-Za-z_][\w.]*")
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)  # text that Hydra takes as it is, but for a few words


def key_of(word: str) -> str:
    """The key of a word such as +optimizer.amsgrad=true."""
    return word.lstrip("+~").partition("=")[0]


def word_of(key: str, value: Any) -> str:
    """The word for a Python value, of which Hydra makes the same value; ConfigError if the key or value has none.

    Numbers and arrays of numpy and torch are plain numbers and lists; interpolations such as ${lr} stay.
    """
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{key}: expected the name of a setting, such as lr, task.width or +optimizer.fused")
    return f"{key}={_in_grammar(key, value)}"


def _in_grammar(key: str, value: Any) -> str:
    """A value as Hydra's grammar has it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    match value:
        case None | bool():
            return "null" if value is None else str(value).lower()
        case int() | float():
            return (int if isinstance(value, int) else float).__repr__(value)  # not that of a subclass
        case str() if _PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false", "inf", "nan"):
            return value
        case str():  # only a quote, and what stands before one, is escaped
            return "'" + re.sub(r"(\\*)('|$)", lambda at: at[1] * 2 + ("\\'" if at[2] else ""), value) + "'"
        case os.PathLike():
            return _in_grammar(key, os.fspath(value))
        case list() | tuple():
            return f"[{','.join(_in_grammar(key, one) for one in value)}]"
        case Mapping() if all(isinstance(name, str) and _PLAIN.fullmatch(name) for name in value):
            return f"{{{','.join(f'{name}:{_in_grammar(key, one)}' for name, one in value.items())}}}"
    expected = "None, a bool, a number, a text, a path, or a list or mapping of these"
    raise ConfigError(f"{key}: expected {expected}, got {value!r:.100}")


def of_the_run(words: Iterable[str]) -> list[str]:
    """The words that say which run, without those that say how often, or beside which others, it is done."""
    return [word for word in words if key_of(word).split(".")[0] not in (*OF_A_SWEEP, "force")]


def search_path(sources: Iterable[Any]) -> list[str]:
    """The word for a person's own folders of YAML files among Hydra's sources; no word if there are none."""
    own = [s for s in sources if s.provider == "command-line" or s.provider.startswith(SEARCH)]
    return search_word([f"{s.schema}://{Path(s.path).resolve() if s.schema == 'file' else s.path}" for s in own])


def check_words(words: list[str]) -> None:
    """Raises ConfigError for a word that sets what a group's file says of itself.

    Set without the rest of the file, it would name a run after what did not run.
    """
    chosen = {key_of(word): word.partition("=")[2] for word in words}
    for word in words:
        value = word.partition("=")[2]
        group, _, name = key_of(word).partition(".")
        known = known_keys(group, chosen.get(group, ""))
        is_mapping = not name and value.startswith("{")
        if is_mapping:
            name = next((n for n in known if known[n].fixed and re.search(rf"\b{n}\b['\"]?\s*:", value)), "")
        parts = (name, name.split(".")[0], "_target_" if name.endswith("._target_") else "")
        setting = next((known[part] for part in parts if part in known), None)
        if setting is None or not setting.fixed or word == "~optimizer.trunk":
            continue
        if name in ("name", "profile") and chosen.get(group) == value and not is_mapping:
            continue
        remedy = OTHER_FILE if is_mapping else setting.fixed.format(group=group, value=value)
        raise ConfigError(f"{group}.{name}: this is set by the file that {group}=... chooses, got {word}; {remedy}")


def keep(folder: Path, words: list[str] | None) -> None:
    """Writes down in a run's folder what was asked for; None if that is not known."""
    path = folder / OVERRIDES
    if words is None:
        path.unlink(missing_ok=True)  # of other words, which became another config.yaml
        return
    text = yaml.safe_dump(of_the_run(words), width=10**6, allow_unicode=True)
    about = "# What was asked for, in words of the command line; config.yaml is what it became.\n"
    write(path, sealed_text(about + text))


def again(path: Path, changes: list[str], is_ours: bool = False) -> tuple[DictConfig, list[str] | None]:
    """The configuration that a saved one asks for with these changes, and the words for it, if they are known.

    Without changes it is the saved one itself, if this version can still run it. Otherwise it is composed anew from
    the words of then and the changes, so that all that depends on a change follows.

    A change trust=my.module lets it name classes of one's own; see trust.py. One that `is_ours`, from the process that
    started this one, may name any.

    Raises:
        ConfigError, DataError: there is no such file, it cannot be changed so, or it names a class that is not trusted.
        HydraException: a change is none.
    """
    saved, words = _saved(path), _kept(path)
    if not _is_sealed(path) and _is_sealed(path.with_name(OVERRIDES)):
        # Nothing would follow from a change made in it: lr, say, is optimizer.lr by now.
        raise DataError(
            f"{path}: changed by hand, which has no effect; give each change as a word instead, such as "
            f"python -m tmbench.run {shlex.quote(str(path))} lr=0.5; the run's own command writes the file again"
        )
    _set_folders(saved, path)
    trust = next((word.partition("=")[2] for word in changes if word.startswith("trust=")), None)
    around, places, search, others = _sorted_changes(saved, [w for w in changes if not w.startswith("trust=")])
    if words is not None and search:  # in place of folders that are not here
        words = [*search, *(word for word in words if key_of(word) != SEARCH)]
    outdated = _why_outdated(saved, path.parent)
    if not others and not outdated:
        if not is_ours:
            check_classes(saved, path, trust)
        return OmegaConf.create(saved | around), None if words is None else [*words, *places]
    if words is None:
        problem = outdated or "nothing in it can be changed"
        raise ConfigError(
            f"{path}: {problem}, and no {OVERRIDES} beside it has the words that it was composed of; "
            f"give the whole command: {_command(path.parent, saved)} {shlex.join(others)}".rstrip()
        )
    check_words([*words, *others])
    try:
        before, after = composed(words), composed([*words, *others])
    except HydraException as error:
        error.add_note(f"  {path.with_name(OVERRIDES)} asks for: {shlex.join(words)}")
        raise
    check_classes(settled(after), path.with_name(OVERRIDES), trust)
    _refuse_drift(path, saved, before, after, others, bool(outdated))
    return OmegaConf.create(after | around), [*words, *others, *places]


def _sorted_changes(saved: Settings, changes: list[str]) -> tuple[Settings, list[str], list[str], list[str]]:
    """The values of `AROUND`, and the changes: those of `AROUND`, those of the search path, and the others."""
    around: Settings = {key: saved[key] for key in AROUND}
    places, search, others = list[str](), list[str](), list[str]()
    for change in OverridesParser.create().parse_overrides(changes):
        key, line = change.key_or_group, str(change.input_line)
        if key.split(".")[0] in OF_A_SWEEP:
            raise ConfigError(f"{key}: this works for a sweep only; a sweep is python -m tmbench -m key=value,value")
        if key in AROUND and not change.is_delete() and not change.is_sweep_override():
            around[key] = change.value()
            places.append(line)
        else:
            (search if key == SEARCH else others).append(line)
    return around, places, search, others


def _why_outdated(saved: Settings, folder: Path) -> str:
    """Why this version cannot run a saved configuration as it is; empty if it can."""
    schema = _result(folder).get("schema_version")
    if schema == SCHEMA:  # so its classes are here; looking for them would import torch
        return ""
    if schema is not None:
        return f"saved by another version (schema {schema}, this one has {SCHEMA})"
    for key, value in flat(saved).items():
        if (key.endswith("_target_") or key == "task.data") and str(value).startswith("tmbench."):
            try:
                get_object(value)
            except (ImportError, ValueError):
                return f"saved by another version ({key}: this one has no {value})"
    return ""


def _is_sealed(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(b"# sha256 ")


def _saved(path: Path) -> Settings:
    try:
        content = read_sealed_text(path, OmegaConf.create)  # one that a person has written may have 1e-3
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration to run: {error}") from None
    cfg = plain(content) if isinstance(content, DictConfig) else {}
    required = [f"{group}.{'profile' if group == 'data' else 'name'}" for group in GROUPS]
    required += [*(f"trainer.{name}" for name in _OF_TRAINER), "seed", *AROUND]
    if missing := [key for key in required if key not in flat(cfg)]:
        raise ConfigError(f"{path}: expected a run's config.yaml; it says nothing of {', '.join(missing)}")
    try:
        checked(Saved, cfg)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return cfg


def _kept(path: Path) -> list[str] | None:
    path = path.with_name(OVERRIDES)
    try:
        words: list[str] = read_yaml(path, list[str])
        return words
    except FileNotFoundError:
        return None


def _set_folders(cfg: Settings, path: Path) -> None:
    """Lets a run that lies in its own folder stay there, and find its data, wherever it is called from."""
    folder = path.absolute().parent
    runs, runs_dir = folder.parent, Path(cfg["runs_dir"])
    is_its_own = folder.name.startswith(f"{cfg['task']['name']}-{cfg['optimizer']['name']}-{cfg['seed']}-")
    if not is_its_own or runs.resolve() == runs_dir.resolve():
        return
    cfg["runs_dir"] = str(runs)
    # A relative data_dir is relative to the same folder as a relative runs_dir.
    start = next((p for p in (runs, *runs.parents) if (p / runs_dir).resolve() == runs.resolve()), Path())
    cfg["data_dir"] = str(start / cfg["data_dir"])


def _result(folder: Path) -> Settings:
    """What result.json says, as far as it can be read; empty if it cannot."""
    try:
        content = read(folder / "result.json", loads)
    except (FileNotFoundError, DataError):
        return {}
    return content if isinstance(content, dict) else {}


def _command(folder: Path, cfg: Settings) -> str:
    """What a person would type for the run in this folder."""
    command = _result(folder).get("command", " tmbench.run ")
    if " tmbench.run " not in command:
        return str(command)
    return f"python -m tmbench task={cfg['task']['name']} optimizer={cfg['optimizer']['name']} ..."


def _refuse_drift(
    path: Path, saved: Settings, before: Settings, after: Settings, changes: list[str], is_outdated: bool
) -> None:
    """Raises ConfigError if more than the changes would change, since the words of then mean something else by now."""

    def facts(cfg: Settings) -> dict[str, Any]:
        own = identity(cfg, "")
        del own["world_size"]
        return flat(own | {"trainer": {name: cfg["trainer"][name] for name in _OF_TRAINER}})

    try:
        then = facts(settled(before))
    except ConfigError:  # it cannot be had here at all, as where there is no GPU
        return
    was, now = facts(saved), facts(settled(after))
    changed = [key_of(change) for change in changes]
    compared = was | then
    if is_outdated:  # keys come and go, and classes move, from version to version
        compared = {key: 0 for key in was.keys() & then.keys() if not key.endswith("_target_") and key != "task.data"}

    def is_asked(key: str) -> bool:
        return any(key.startswith(f"{own}.") or key.split(".")[-1] == own.split(".")[-1] for own in changed)

    drifted = [key for key in compared if was.get(key) != then.get(key) == now.get(key) and not is_asked(key)]
    if drifted:
        lines = "\n".join(f"  {key}: was {was.get(key)}, would be {then.get(key)}" for key in drifted[:8])
        raise ConfigError(
            f"{path}: more would change than {shlex.join(changes) or 'nothing'}, since this version or machine fills "
            f"in other values:\n{lines}\n  set these as well, to the values that you want"
        )
