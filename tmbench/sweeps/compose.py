"""The jobs that the words of a sweep ask for, and the configuration of each."""

import itertools
from collections.abc import Collection
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import OmegaConf

from ..config.compose import composed
from ..config.settle import Settings, plain
from ..errors import ConfigError


def combinations(overrides: list[Override]) -> list[list[str]]:
    """Every combination of the listed values, as the words of one job each; the last list varies fastest.

    Raises:
        ConfigError: a word gives a range without steps.
    """
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_interval_sweep():
            raise ConfigError(f"{override.input_line}: expected values to list, got an interval; say range(0,1,0.1)")
        if override.is_delete():
            choices[key] = [str(override.input_line)]
        elif override.is_sweep_override():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
    return [list(words) for words in itertools.product(*choices.values())]


class JobComposer:
    """Composes jobs. Hydra takes 0.06 s or more for one, so it composes one for each choice of files.

    The others are copies in which the plain values, such as those of seed=7 or optimizer.momentum=0.5, are set.

    Args:
        search: the word for a person's own YAML files, if they have any.
        groups: the keys that choose a file.
    """

    def __init__(self, search: list[str], groups: Collection[str]) -> None:
        self._search, self._groups = search, groups
        self._parsed = cache(OverridesParser.create().parse_override)
        self._composed = cache(self._by_hydra)

    def __call__(self, words: list[str]) -> Settings:
        """The job's configuration with its interpolations.

        Raises:
            HydraException: a word that is no setting.
        """
        overrides = {word: self._parsed(word) for word in words}
        values = {word: override for word, override in overrides.items() if self._is_plain(override)}
        cfg = dict(self._composed(tuple(word for word in words if word not in values)))
        replaced = tuple(f"{o.key_or_group}." for o in overrides.values() if isinstance(o.value(), dict))
        for override in values.values():
            key = override.key_or_group
            if key.startswith(replaced) or not _set(cfg, key.split("."), override.value()):
                return self._by_hydra(tuple(words))  # which knows what comes first, or why it cannot be
        return cfg

    def _is_plain(self, override: Override) -> bool:
        return (
            override.type == OverrideType.CHANGE
            and override.package is None
            and override.key_or_group not in self._groups
            and not isinstance(override.value(), (dict, list))
        )

    def _by_hydra(self, words: tuple[str, ...]) -> Settings:
        cfg = composed([*self._search, *words])
        # The environment's words once for all jobs: OmegaConf's parser takes longer than all else that a job needs.
        of_environment = OmegaConf.create({k: v for k, v in cfg.items() if str(v).startswith("${oc.env:")})
        OmegaConf.resolve(of_environment)
        return cfg | plain(of_environment)


def _set(cfg: Settings, path: list[str], value: Any) -> bool:
    """Sets a plain value, in copies of the settings above it; returns False if there is no such setting."""
    *groups, last = path
    for name in groups:
        if not isinstance(cfg.get(name), dict):
            return False
        cfg[name] = dict(cfg[name])
        cfg = cfg[name]
    if last not in cfg or isinstance(cfg[last], dict):
        return False
    cfg[last] = value
    return True
