"""Which classes a configuration may name that was read from a file, since what it names is imported and called."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from ..errors import ConfigError
from .settle import Settings, flat
from .table import GROUPS, choices, values_of
from .values import Setting

OPTIMIZERS_OF = ("torch.optim", "pytorch_optimizer")
TRUST = Setting("a word, or null", "modules of your own, separated by commas, whose classes saved runs may name")


def check_classes(cfg: Settings, file: Path, trust: str | None) -> None:
    """Refuses a class in a saved configuration that neither our own YAML files name nor a person trusts.

    Optimizers of torch and pytorch_optimizer are trusted as well. What a person composes on the command line is theirs,
    and is not asked.

    Args:
        file: where it was read.
        trust: modules, separated by commas; those below them are trusted with them.

    Raises:
        ConfigError: names the class, and what to say if it is trusted.
    """
    modules = [*OPTIMIZERS_OF, *(trust or "").split(",")]
    for group in GROUPS:
        for name in classes_in(cfg[group]):
            module = name.rpartition(".")[0]
            of_a_module = module in modules or any(module.startswith(f"{own}.") for own in modules[2:] if own)
            if not (of_a_module or name in _ours(group) or _is_gone(name)):
                raise ConfigError(
                    f"{file}: names {name}, and what a configuration names is imported and called; if you trust that, "
                    f"add trust={module or name}"
                )


def classes_in(node: Any, key: str = "") -> Iterator[str]:
    """The classes and functions that a group's settings name, however deep."""
    if isinstance(node, dict):
        for inner, value in node.items():
            yield from classes_in(value, inner)
    elif isinstance(node, list):
        for value in node:
            yield from classes_in(value, key)
    elif key in ("_target_", "data") and isinstance(node, str):
        yield node


def _is_gone(name: str) -> bool:
    """Whether it was ours in another version, of which others tell."""
    if not name.startswith("tmbench."):
        return False
    try:
        get_object(name)
    except (ImportError, ValueError):
        return True
    return False


@cache
def _ours(group: str) -> set[str]:
    """All texts in the YAML files of a group, the names of classes among them."""
    return {str(value) for name in choices(group) for value in flat(values_of(f"{group}/{name}.yaml")).values()}
