"""Lightning's checkpoints as files of ours; those of a stack are one for each replica, as if trained by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.plugins import CheckpointIO
from torch import Tensor

from .. import checkpoint
from .module import Training
from .record import Record
from .stack import Stack

OF_OPTIMIZERS = ("optimizer_states", "lr_schedulers")  # in a checkpoint, something for each


class Checkpoints(CheckpointIO):
    """Lightning's checkpoints are ours: Lightning's own way goes through TMPDIR, from where no rename lands a file.

    Those of a stack are one file for each replica, in its folder, as if it had been trained by itself.

    Args:
        records: of the runs that are trained together.
    """

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.training: Training  # to be set

    def save_checkpoint(self, content: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        stack = self.training.stack
        if stack is None:
            checkpoint.save(content, Path(path))
            return
        for k, _ in self.training.live:
            mine = {name: self.training.own_states(content[name], k) for name in OF_OPTIMIZERS}
            mine["average"] = stack.of_replica(content["average"], k)
            mine["state_dict"] = {name: value.clone() for name, value in content["state_dict"][k].items()}
            mine["callbacks"] = content["callbacks"] | {"Record": self.records[k].state_dict()}
            checkpoint.save(content | mine, self.records[k].last)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        stack = self.training.stack
        if stack is None:
            return checkpoint.load(Path(path))
        contents = [checkpoint.load(record.last) for record in self.records]
        joined: dict[str, Any] = {name: _of_parts(stack, [c[name] for c in contents]) for name in OF_OPTIMIZERS}
        joined["average"] = stack.of_all([c["average"] for c in contents])
        self._join_states(stack, joined, contents)
        joined["state_dict"] = [content["state_dict"] for content in contents]
        records = [content["callbacks"]["Record"] for content in contents]
        joined["callbacks"] = contents[0]["callbacks"] | {"Record": {"records": records}}
        return contents[0] | joined

    def _join_states(self, stack: Stack, joined: dict[str, Any], contents: list[dict[str, Any]]) -> None:
        """Gives what belongs to a parameter its stacked shape; joins what a trunk has recorded of the last steps."""
        optimizers = self.training.new_optimizers()
        for optimizer, state in zip(optimizers, joined["optimizer_states"], strict=True):
            saved = [i for group in state["param_groups"] for i in group["params"]]
            for i, p in zip(saved, _parameters(optimizer), strict=True):
                for name, value in state["state"].get(i, {}).items():
                    if isinstance(value, Tensor) and value.dim() and value.numel() == p.numel():  # no count of steps
                        state["state"][i][name] = value.view_as(p)
        recorded = [(content.pop("recorded", None), content.pop("recorded_from", 0)) for content in contents]
        if all(each is not None for each, _ in recorded):
            first = joined["recorded_from"] = max(start for _, start in recorded)
            later = [[[[(n, d) for n, d in of if n >= first] for of in o] for o in each] for each, _ in recorded]
            joined["recorded"] = [
                [[(n, d.view_as(p)) for n, d in of] for of, p in zip(each, _parameters(optimizer), strict=True)]
                for each, optimizer in zip(_of_parts(stack, later), optimizers, strict=True)
            ]

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _of_parts(stack: Stack, listed: Sequence[Any]) -> list[Any]:
    """What replicas have for each player, as what the optimizers of the stack have: for each player, of each part."""
    players = zip(*listed, strict=True)
    return [stack.of_all(of_player, part) for of_player in players for part in stack.parts]


def _parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
