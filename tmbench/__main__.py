"""The command line: Hydra composes conf/ into runs, and a person is told what came of them."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from .config.overrides import search_path
from .config.settle import conf_dir
from .errors import ConfigError
from .run import report, run
from .sweeps import record, sweep
from .sweeps import show as tables
from .sweeps.job import one_of_many
from .verbs import explain, leave


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
    number, arm = record.number(folder, int(about.job.num))
    print(f"\njob {number}: {' '.join(words)}{f'  ({arm})' if arm else ''}", file=sys.stderr)
    result = one_of_many(cfg, folder, number, arm, words, search)
    if result.status == "interrupted":
        raise KeyboardInterrupt  # the person wants out of the sweep, not of this job alone
    return result.metrics["best"].get(result.headline)


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
        from .runs import show

        tables.many(jobs, show.console())
        code = code or int(any(job["error"] for job in jobs))
    leave(code)


if __name__ == "__main__":
    main()
