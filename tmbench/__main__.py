"""The command line: Hydra composes conf/ into runs, and a person is told what came of them."""

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from . import sweep
from .asked import search_path
from .config import conf_dir
from .errors import ConfigError, DataError, RunError
from .result import Result
from .run import leave, run

Outcome = tuple[Result, Path, str]
EXPECTED = (ConfigError, DataError, RunError, HydraException, OmegaConfBaseException)  # need no traceback


def job(cfg: DictConfig) -> float | None:
    """One run, as Hydra calls it; returns the best headline metric, for sweepers that optimize."""
    about = HydraConfig.get()
    words, search = list(about.overrides.task), search_path(about.runtime.config_sources)
    if about.job.config_name != "config":
        raise ConfigError(
            "--config-name: not supported, since the saved run could not be asked for again; give the settings as "
            "key=value, or put them into a file of a group and say --config-dir DIR"
        )
    if about.mode != RunMode.MULTIRUN:
        for key, asked in (
            ("plan", cfg.plan),
            ("study", cfg.study.name != "none"),
            ("launcher", cfg.launcher.name != "serial"),
        ):
            if asked:
                raise ConfigError(f"{key}: expected a sweep: add -m")
        own = [*search, *words]
        if code := report(lambda: run(cfg, sweep.command(own), words=own)):
            raise SystemExit(code)
        return None
    folder = Path(about.sweep.dir)
    number, arm = sweep.number(folder, int(about.job.num))
    print(f"\njob {number}: {' '.join(words)}{f'  ({arm})' if arm else ''}", file=sys.stderr)
    result = one_of_many(cfg, folder, number, arm, words, search)
    if result.status == "interrupted":
        raise KeyboardInterrupt  # the person wants out of the sweep, not of this job alone
    return result.metrics["best"].get(result.headline)


def one_of_many(
    cfg: DictConfig, folder: Path, number: int, arm: str, words: list[str], search: list[str],
    asks: Iterable[tuple[int, int]] = (),
) -> Result:  # fmt: skip
    """Does one job of the sweep in `folder`, and notes there and tells what came of it; raises what its run raises."""
    own = [*search, *words]
    if "group" in cfg.logger and cfg.logger.group is None:
        cfg.logger.group = folder.name
    try:
        result, run_folder, how = run(cfg, sweep.command(own), asks=asks, words=own)
    except Exception as error:
        message = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        sweep.add_job(folder, number, words, arm, error=message)
        print(explain(error), file=sys.stderr)
        raise
    sweep.add_job(folder, number, words, arm, run_folder, how)
    return result


def report(do: Callable[[], Outcome]) -> int:
    """Does one run and prints what came of it; returns the exit code."""
    from . import show

    try:
        result, folder, how = do()
    except EXPECTED as error:
        print(explain(error), file=sys.stderr)
        return 1
    show.one(result, folder, how, show.console())
    return 130 if result.status == "interrupted" else 0


def explain(error: BaseException) -> str:
    """What a person needs to know of an error: a message for what they can mend, else where it happened."""
    if not isinstance(error, EXPECTED):
        return "".join(traceback.format_exception(error)).strip()
    return "\n".join([_message(error), *getattr(error, "__notes__", [])])


def _message(error: BaseException) -> str:
    if isinstance(error, (ConfigError, DataError)):
        return str(error)
    cause = error.__cause__ or error
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and OmegaConf.is_dict(cause.parent_node):
        key, parent = str(cause.full_key), cause.parent_node
        names = sorted(str(name) for name in parent if not str(name).startswith(("_", "hydra")))
        near = difflib.get_close_matches(key.split(".")[-1], names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}: there is no such setting{hint}\n  possible here: {' '.join(names)}"
    # Hydra's own words name a group's options; where it searched helps nobody here.
    return str(error).split("\nConfig search path")[0].removeprefix("In 'config': ").strip()


def main() -> None:
    """Runs Hydra; exits 0 if all is well (a diverged run is a result), 130 when interrupted, else 1."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra lets exceptions through: we say what they mean
    code = 0
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
    except Exception as error:
        code = 1
        if not sweep.jobs():  # else the job has said it
            print(explain(error), file=sys.stderr)
    if jobs := sweep.jobs():
        from . import show

        show.many(jobs, show.console())
        code = code or int(any(job["error"] for job in jobs))
    leave(code)


if __name__ == "__main__":
    main()
