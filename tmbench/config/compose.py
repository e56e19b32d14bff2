"""The configuration that words of the command line ask for, composed of conf/ and a person's own YAML files."""

import json
import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import ConfigError, UsageError, did_you_mean
from .settle import Settings, flat, plain
from .table import GROUPS, choices, conf_dir, known_words, own_keys
from .values import yaml_problem

CHOICES = (*GROUPS, "launcher", "space", "hydra")
FOLDERS = ("runs_dir", "data_dir")
WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p", "--cfg", "-c")
OPTIONS = (*WITH_VALUE, "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m",
           "--shell-completion", "-sc", "--experimental-rerun", "--info", "-i")  # fmt: skip
SEARCH = "hydra.searchpath"  # the key for a person's own folders of YAML files


def composed(words: list[str], name: str = "config") -> Settings:
    """What these words make of conf/<name>.yaml, with its interpolations.

    Args:
        words: Hydra's overrides; `hydra.searchpath=[file://DIR]` among them adds a person's own files.

    Raises:
        HydraException, ConfigError: a word is no setting.
    """
    check_choices(words, _searched(words))
    try:
        within_main = GlobalHydra.instance().is_initialized()  # of a sweep, with the same files
        with nullcontext() if within_main else initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return plain(compose(name, words))
    except yaml.YAMLError as error:
        raise ConfigError(yaml_problem(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, (ConfigError, OmegaConfBaseException)):
            raise
        # Hydra's, for a word that goes on below a list or a number
        raise ConfigError(f"{shlex.join(words)}: one of these settings cannot be set like this ({error})") from None


def prepared(words: list[str]) -> list[str]:
    """The command line as Hydra wants it: options first, and folders as they are.

    Raises:
        ConfigError: a choice of a group is not one of its files, or a file of a person's own is no choice.
    """
    options, others = [], list[str]()
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("-"):
            key, _, value = word.partition("=")
            others.append(f"{key}={Path(value).expanduser()}" if key in FOLDERS and value.startswith("~") else word)
            continue
        _check_option(word)
        options.append(word)
        if word in WITH_VALUE and remaining:
            options.append(remaining.pop(0))
    for word in others:
        if word.startswith(tuple(f"{key}=" for key in FOLDERS)):
            _check_folder(*word.split("=", 1))
    own = [Path(options[i + 1]) for i, word in enumerate(options[:-1]) if word in ("--config-dir", "-cd")]
    own += [Path(word.partition("=")[2]) for word in options if word.startswith("--config-dir=")]
    for folder in own:
        _check_names(folder)
    own += _searched(others)
    check_choices(others, own)
    return [*options, *others]


def _check_option(word: str) -> None:
    name = word.partition("=")[0]
    if name in OPTIONS or (name.startswith("--") and any(option.startswith(name) for option in OPTIONS)):
        return
    key = name.lstrip("-").replace("-", "_")
    hint = f"; a setting is written {key}=VALUE" if key in known_words() else did_you_mean(name, OPTIONS)
    raise UsageError(f"{name}: there is no such option{hint or '; tmbench --help lists the settings, key=value'}")


def _check_folder(key: str, folder: str) -> None:
    """Hydra makes the folder of a run before anybody asks what is in its way."""
    if folder == "null" or folder[:1] in ("", "[", "{"):
        raise ConfigError(f"{key}: expected a folder, got {folder or 'nothing'}")
    try:
        in_the_way = next((p for p in (Path(folder), *Path(folder).parents) if p.exists()), None)
    except OSError as error:
        raise ConfigError(f"{key}: expected a folder, got {folder:.100} ({error.strerror})") from None
    if in_the_way and not in_the_way.is_dir():
        raise ConfigError(f"{key}: expected a folder, got {folder}: {in_the_way} is a file")


def check_choices(words: list[str], own: list[Path]) -> None:
    """Raises ConfigError for a choice that is no word, such as task=1, or whose file in one's own folder is none."""
    overrides = OverridesParser.create().parse_overrides(words)
    for override in overrides:
        group = override.key_or_group
        if (group in CHOICES or "/" in group) and not override.is_delete():
            values = list(override.sweep_iterator() if override.is_sweep_override() else [override.value()])
            for value in _each(values) if group == "logger" else values:
                if not (isinstance(value, (str, dict)) and value):
                    names = ", ".join(choices(group)) or "or of Hydra's"
                    raise ConfigError(
                        f"{group}: expected the name of a file of conf/{group} ({names}), got {_word(value)}"
                    )
                for file in (folder / group / f"{value}.yaml" for folder in own):
                    if isinstance(value, str) and file.is_file():
                        _check_own_values(group, file, _checked_file(group, file), overrides)
        elif not group:
            raise ConfigError(f"{override.input_line}: expected key=value, got no key")


def _each(values: list[Any]) -> list[Any]:
    """The names among values that may also be lists of names; an empty list as it is."""
    return [name for value in values for name in (value if isinstance(value, list) and value else [value])]


def _checked_file(group: str, file: Path) -> Settings:
    """What a person's own file says; ConfigError if it lacks what a choice must say of itself."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except yaml.YAMLError as error:
        raise ConfigError(yaml_problem(error)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: not a YAML file that can be read: {' '.join(str(error).split())}") from None
    if not (content and isinstance(content, dict)):
        got = repr(content)[:60] if content else "an empty file"
        raise ConfigError(f"{file}: expected lines such as lr: 0.1, got {got}")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise ConfigError(
            f"{file}: expected names as keys, such as lr, got {odd[0]!r}; write it in quotes, or rename it"
        )
    defaults = content.get("defaults", [])
    if not (isinstance(defaults, list) and all(_is_default(entry) for entry in defaults)):
        expected = f"a list of names of other files of {group}/, and _self_, such as [sgd, _self_]"
        raise ConfigError(f"{file}: defaults: expected {expected}, got {defaults!r:.60}")
    required = {"name"} if group in GROUPS and group != "data" else set()
    required |= {"_target_"} if group in ("task", "optimizer") else set()
    if "defaults" not in content and (missing := sorted(required - content.keys())):
        raise ConfigError(f"{file}: expected the keys {', '.join(sorted(required))}, got no {', '.join(missing)}")
    return cast(Settings, content)


def _check_own_values(group: str, file: Path, content: Settings, overrides: list[Override]) -> None:
    """Raises ConfigError for a value, in the file or given as a word, that is not what the file's own comment says."""
    content = flat(content)
    for key, setting in own_keys(group, file).items():
        if content.get(key) is not None and not _refers(content[key]):  # null: the run fills it in
            setting.checked(f"{file}: {key}", content[key])
        for override in overrides:
            if override.key_or_group == f"{group}.{key}" and not override.is_delete():
                several = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
                for value in (getattr(one, "text", one) for one in several):  # the text of one in quotes
                    if not _refers(value):
                        setting.checked(f"{group}.{key}", value)


def _refers(value: Any) -> bool:
    """Whether it stands for the value of another key."""
    return isinstance(value, str) and "${" in value


def _is_default(entry: Any) -> bool:
    """Whether it may stand in a list of defaults: a name of a file, or a group with one or several."""
    return isinstance(entry, str) or (isinstance(entry, dict) and len(entry) == 1)


def _word(value: Any) -> str:
    return "null" if value is None else "nothing" if value == "" else str(value)


def own_files(folder: str | None) -> list[str]:
    """The word that lets Hydra find a person's own folder of YAML files as well; no word without one."""
    return [] if folder is None else search_word([f"file://{Path(folder).resolve()}"])


def search_word(places: list[str]) -> list[str]:
    """The word for folders of YAML files, such as file://DIR; no word without any."""
    return [f"{SEARCH}={json.dumps(places, ensure_ascii=False)}"] if places else []


def as_typed(words: list[str]) -> list[str]:
    """The words with `--config-dir DIR` in place of Hydra's search path, where that is a single folder."""
    single = re.compile(re.escape(SEARCH) + r'=\["file://([^",]+)"\]')
    found = [(word, single.fullmatch(word)) for word in words]
    return [part for word, match in found for part in (["--config-dir", match[1]] if match else [word])]


def _searched(words: list[str]) -> list[Path]:
    """A person's own folders of YAML files among the words; ConfigError if one cannot serve."""
    own = list[Path]()
    search = [word for word in words if word.startswith(f"{SEARCH}=")]
    for override in OverridesParser.create().parse_overrides(search):
        places = override.value()
        if not (isinstance(places, list) and all(isinstance(place, str) for place in places)):
            raise ConfigError(f"{SEARCH}: expected a list of folders, [file://DIR], got {_word(places)}")
        for place in cast(list[str], places):
            folder = place.removeprefix("file://")
            if "://" in folder:  # in a package
                continue
            if not Path(folder).is_dir():
                raise ConfigError(
                    f"{folder}: no such folder, but YAML files are expected in it; if they are elsewhere now, say "
                    f"{SEARCH}=[file://DIR]"
                )
            _check_names(Path(folder))
            own.append(Path(folder))
    return own


def _check_names(folder: Path) -> None:
    """Raises ConfigError if a file of a person's own has the name of one of ours, which Hydra would take instead."""
    for file in sorted(folder.glob("*/*.yaml")):
        ours = conf_dir() / file.parent.name / file.name
        if ours.is_file() and ours.read_bytes() != file.read_bytes():
            choice = f"{file.parent.name}={file.stem}"
            raise ConfigError(f"{file}: {choice} is built in, and this file would not be read; rename it")
