"""`tmbench runs figures TASK`: the predictions of several trained runs for the same examples, side by side."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class
from omegaconf import OmegaConf

from .. import checkpoint
from ..config.trust import check_classes
from ..data import open_dataset
from ..errors import ConfigError, DataError, UsageError
from ..figures import save
from ..files import folder_for
from ..progress import loading_torch
from ..result import shown
from . import Run, find

if TYPE_CHECKING:
    from ..task import Task


def restored(run: Run, data_dir: str | None = None, trust: str | None = None) -> "Task":
    """The trained task of a run, ready to be evaluated.

    Raises:
        ConfigError: the run has no weights, or its configuration no longer fits them.
        DataError: its data are not here, or its weights or configuration are damaged.
    """
    places = {"runs_dir": str(run.folder.parent)} | ({"data_dir": data_dir} if data_dir else {})
    cfg = OmegaConf.create(run.config | places)
    last = run.folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise ConfigError(f"{run.folder}: expected a trained run, it has no checkpoints/last.ckpt ({run.status})")
    check_classes(run.config, run.folder / "config.yaml", trust)
    try:
        task_class, data_class = get_class(cfg.task._target_), get_class(cfg.task.data)
    except (ImportError, AttributeError, ValueError, TypeError):
        names = f"{cfg.task._target_} or {cfg.task.data}"
        raise ConfigError(f"{run.folder}: made by another version of tmbench; this one has no {names}") from None
    data, _, digest = open_dataset(cfg, data_class)
    if run.result and digest != run.result.data_digest:
        raise DataError(f"{data.root}: not what {run.folder.name} was trained on; name the folder with data_dir=DIR")
    from ..training.loader import hold_out  # torch

    state = checkpoint.load(last, sealed=run.result is None or run.result.schema_version > 1)
    try:
        task: Task = task_class(cfg.task, data)
        if cfg.get("validation"):
            hold_out(task, cfg.validation)
        task.load_state_dict(state["state_dict"])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{last}: its weights do not fit the task as it is now ({error})") from None
    return task.eval()


def compare(runs: list[Run], out: Path, data_dir: str | None = None, trust: str | None = None) -> list[Path]:
    """Draws the predictions of these runs of one task for the same examples, side by side; returns the files."""
    loading_torch()
    import torch

    tasks: dict[str, Task] = {}
    wrong: list[ConfigError | DataError] = []
    for run in runs:
        try:
            cfg, result, task = run.config, run.result, restored(run, data_dir, trust)
        except (ConfigError, DataError) as error:  # of this run alone
            wrong.append(error)
            continue
        label = f"{cfg['optimizer']['name']} seed={cfg['seed']}"
        if result and (key := result.headline) in result.metrics["last"]:
            label += f", {result.metric} {shown(result.metrics['last'][key], key)}"
        tasks[f"{label} ({run.folder.name[-12:]})" if label in tasks else label] = task
    if not tasks:
        raise wrong[0]
    for one in wrong:
        print(f"left out: {one}", file=sys.stderr)
    files = []
    with torch.no_grad():
        for name, figure in type(next(iter(tasks.values()))).compare(tasks):
            files.append(out / f"{cfg['task']['name']}-{name}.png")
            save(figure, files[-1])
    return files


def draw(values: dict[str, Any], words: list[str]) -> int:
    """Draws the runs of a task that the words name, and prints the files; returns the exit status."""
    if not words or "=" in words[0]:
        raise UsageError("runs figures: expected a task first, such as: tmbench runs figures fkpd optimizer=sgd,tmsgd")
    task, runs_dir = words[0], Path(values["runs_dir"])
    filters = [f"task={task}", *(word for word in words[1:] if "=" in word)]
    ids = [[word] for word in words[1:] if "=" not in word]
    runs = [run for one in ids or [[]] for run in find(runs_dir, one + filters)]
    if not runs:
        raise ConfigError(f"{task}: no run in {runs_dir} fits; tmbench runs list shows all of them")
    files = compare(runs, folder_for("out", values["out"]), values["data_dir"], values["trust"])
    if not files:
        raise ConfigError(f"{task}: this task draws nothing side by side")
    print("\n".join(map(str, files)))
    return 0
