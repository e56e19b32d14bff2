"""The command line: `tmbench ...`, which is `python -m tmbench ...`. A command imports its own module alone.

`tmbench runs ...` is `python -m tmbench.runs ...`, and so on. Words that name no command are for Hydra, which composes
conf/ into a run, or with -m into a sweep.
"""

import os
import re
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from hydra.errors import HydraException

from .errors import did_you_mean
from .verbs import ERROR, USAGE, guarded, is_expected, leave

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERBS = {
    name: f"{name}.__main__"
    for name in ("runs", "report", "judge", "tune", "certify", "learn", "data", "numerics", "doctor")
}


def job(cfg: "DictConfig") -> float | None:
    """One run, as Hydra calls it; with another's sweeper, it returns the best headline metric, to be optimized."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from .config.overrides import search_path
    from .run import report, run
    from .runs.show import console, one
    from .sweeps.job import command
    from .sweeps.sweep import check_alone, check_options

    about = HydraConfig.get()
    by_a_sweeper = about.mode == RunMode.MULTIRUN
    words = [*search_path(about.runtime.config_sources), *about.overrides.task]

    def do() -> int:
        check_options(about)
        check_alone(cfg, "this needs hydra/sweeper=tmbench" if by_a_sweeper else "this works for a sweep only; add -m")
        return 0 if by_a_sweeper else report(run(cfg, command(words), words=words))

    if code := guarded(do):  # Hydra prints a line of its own for what it sees raised
        raise SystemExit(code)
    if not by_a_sweeper:
        return None
    result, folder, how = run(cfg, command(words), words=words)
    one(result, folder, how, console())
    if result.status == "interrupted":
        raise KeyboardInterrupt  # a person wants the sweep to stop, not this job alone
    return result.metrics["best"].get(result.headline)


def train(words: list[str]) -> int:
    """The run or the sweep that Hydra composes of these words; returns the exit status."""
    import hydra
    from omegaconf import OmegaConf

    from .config.compose import composed, prepared
    from .config.table import conf_dir, settings_help

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra lets exceptions through: we say what they mean
    sys.argv[1:] = prepared(words)  # which Hydra reads
    OmegaConf.register_new_resolver("tmbench.settings_help", settings_help, replace=True)  # conf/config.yaml's --help
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else ERROR if leaving.code else 0
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if not is_expected(error):  # if Hydra could not even compose the words, `composed` says so in a line
            with suppress(HydraException):
                composed([word for word in words if "=" in word and not word.startswith("-")])
        raise


def _names_saved_run(word: str, after_run: bool) -> bool:
    """Whether a word is the file or folder of a saved run, and not a setting, an option or a command."""
    if word[:1] in ("", "-", "+", "~"):
        return False
    return os.path.exists(word) or ("=" not in word and (after_run or "/" in word or word.endswith(".yaml")))


def main() -> None:
    """Does what the command line says, and exits: 0 if all is well (a diverged run is a result), 1, 2 or 130."""
    try:
        here = os.getcwd()
    except FileNotFoundError:
        print("the folder that tmbench was called in is gone; change to one that is there", file=sys.stderr)
        leave(ERROR)
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)  # for a person's own classes; python -m does it, the script `tmbench` does not
    words = sys.argv[1:]
    if is_run := words[:1] == ["run"]:
        del words[0]
    first = words[0] if words else ""
    if first in VERBS and not is_run:
        leave(import_module(f"tmbench.{VERBS[first]}").main(words[1:]))
    if _names_saved_run(first, is_run):
        leave(import_module("tmbench.run").main(words))
    if re.fullmatch(r"\w[\w.-]*", first):
        hint = did_you_mean(first, ["run", *VERBS])
        print(f"{first}: there is no such command; tmbench --help lists them{hint}", file=sys.stderr)
        leave(USAGE)
    leave(guarded(lambda: train(words)))


if __name__ == "__main__":
    main()
