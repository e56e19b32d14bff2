"""Where Hydra looks for sweepers. Every Hydra program on this machine imports this file: it must stay light."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TmbenchSweeper(Sweeper):
    """Does what of a sweep is not done yet; see tmbench.sweeps.

    Args:
        params: more words for every sweep, as those of Hydra's own sweeper.
    """

    def __init__(self, params: dict[str, str] | None = None, **unknown: Any) -> None:
        self.params, self.unknown = params or {}, unknown

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)  # which a glob(*) lists

    def sweep(self, arguments: list[str]) -> Any:
        from tmbench.errors import ConfigError
        from tmbench.runs.show import console
        from tmbench.sweeps.plan import combinations
        from tmbench.sweeps.sweep import sweep

        assert self.config is not None
        for name in self.unknown:
            raise ConfigError(
                f"hydra.sweeper.{name}: there is no such setting; launcher=local does several jobs at once"
            )
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        outcomes = sweep(combinations(self.parser.parse_overrides(words)), self.config, console())
        if any(record.error for record, _ in outcomes):
            raise SystemExit(1)
