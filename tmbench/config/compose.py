"""The configuration that words of the command line ask for, composed of conf/ and a person's own YAML files."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from ..errors import ConfigError
from .settle import Settings, plain
from .table import conf_dir

SEARCH = "hydra.searchpath"  # the key for a person's own folders of YAML files


def composed(words: list[str], name: str = "config") -> Settings:
    """What these words make of conf/<name>.yaml, with its interpolations.

    Args:
        words: Hydra's overrides; `hydra.searchpath=[file://DIR]` among them adds a person's own files.

    Raises:
        HydraException, ConfigError: a word is no setting.
    """
    _check_folders([word for word in words if word.startswith(f"{SEARCH}=")])
    try:
        within_main = GlobalHydra.instance().is_initialized()  # of a sweep, with the same files
        with nullcontext() if within_main else initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return plain(compose(name, words))
    except ValueError as error:  # Hydra's, for a group's value that is no word
        raise ConfigError(str(error)) from None


def own_files(folder: str | None) -> list[str]:
    """The word that lets Hydra find a person's own folder of YAML files as well; no word without one."""
    return [] if folder is None else search_word([f"file://{Path(folder).resolve()}"])


def search_word(places: list[str]) -> list[str]:
    """The word for folders of YAML files, such as file://DIR; no word without any."""
    return [f"{SEARCH}={json.dumps(places, ensure_ascii=False)}"] if places else []


def _check_folders(search: list[str]) -> None:
    for override in OverridesParser.create().parse_overrides(search):
        for place in cast(list[str], override.value()):
            folder = place.removeprefix("file://")
            if "://" not in folder and not Path(folder).is_dir():
                raise ConfigError(
                    f"{folder}: no such folder, but YAML files are expected in it; if they are elsewhere now, say "
                    f"{SEARCH}=[file://DIR]"
                )
