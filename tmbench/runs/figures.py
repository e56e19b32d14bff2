"""Figures that any run has, and `python -m tmbench.figures`: what several trained runs make of the same examples."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from hydra.utils import get_class
from omegaconf import OmegaConf

from .. import checkpoint
from ..data import open_dataset
from ..errors import ConfigError, DataError
from ..figures import save
from ..result import shown
from . import Run, find

if TYPE_CHECKING:
    from ..task import Task

matplotlib.use("Agg")  # files only; a run has no screen


def restored(run: Run, data_dir: str | None = None) -> "Task":
    """The trained task of a run, ready to be evaluated.

    Raises:
        ConfigError: the run has no weights, or its configuration no longer fits them.
        DataError: its data are not here, or its weights or configuration are damaged.
    """
    cfg = OmegaConf.create(
        run.config | {"runs_dir": str(run.folder.parent)} | ({"data_dir": data_dir} if data_dir else {})
    )
    last = run.folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise ConfigError(f"{run.folder}: expected a trained run, there is no checkpoints/last.ckpt ({run.status})")
    data, _, digest = open_dataset(cfg, get_class(cfg.task.data))
    if run.result and digest != run.result.data_digest:
        raise DataError(f"{data.root}: not the files that {run.folder.name} was trained on; say --data-dir DIR")
    task: Task = get_class(cfg.task._target_)(cfg.task, data)
    if cfg.get("validation"):
        task.hold_out(cfg.validation)
    weights = checkpoint.load(last, sealed=run.result is None or run.result.schema_version > 1)["state_dict"]
    try:
        task.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        raise ConfigError(f"{last}: its weights do not fit the task as it is now ({error})") from None
    return task.eval()


def compare(runs: list[Run], out: Path, data_dir: str | None = None) -> list[Path]:
    """Draws what these runs of one task make of the same examples, side by side; returns the files."""
    import torch

    tasks: dict[str, Task] = {}
    for run in runs:
        cfg, result = run.config, run.result
        label = f"{cfg['optimizer']['name']} seed={cfg['seed']}"
        if result and result.headline in result.metrics["last"]:
            key = result.headline
            label += f", {key.removeprefix('test/')} {shown(result.metrics['last'][key], key)}"
        tasks[f"{label} ({run.folder.name[-12:]})" if label in tasks else label] = restored(run, data_dir)
    files = []
    kind = type(next(iter(tasks.values())))
    with torch.no_grad():
        for name, figure in kind.compare(tasks):
            out.mkdir(parents=True, exist_ok=True)
            files.append(out / f"{runs[0].config['task']['name']}-{name}.png")
            save(figure, files[-1])
    return files


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tmbench.figures",
        description="Draws what several trained runs of a task make of the same test examples, side by side.",
        epilog="Example: python -m tmbench.figures fkpd seed=0 optimizer=sgd,tmsgd",
    )
    parser.add_argument("task", help="whose runs they are: fkpd, seg, ...")
    parser.add_argument("words", nargs="+", metavar="RUN | KEY=VALUE", help="run ids (or their starts) and filters")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where the runs are (./runs)")
    parser.add_argument("--data-dir", help="where their data are now, if not where they were")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: ./figures")
    asked = parser.parse_args(arguments)
    try:
        filters = [f"task={asked.task}", *(word for word in asked.words if "=" in word)]
        names = [[word] for word in asked.words if "=" not in word]
        runs = [run for name in names or [[]] for run in find(asked.runs_dir, name + filters)]
        if not runs:
            raise ConfigError(f"{asked.task}: no run in {asked.runs_dir} fits; python -m tmbench.runs lists them")
        files = compare(runs, asked.out, asked.data_dir)
        if not files:
            raise ConfigError(f"{asked.task}: this task draws nothing side by side")
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
