"""tmbench: is this optimizer really better?

`run`, `sweep`, `runs`, `curves` and `report` do from Python what the command line does; docs/python.md shows how.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Report, Sweep, report, run, sweep
    from .errors import ConfigError, DataError, RunError
    from .frames import curves, runs
    from .result import Result

__version__ = "0.1.0"

_HOMES = {
    "api": ("Report", "Sweep", "report", "run", "sweep"),
    "errors": ("ConfigError", "DataError", "RunError"),
    "frames": ("curves", "runs"),
    "result": ("Result",),
}
__all__ = [  # noqa: RUF022
    "run", "sweep", "runs", "curves", "report", "Result", "Sweep", "Report", "ConfigError", "DataError", "RunError",
]  # fmt: skip

# A wheel carries conf/ and tasks/ inside this package; in a source checkout they lie beside it.
# Looking there too gives `tmbench.tasks` one import name in both, whatever else is called `tasks`.
_root = Path(__file__).parent.parent
if not (Path(__file__).parent / "tasks").is_dir() and (_root / "tasks").is_dir():
    __path__.append(str(_root))


class _Package(ModuleType):
    """The package, in which `run`, `runs` and `report` stay functions when the modules of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is first used: `import tmbench` alone stays light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    (home,) = (home for home, names in _HOMES.items() if name in names)
    globals()[name] = found = getattr(import_module(f".{home}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# The first of our code that runs in `python -m tmbench...`, and in the script `tmbench`.
_words = [word for word in sys.orig_argv[1:3] if word != "-m"]
if _words and os.path.basename(_words[0]).split(".")[0] == "tmbench":
    from .signals import own

    own()
    os.environ["MPLBACKEND"] = "Agg"  # files only; in a program of somebody else's the choice is theirs
