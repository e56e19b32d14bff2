"""The configuration that words of the command line ask for, composed of conf/ and a person's own YAML files."""

from contextlib import nullcontext

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ..errors import ConfigError
from .settle import Settings, conf_dir, plain


def composed(words: list[str], name: str = "config") -> Settings:
    """What these words make of conf/<name>.yaml, with its interpolations.

    Args:
        words: Hydra's overrides; `hydra.searchpath=[file://DIR]` among them adds a person's own files.

    Raises:
        HydraException, ConfigError: a word is no setting.
    """
    try:
        within_main = GlobalHydra.instance().is_initialized()  # of a sweep, with the same files
        with nullcontext() if within_main else initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return plain(compose(name, words))
    except ValueError as error:  # Hydra's, for a group's value that is no word
        raise ConfigError(str(error)) from None
