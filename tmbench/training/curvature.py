"""How near a run's steps are to their stability limit, measured between its epochs; and a switch that waits for that.

A step of rate lr is stable on a quadratic of curvature h while lr h is below a limit of the method (see
`tmbench.optim.stability`). Here h is the largest eigenvalue of the Hessian of the training loss plus the weight decay,
on a fixed set of training examples. Nothing of the run changes: not its weights, buffers, gradients or random numbers.

The columns that curves.csv gains, each behind `curvature/`; of several players, each with `_<its name>` at the end:

    top                the largest eigenvalue
    preconditioned     of methods with a diagonal preconditioner P, the largest eigenvalue of P^-1/2 H P^-1/2
    limit              of the rate times that, for the method at work
    used               the rate times that over the limit: 1 is the edge
    used_after_switch  the same for the method after the switch, while there is one ahead
    gradient_norm      of the mean loss of those examples
    noise_scale        examples in a batch at which the gradient's noise is as large as the gradient: the trace of its
                       covariance over its squared norm (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1)
"""

import inspect
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Optimizer

from ..config.identity import switches_by_curvature
from ..errors import ConfigError
from ..optim import SwitchOptimizer, stability, top_curvature
from ..optim.base import SGDThenFormula
from ..optim.stability import preconditioned_limit
from ..result import uses_of_limit
from ..seeds import derive
from ..task import Player, Table, checked_loss
from .loader import TrainLoader
from .module import BATCH_NORMS, Training
from .probe import Rows, gradient_norms, rows_alone, rows_read, undisturbed

LEAST, MOST = 64, 512  # examples that are looked at if nothing is said
PARTS = 4  # at least, from whose differences the noise is known


def epoch_of_stable_switch(rows: list[dict[str, float]], share: float, patience: int) -> int | None:
    """The epoch after which a run with switch_epoch=stable switches; None: not yet.

    Args:
        rows: of its curves.
    """
    below = 0
    for row in rows:
        if uses := uses_of_limit(row, after_switch=True):
            below = below + 1 if max(uses) < share else 0
        if below >= patience:
            return int(row["epoch"])
    return None


class CurvatureWatch:
    """Measures the curvature after epochs.

    Args:
        training: the run's.
        loader: of its training examples.

    Raises:
        ConfigError: curvature means nothing for the run's optimizer, or a stable switch cannot be found by it.
    """

    def __init__(self, training: Training, cfg: DictConfig, loader: TrainLoader) -> None:
        self.training, self.cfg, self.settings, self.loader = training, cfg, cfg.curvature, loader
        self.waits = switches_by_curvature(cfg)
        self.about: dict[str, Any] = {}  # of the result
        self.vectors: list[list[Tensor]] = []  # of each player, where the next measurement starts
        self._batches: list[tuple[Any, int]] = []  # and their examples
        self._whole = self._noise = range(0)  # numbers of batches
        self._check()

    def _check(self) -> None:
        name = self.cfg.optimizer.name
        for optimizer in self.training.new_optimizers():
            closure = inspect.signature(type(optimizer).step).parameters.get("closure")
            needs_closure = closure is not None and closure.default is inspect.Parameter.empty
            if needs_closure or hasattr(optimizer, "differentiates"):
                raise ConfigError(
                    f"curvature: optimizer={name} takes several looks at the loss in each step and finds its own step "
                    "length, which no limit on a rate describes; say curvature=none"
                )
            if self.waits and _after_switch(optimizer) is None:
                raise ConfigError(
                    f"switch_epoch=stable: the stability limit of what optimizer={name} is after its switch is not "
                    "known; it is for SGD, tmsgd and the other multistep methods; say a number of epochs, or never"
                )

    @property
    def optimizers(self) -> list[Any]:
        return self.training.trainer.optimizers

    def is_undecided(self, rows: list[dict[str, float]]) -> bool:
        """Whether the run may still switch by the curvature."""
        return self.waits and self._found(rows) is None

    def switched_after(self, rows: list[dict[str, float]]) -> int | None:
        """The epoch after which the curvature has let the run switch; None: it has not, or not before the end."""
        epoch = self._found(rows) if self.waits else None
        return None if epoch == self.cfg.epochs else epoch

    def _found(self, rows: list[dict[str, float]]) -> int | None:
        return epoch_of_stable_switch(rows, self.settings.share, self.settings.patience)

    def start_epoch(self, epoch: int, rows: list[dict[str, float]]) -> None:
        """Before an epoch, counted from 0; what is not yet known of a switch at its very start is measured.

        Where a switch may follow the epoch, its last steps are recorded as the history.
        """
        if epoch == self.cfg.switch_epoch and not (rows and uses_of_limit(rows[-1], after_switch=True)):
            found = self.measured()
            for row in rows[-1:]:  # of another run, that has trained the shared epochs
                row |= found
            self.warn({"epoch": epoch} | found)
        if self.is_undecided(rows):
            for optimizer in self.optimizers:
                if isinstance(optimizer, SGDThenFormula):
                    optimizer.switch_at((epoch + 1) * self.training.steps)

    def end_epoch(self, row: dict[str, float], rows: list[dict[str, float]]) -> None:
        """After an epoch: adds what is measured to its row, and switches if that is due.

        Args:
            rows: of the earlier epochs.
        """
        epoch, undecided = int(row["epoch"]), self.is_undecided(rows)
        if epoch % self.settings.every == 0 or epoch in (self.cfg.epochs, self.cfg.switch_epoch):
            row |= self.measured(undecided)
        if epoch == self.cfg.switch_epoch:
            self.warn(row)
        if undecided:
            due = not self.is_undecided([*rows, row])
            for optimizer in self.optimizers:
                optimizer.switch_at(epoch * self.training.steps if due else None)

    def warn(self, row: dict[str, float]) -> None:
        if (warning := self.warning(row)) and self.training.trainer.is_global_zero:
            print(warning, file=sys.stderr)

    def measured(self, undecided: bool = False) -> dict[str, float]:
        """What is measured now, by column; `undecided`: a switch now is not yet one."""
        started, found = time.perf_counter(), dict[str, float]()
        players = self.training.task.players()
        self.vectors = self.vectors or [[] for _ in players]
        with undisturbed(self.training.task):
            for i, (name, player) in enumerate(players.items()):
                values = self._of_player(i, player, undecided)
                found |= {f"curvature/{key}{f'_{name}' * (len(players) > 1)}": v for key, v in values.items()}
        if self.training.trainer.world_size > 1:  # whose kernels may round apart: all act by the first's
            shared = [found]
            torch.distributed.broadcast_object_list(shared)
            (found,) = shared
        self.about["seconds"] = self.about.get("seconds", 0.0) + time.perf_counter() - started
        return {key: value for key, value in found.items() if math.isfinite(value)}

    def _of_player(self, i: int, player: Player, undecided: bool) -> dict[str, float]:
        losses, read = self._losses(i, player)
        with rows_alone(read) as rows_of:
            return self._of_losses(i, losses, rows_of, undecided)

    def _of_losses(
        self, i: int, losses: Sequence[Callable[[], Tensor]], rows_of: dict[Any, Rows], undecided: bool
    ) -> dict[str, float]:
        optimizer = self.optimizers[i]
        groups = [(group, p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        params = [rows_of[p].weight if p in rows_of else p for _, p in groups]
        decay = [_l2(group, optimizer) + (2 * rows_of[p].l2 if p in rows_of else 0.0) for group, p in groups]
        norms = gradient_norms([losses[k] for k in self._noise], [self._batches[k][1] for k in self._noise], params)
        measure: Any = partial(
            top_curvature, self._joined(losses), params, weight_decay=decay, iterations=self.settings.iterations,
            tolerance=self.settings.tolerance,
        )  # fmt: skip
        fits = [v.shape for v in self.vectors[i]] == [p.shape for p in params]
        top = measure(start=self.vectors[i] if fits else None, how=self.about.get("how"))
        self.vectors[i] = top.vector
        self.about |= {
            "how": top.how,
            "examples": sum(self._batches[k][1] for k in self._whole),
            "products": top.products,
        }
        found = {"top": top.top, "gradient_norm": norms[0], "noise_scale": norms[1]}
        now = _now(optimizer, undecided)
        if now is not None:
            found |= {"limit": now[1], "used": now[0] * top.top / now[1]}
        elif (adaptive := preconditioned_limit(optimizer)) is not None:
            limit, diagonals = adaptive
            diagonals = [d[rows_of[p].rows] if p in rows_of else d for (_, p), d in zip(groups, diagonals, strict=True)]
            pre = measure(preconditioner=diagonals, how=top.how).top
            rate = float(optimizer.param_groups[0]["lr"])
            found |= {"preconditioned": pre, "limit": limit, "used": rate * pre / limit}
        if (after := _after_switch(optimizer)) is not None:
            found["used_after_switch"] = after[0] * top.top / after[1]
        return found

    def _losses(self, i: int, player: Player) -> tuple[Sequence[Callable[[], Tensor]], list[tuple[Table, Tensor]]]:
        """Each batch's part of the examples' mean loss, the same at each call; the rows read."""
        if not self._batches:
            self._gather()
        batches = [self.training.transfer_batch_to_device(batch, self.training.device, 0) for batch, _ in self._batches]

        def loss(number: int) -> tuple[Tensor, Any]:
            # Of dropout, augmentation, a generator's input; manual_seed itself takes longer than a small forward pass.
            generator = torch.default_generator if self.training.device.type == "cpu" else torch
            generator.manual_seed(derive("curvature", i, number))
            return checked_loss(player, batches[number])

        with torch.no_grad(), rows_read(self.training.task.tables()) as read:
            weight = sum(float(loss(number)[1]) for number in self._whole)
        if not weight:
            raise ConfigError(
                "curvature: the examples that it looks at have no label to learn from; set curvature.examples to more"
            )
        parts = [partial(lambda number: loss(number)[0] / weight, number) for number in range(len(batches))]
        return parts, [(table, torch.unique(torch.cat(ids))) for table, ids in read if ids]

    @property
    def _room(self) -> int:
        """Examples that go through the network at once: a few large batches take less time than many small ones."""
        return max(LEAST, self.loader.batch_size)

    def _joined(self, losses: Sequence[Callable[[], Tensor]]) -> list[Callable[[], Tensor]]:
        """Sums of the batches whose curvature is measured, of as many as fit into memory."""
        groups, room = list[list[Callable[[], Tensor]]](), 0
        for number in self._whole:
            if self._batches[number][1] > room:
                groups.append([])
                room = self._room
            groups[-1].append(losses[number])
            room -= self._batches[number][1]
        return [partial(lambda group: sum(loss() for loss in group), group) for group in groups]

    def _gather(self) -> None:
        """The examples, in the batches whose curvature is measured and in those whose differences tell the noise."""
        batch = -(-self.loader.batch_size // (self.loader.accumulate * self.loader.world))  # that batch norm sees
        every = self.loader.count
        is_normed = any(isinstance(m, BATCH_NORMS) for m in self.training.task.modules())
        count = min(every, self.settings.examples or min(MOST, max(LEAST, every // 100)))
        if is_normed:  # by the statistics of a batch as training has them
            count = min(every, max(count, 2 * batch))
        order = torch.randperm(every, generator=torch.Generator().manual_seed(derive("curvature")))
        chosen = order[:count].numpy()

        def cut(size: int) -> list[np.ndarray]:
            indices = np.split(chosen, range(size, len(chosen), size))
            return [index for index in indices if len(index) > 1 or not is_normed]

        whole = cut(batch if is_normed else self._room)
        noise = [] if is_normed else cut(max(1, -(-count // PARTS)))
        self._batches = list(zip(self.loader.gather([*whole, *noise], 0), map(len, [*whole, *noise]), strict=True))
        self._whole = range(len(whole))
        self._noise = range(len(whole), len(self._batches)) if noise else self._whole

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"about": self.about, "vectors": self.vectors}

    def load(self, state: dict[str, Any]) -> None:
        if state:
            self.about = dict(state["about"])
            self.vectors = [[t.to(self.training.device) for t in vector] for vector in state["vectors"]]

    def notes(self, rows: list[dict[str, float]]) -> list[str]:
        """What a reader of the result should know."""
        notes, share, patience = [], self.settings.share, self.settings.patience
        if self.waits:
            limit = f"{share:g} of the limit after the switch for {patience} measurements in a row"
            if (epoch := self.switched_after(rows)) is not None:
                notes.append(f"switch_epoch=stable: switched after epoch {epoch}, below {limit}")
            else:
                notes.append(f"switch_epoch=stable: never switched, not below {limit}")
        elif row := next((row for row in rows if row["epoch"] == self.cfg.switch_epoch), None):
            notes += [warning] if (warning := self.warning(row)) else []
        if rows and not any(key.startswith("curvature/used") for row in rows for key in row):
            notes.append(f"curvature/used is not defined for optimizer={self.cfg.optimizer.name}")
        return notes

    def warning(self, row: dict[str, float]) -> str | None:
        """What is wrong with a switch now; None if nothing is."""
        uses = uses_of_limit(row, after_switch=True)
        if not uses or max(uses) <= 1:
            return None
        return (
            f"switching now (after epoch {row.get('epoch', 0):.0f}) uses {max(uses):.2g} of the stability limit of "
            f"optimizer={self.cfg.optimizer.name} after its switch: it may fluctuate or diverge; a lower lr, a later "
            "switch or switch_epoch=stable avoids that"
        )


def _now(optimizer: Any, undecided: bool) -> tuple[float, float] | None:
    """The rate of the next step and the limit of rate times curvature; None if that is not known."""
    rates = getattr(optimizer, "lrs", [group.get("lr", 0) for group in optimizer.param_groups])
    while isinstance(optimizer, SwitchOptimizer):
        optimizer = optimizer.active
    acts = [group.get("switch_step") is not None and group["step"] >= group["switch_step"]
            for group in optimizer.param_groups]  # fmt: skip
    return _edge(optimizer, rates, switched=any(acts) and not undecided)


def _after_switch(optimizer: Any) -> tuple[float, float] | None:
    """The same for the first step after a switch now; None also if no switch is ahead."""
    if isinstance(optimizer, SwitchOptimizer):
        return None if optimizer.has_switched else _edge(*optimizer.second_now(), switched=True)
    if not isinstance(optimizer, SGDThenFormula) or optimizer.has_switched:
        return None
    return _edge(optimizer, [group["lr"] for group in optimizer.param_groups], switched=True)


def _edge(optimizer: Optimizer, rates: Sequence[Any], switched: bool) -> tuple[float, float] | None:
    different = {float(rate) for rate in rates}
    if len(different) > 1:  # of several groups
        return None
    try:
        return different.pop(), stability(optimizer, switched=switched).limit
    except TypeError:
        return None


def _l2(group: dict[str, Any], optimizer: Any) -> float:
    """The L2 penalty of a group's parameters, as the optimizer adds it to the gradient."""
    if type(optimizer) is torch.optim.AdamW or group.get("decoupled") or group.get("decoupled_weight_decay"):
        return 0.0
    return float(group.get("weight_decay", 0.0) or 0.0)
