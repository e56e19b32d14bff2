"""What a run is, known before anything of it is trained."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from .config.identity import effective_switch, run_id
from .config.settle import settle
from .data import Dataset, open_dataset
from .errors import ConfigError, imported
from .files import folder_for
from .trunks import Trunk, trunk_of


@dataclass(frozen=True)
class Plan:
    """One run, planned."""

    cfg: DictConfig  # settled
    data: Dataset
    profile: str  # of the data: tiny, full or subset
    data_digest: str
    folder: Path  # <runs_dir>/<run id>
    trunk: Trunk | None  # where it shares states with other runs; None: it does not
    switch_epoch: int | None  # after how many epochs the method changes; None: never
    command: str  # what a person would type for it
    words: list[str] | None  # Hydra's overrides that the configuration was composed of, if they are known
    force: bool  # repeat it, even if it has been done

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"


def planned(cfg: DictConfig, command: str | None = None, words: list[str] | None = None) -> Plan:
    """The plan of the run that a configuration asks for, settled or not.

    Raises:
        ConfigError, DataError: the run is not possible.
    """
    cfg = settle(cfg)
    if not Path(cfg.runs_dir).is_dir():  # one that is there may be read-only, and have the run
        folder_for("runs_dir", cfg.runs_dir)
    data_class: type[Dataset] = imported(f"task/{cfg.task.name}.yaml: data", cfg.task.data)
    is_given = any(word.startswith("data_dir=") for word in words or ())
    if is_given and cfg.data.profile == "full" and not Path(cfg.data_dir).is_dir():
        # Not made: what is downloaded into a mistyped folder is downloaded again.
        raise ConfigError(f"data_dir: no folder {cfg.data_dir}; {_how_to_fill(cfg.data_dir, data_class)}")
    data, profile, digest = open_dataset(cfg, data_class)
    folder = Path(cfg.runs_dir) / run_id(cfg, digest)
    force = bool(cfg.force)
    cfg.force = cfg.plan = cfg.fail_fast = False
    return Plan(
        cfg, data, profile, digest, folder,
        trunk=trunk_of(cfg, digest) if cfg.trunk == "auto" else None,
        switch_epoch=effective_switch(cfg),
        command=command or f"python -m tmbench.run {folder / 'config.yaml'}",
        words=words,
        force=force,
    )  # fmt: skip


def _how_to_fill(data_dir: str, data_class: type[Dataset]) -> str:
    """What a person does to have the data in a folder that is not there."""
    if data_class.entry is None or data_class.entry.by_hand:  # nothing can be downloaded
        return f"make it, and put the files of this data set into {Path(data_dir) / data_class.folder}"
    return f"to download the data there: mkdir -p {data_dir}"
