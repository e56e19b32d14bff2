"""The task families: one folder each, with the data sets that it alone reads."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazily(package: str, name: str) -> Callable[[str], Any]:
    """A `__getattr__` of `package` that takes `name` from its task.py when it is first used.

    The data sets beside it are thus read without torch, which a task needs.
    """

    def __getattr__(wanted: str) -> Any:  # noqa: N807 (of a module)
        if wanted != name:
            raise AttributeError(f"module {package!r} has no attribute {wanted!r}")
        return getattr(import_module(f"{package}.task"), name)

    return __getattr__
