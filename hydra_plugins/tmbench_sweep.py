"""Where Hydra looks for sweepers. Every Hydra program on this machine imports this file: it must stay light."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class TmbenchSweeper(BasicSweeper):
    """Hydra's own sweeper, but that it launches only what has to be done; see tmbench.sweeps."""

    def sweep(self, arguments: list[str]) -> Any:
        from tmbench.sweeps.sweep import sweep

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        launcher, size = self.launcher, self.max_batch_size

        def launch(jobs: list[list[str]]) -> None:
            for first in range(0, len(jobs), size or len(jobs) or 1):
                batch = jobs[first : first + size] if size else jobs
                for result in launcher.launch(batch, initial_job_idx=first):
                    _ = result.return_value  # raises what the job raised

        sweep([*self._parse_config(), *arguments], self.hydra_context.config_loader, self.config, launch)
