"""What was asked for: the words of a run, kept beside what they became, so that a change is composed anew."""

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigError, DataError
from ..files import read_sealed_text, sealed_text, write
from ..result import Result
from .identity import OVERRIDES, identity
from .settle import GROUPS, Settings, conf_dir, flat, plain, settled

OF_A_SWEEP = ("launcher", "plan", "study")
SEARCH = "hydra.searchpath"  # a person's own folders of YAML files
# Where a run lies and whether it is repeated: nothing follows from these, so a saved configuration takes them as it is.
AROUND = ("force", "runs_dir", "data_dir")
# What a group's file says of itself. Set without the rest of the file, it names a run after what did not run.
_OWN: dict[str, tuple[str, ...]] = dict.fromkeys((*GROUPS, "launcher"), ("name", "profile", "_target_", "_partial_"))
_OWN["optimizer"] += ("method", "trunk", "switch_step")
_OWN["task"] += ("data", "data_by")
_OPEN = {"any": ("name",), "switch": ("first._target_", "second._target_")}  # files that are there to be filled in
_OF_TRAINER = ("accelerator", "devices", "num_nodes", "precision", "accumulate")


def key_of(word: str) -> str:
    """The key of a word such as +optimizer.amsgrad=true."""
    return word.lstrip("+~").partition("=")[0]


def of_the_run(words: Iterable[str]) -> list[str]:
    """The words that say which run, without those that say how often, or beside which others, it is done."""
    return [word for word in words if key_of(word).split(".")[0] not in (*OF_A_SWEEP, "force")]


def search_path(sources: Iterable[Any]) -> list[str]:
    """The word for a person's own folders of YAML files among Hydra's sources; no word if there are none."""
    own = [s for s in sources if s.provider == "command-line" or s.provider.startswith(SEARCH)]
    places = [f"{s.schema}://{Path(s.path).resolve() if s.schema == 'file' else s.path}" for s in own]
    return [f"{SEARCH}={json.dumps(places, ensure_ascii=False)}"] if places else []


def check_words(words: list[str]) -> None:
    """Raises ConfigError for a word with which a run would go by a name that is not its own."""
    chosen = {key_of(word): word.partition("=")[2] for word in words}
    for word in words:
        key, value = key_of(word), word.partition("=")[2]
        group, _, name = key.partition(".")
        for own in _OWN.get(group, ()):
            within = name == "" and value.startswith("{") and re.search(rf"\b{own}\b['\"]?\s*:", value)
            nested = own == "_target_" and name.endswith("._target_")
            if not within and not nested and name.split(".")[0] != own:
                continue
            if name in _OPEN.get(chosen.get(group, ""), ()) or word == "~optimizer.trunk":
                continue
            if name in ("name", "profile"):
                if chosen.get(group) == value:
                    continue
                remedy = f"say {group}={value}"
            elif own == "switch_step":
                remedy = "the run fills it in; say switch_epoch"
            else:
                remedy = "choose another file, or write one of your own (--config-dir DIR)"
            raise ConfigError(
                f"{group}.{own if within else name}: expected what the file that {group}=... chooses says, got {word}; "
                f"{remedy}"
            )


def keep(folder: Path, words: list[str] | None) -> None:
    """Writes down in a run's folder what was asked for; None if that is not known."""
    path = folder / OVERRIDES
    if words is None:
        path.unlink(missing_ok=True)  # of an earlier asking, which became another config.yaml
        return
    text = yaml.safe_dump(of_the_run(words), width=10**6, allow_unicode=True)
    about = "# What was asked for, in words of the command line; config.yaml is what it became.\n"
    write(path, sealed_text(about + text))


def again(path: Path, changes: list[str]) -> tuple[DictConfig, list[str] | None]:
    """The configuration that a saved one asks for with these changes, and the words for it, if they are known.

    Without changes it is the saved one itself. With changes it is composed anew from what was asked for then and the
    changes, so that all that depends on a change follows.

    Raises:
        ConfigError, DataError: there is no such file, or it cannot be changed so.
        HydraException: a change is none.
    """
    saved, words = _saved(path), _kept(path)
    if not _is_sealed(path) and _is_sealed(path.with_name(OVERRIDES)):
        # Nothing would follow from a change made in it: lr, say, is optimizer.lr by now.
        raise DataError(
            f"{path}: changed by hand, and nothing would follow from that; say each change as a word instead, such as "
            f"python -m tmbench.run {shlex.quote(str(path))} lr=0.5; the run's own command writes the file again"
        )
    _come_home(saved, path)
    around: Settings = {key: saved[key] for key in AROUND}
    asked, places, search = list[str](), list[str](), list[str]()
    for change in OverridesParser.create().parse_overrides(changes):
        key, line = change.key_or_group, str(change.input_line)
        if key.split(".")[0] in OF_A_SWEEP:
            raise ConfigError(f"{key}: expected a sweep: python -m tmbench -m")
        if key in AROUND and not change.is_delete() and not change.is_sweep_override():
            around[key] = change.value()
            places.append(line)
        else:
            (search if key == SEARCH else asked).append(line)
    if words is not None and search:  # in place of folders that are not here
        words = [*search, *(word for word in words if key_of(word) != SEARCH)]
    if not asked:
        return OmegaConf.create(saved | around), None if words is None else [*words, *places]
    if words is None:
        raise ConfigError(
            f"{path}: no {OVERRIDES} beside it says what was asked for, so nothing in it can be changed; "
            f"give the whole command with the change: {_command(path.parent, saved)} {shlex.join(asked)}"
        )
    check_words([*words, *asked])
    try:
        before, after = _composed(words), _composed([*words, *asked])
    except HydraException as error:
        error.add_note(f"  {path.with_name(OVERRIDES)} asks for: {shlex.join(words)}")
        raise
    _refuse_drift(path, saved, before, after, asked)
    return OmegaConf.create(after | around), [*words, *asked, *places]


def _is_sealed(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(b"# sha256 ")


def _saved(path: Path) -> Settings:
    try:
        found = OmegaConf.create(read_sealed_text(path))
    except OSError as error:
        raise ConfigError(f"no configuration to run: {error}") from None
    except DataError:
        raise
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a run's config.yaml, got no YAML: {error}") from None
    cfg = plain(found) if isinstance(found, DictConfig) else {}
    names = {group: "profile" if group == "data" else "name" for group in GROUPS}
    parts = {group: cfg[group] if isinstance(cfg.get(group), dict) else {} for group in GROUPS}
    missing = [f"{group}.{name}" for group, name in names.items() if name not in parts[group]]
    missing += [f"trainer.{name}" for name in _OF_TRAINER if name not in parts["trainer"]]
    if missing := missing + [key for key in ("seed", *AROUND) if key not in cfg]:
        raise ConfigError(f"{path}: expected a run's config.yaml; it says nothing of {', '.join(missing)}")
    return cfg


def _kept(path: Path) -> list[str] | None:
    path = path.with_name(OVERRIDES)
    try:
        words = yaml.safe_load(read_sealed_text(path))
    except FileNotFoundError:
        return None
    except DataError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: expected a list of words, got what cannot be read ({error})") from None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{path}: expected a list of words such as lr=0.1, got {words!r:.60}")
    return words


def _come_home(cfg: Settings, path: Path) -> None:
    """Lets a run that lies in its own folder stay there, and find its data, wherever it is called from."""
    folder = path.absolute().parent
    runs, said = folder.parent, Path(cfg["runs_dir"])
    its_own = folder.name.startswith(f"{cfg['task']['name']}-{cfg['optimizer']['name']}-{cfg['seed']}-")
    if not its_own or runs.resolve() == said.resolve():
        return
    cfg["runs_dir"] = str(runs)
    # Where a relative runs_dir was said, a relative data_dir was, too.
    start = next((p for p in (runs, *runs.parents) if (p / said).resolve() == runs.resolve()), Path())
    cfg["data_dir"] = str(start / cfg["data_dir"])


def _command(folder: Path, cfg: Settings) -> str:
    """What a person would type for the run in this folder."""
    try:
        result = Result.load(folder)
    except DataError:
        result = None
    if result and " tmbench.run " not in result.command:
        return result.command
    return f"python -m tmbench task={cfg['task']['name']} optimizer={cfg['optimizer']['name']} ..."


def _composed(words: list[str]) -> Settings:
    search = [word for word in words if key_of(word) == SEARCH]
    for override in OverridesParser.create().parse_overrides(search):
        for place in cast(list[str], override.value()):
            folder = place.removeprefix("file://")
            if "://" not in folder and not Path(folder).is_dir():
                raise ConfigError(
                    f"{folder}: no such folder; the run was asked for with YAML files in it; if they are elsewhere "
                    f"now, say {SEARCH}=[file://DIR]"
                )
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return plain(compose("config", words))
    except ValueError as error:  # Hydra's, for a group's value that is no word
        raise ConfigError(str(error)) from None


def _refuse_drift(path: Path, saved: Settings, before: Settings, after: Settings, changes: list[str]) -> None:
    """Raises ConfigError if more than the changes would change: here, what was asked for has become something else."""

    def facts(cfg: Settings) -> dict[str, Any]:
        own = identity(cfg, "")
        del own["world_size"]
        return flat(own | {"trainer": {name: cfg["trainer"][name] for name in _OF_TRAINER}})

    try:
        then = facts(settled(before))
    except ConfigError:  # it cannot be had here at all, as where there is no GPU
        return
    was, now = facts(saved), facts(settled(after))
    said = [key_of(change) for change in changes]

    def is_said(key: str) -> bool:
        return any(key.startswith(f"{own}.") or key.split(".")[-1] == own.split(".")[-1] for own in said)

    drifted = [key for key in was | then if was.get(key) != then.get(key) == now.get(key) and not is_said(key)]
    if drifted:
        told = "\n".join(f"  {key}: was {was.get(key)}, would be {then.get(key)}" for key in drifted[:8])
        raise ConfigError(
            f"{path}: more would change than {shlex.join(changes)}, since what was asked for becomes something else "
            f"here and now:\n{told}\n  say these, too, as you want them"
        )
