"""Training a task: its optimizer steps, its evaluation, and what ends it early."""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import ConfigError, making
from ..optim.rows import LazyRows, moves_linearly
from ..seeds import seed_all
from ..task import NotFinite, Table, Task
from .evaluation import Evaluation, WeightAverage
from .loader import STEPS_A_BLOCK, Step
from .norms import check_norms
from .parts import Group
from .stack import Stack
from .step import Gradient, StepHistory

# The last steps of every epoch pass over whole tables. A method goes on from their differences after its switch, which
# must be the same bits in a run by itself and in one that shares its beginning with runs of other switches.
DENSE_AT_THE_END = 8
BATCH_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm)


class Diverged(Exception):  # noqa: N818  (a result, not an error)
    """A loss, weight, prediction or metric is no longer finite; the message says which."""

    def __init__(self, epoch: int, step: int, what: str) -> None:
        super().__init__(what)
        self.epoch, self.step = epoch, step


class Stopped(BaseException):
    """A person or the scheduler asked the run to stop; its last epoch is on disk."""


@dataclass
class Replica:
    """One of the runs that are trained together; mostly it is alone."""

    task: Task
    diverged: Diverged | None = None

    def __post_init__(self) -> None:
        self.evaluation = Evaluation(self.task)
        self.average_values: dict[str, float] = {}  # the metrics of the weight average, as last evaluated


class Training(LightningModule):
    """Trains a task, as Lightning calls it. Its state is the task's, so that a checkpoint knows the task alone.

    Every epoch starts from a random state derived from (seed, epoch, rank).

    Args:
        task: the run's, or a Stack of those of several.
        makers: each makes an optimizer of parameters; one for each part of a stack. Every player gets one of each.
        steps: optimizer steps an epoch.
        factor: the schedule: step of the run -> factor on the learning rate.
    """

    def __init__(
        self, task: Task, cfg: DictConfig, makers: "Sequence[partial[Optimizer]]", steps: int,
        factor: Callable[[int], float] | None, stop_requested: Callable[[], bool],
    ) -> None:  # fmt: skip
        super().__init__()
        self.automatic_optimization = False  # training_step takes the steps
        self.task, self.cfg, self.makers = task, cfg, [task.with_own_rates(maker) for maker in makers]
        self.steps, self.factor, self.stop_requested = steps, factor, stop_requested
        self.gradient = Gradient(task.padding, cfg.clip_norm, cfg.clip_value)
        self.tables: list[LazyRows] = []  # stepped by rows
        self._hidden: list[Tensor] = []  # the weights of those that DDP is not to see
        self.stack = task if isinstance(task, Stack) else None
        self.replicas = [Replica(each) for each in (self.stack.replicas if self.stack else [task])]
        self.history = StepHistory()
        self.average: WeightAverage | None = None
        self.watch: Any = None  # a CurvatureWatch, if the run has one
        self._saved_average: list[Tensor] = []  # of the checkpoint that the run goes on from
        self.evaluates = True  # whether this epoch is evaluated, at its end
        self.losses: list[Tensor] = []  # of the epoch's steps so far: (), (player,), (slot,) or (player, slot)
        self.measured: list[Any] = []  # of each player: the epoch's steps with something to learn from
        self._checked_losses = 0

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.task.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.task.load_state_dict(*args, **kwargs)

    @property
    def headline(self) -> str:
        """The key of the metric that ranks runs: `test/accuracy`, or `validation/accuracy`."""
        return f"{self.task.split}/{self.task.headline}"

    @property
    def live(self) -> list[tuple[int, Replica]]:
        """The replicas that have not diverged, with their numbers."""
        return [(k, replica) for k, replica in enumerate(self.replicas) if replica.diverged is None]

    def own(self, listed: Sequence[Any], k: int) -> list[Any]:
        """Those of one replica, of a list with something for each optimizer."""
        return list(listed[self.stack.part_of(k) :: len(self.stack.parts)]) if self.stack else list(listed)

    def own_states(self, listed: Sequence[Any], k: int) -> Any:
        """The same of their states, with tensors of its own."""
        mine = self.own(listed, k)
        return self.stack.of_replica(mine, k, self.stack.parts[self.stack.part_of(k)]) if self.stack else mine

    def new_optimizers(self, k: int | None = None) -> list[Optimizer]:
        """A fresh optimizer of each part for each player in turn; of a replica if its number is given.

        Raises:
            ConfigError: it refuses its settings.
        """
        optimizers, name, target = list[Any](), self.cfg.optimizer.name, self.cfg.optimizer._target_
        task, makers = (self.task, self.makers) if k is None else (self.replicas[k].task, self.own(self.makers, k))
        try:
            for player in task.players().values():
                module = player.module
                lists = module.of_part if isinstance(module, Group) else [list(module.parameters())]
                for maker, parameters in zip(makers, lists, strict=True):
                    params: list[Any] = [p for p in parameters if p.requires_grad]
                    groups = params if player.lr is None else [{"params": params, "lr": player.lr}]
                    with making(target):
                        optimizers.append(maker(groups))
        except (TypeError, ValueError) as error:
            expected = f"; expected {target} to make a torch.optim.Optimizer of parameters and its YAML file's keys"
            raise ConfigError(
                f"optimizer={name}: {error}{expected * isinstance(error.__cause__ or error, TypeError)}"
            ) from error
        if odd := [made for made in optimizers if not isinstance(made, Optimizer)]:
            raise ConfigError(f"optimizer={name}: {target}: expected a torch.optim.Optimizer, got {odd[0]!r:.60}")
        return optimizers

    def setup(self, stage: str) -> None:
        """Hides tables from DDP, which is made next, by needing no gradient: it leaves their exchange to us."""
        if stage == "fit" and self.trainer.world_size > 1:
            weights = (table.embedding.weight for table in self._tables_by_rows())
            self._hidden = [weight.requires_grad_(False) for weight in weights if weight.requires_grad]

    def _tables_by_rows(self) -> Sequence[Table]:
        return self.task.tables() if self.cfg.task.get("sparse") else ()

    def configure_optimizers(self) -> Any:
        for weight in self._hidden:
            weight.requires_grad_(True)
        optimizers, name = self.new_optimizers(), self.cfg.optimizer.name
        if any(hasattr(optimizer, "differentiates") for optimizer in optimizers):
            for key in ("clip_norm", "clip_value"):
                if self.cfg[key] is not None:
                    raise ConfigError(f"{key}: optimizer={name} takes its gradient itself, unclipped")
            if self.trainer.world_size > 1:
                raise ConfigError(f"devices: optimizer={name} runs on one, it takes its gradient itself")
        for optimizer in optimizers:
            check_norms(optimizer, self.cfg.optimizer, self.trainer.world_size)
        self.tables = self.step_by_rows(optimizers, ranks=self.trainer.world_size > 1)
        return optimizers, [LambdaLR(each, self.factor) for each in optimizers if self.factor]

    def step_by_rows(self, optimizers: list[Optimizer], ranks: bool = False) -> list[LazyRows]:
        """Has the task's tables stepped by the rows that are read, by these optimizers, if the run asks for it."""
        return [
            self._by_rows(optimizer, table, ranks)
            for table, optimizer in product(self._tables_by_rows(), optimizers)
            if any(p is table.embedding.weight for group in optimizer.param_groups for p in group["params"])
        ]

    def _by_rows(self, optimizer: Optimizer, table: Table, ranks: bool) -> LazyRows:
        if not moves_linearly(optimizer):
            raise ConfigError(
                f"optimizer={self.cfg.optimizer.name}: lazy_rows: true says that a step without a gradient is linear "
                f"in the state; expected {type(optimizer).__name__}.moves_linearly = True as well; set it if that is "
                "so, or say task.sparse=false"
            )
        return LazyRows(optimizer, table.embedding, l2=table.l2, ranks=ranks)

    def on_fit_start(self) -> None:
        self.gradient.world, self.gradient.device = self.trainer.world_size, self.device
        if self.trainer.world_size > 1:
            self.gradient.backward, self.gradient.tables = self.manual_backward, [rows.table for rows in self.tables]
        if self.cfg.ema is not None:
            self.average = WeightAverage(self.task, self.cfg.ema, self._saved_average)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["average"] = self.average.tensors if self.average else []
        checkpoint["curvature"] = self.watch.state() if self.watch else {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._saved_average = checkpoint["average"]
        if self.watch:
            self.watch.load(checkpoint.get("curvature", {}))  # an older one has none
        if "recorded" in checkpoint and self.trainer.is_global_zero:  # fresh from a trunk; rank 0 publishes
            self.history.recorded, self.history.first = checkpoint["recorded"], checkpoint["recorded_from"]

    def _set_mode(self, mode: str) -> None:
        """Tells the optimizers whether their weights are about to be trained or evaluated, if they want to know."""
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, mode):  # schedule-free methods keep two sets of weights
                getattr(optimizer, mode)()

    def on_train_epoch_start(self) -> None:
        self._set_mode("train")
        if self.stack:
            self.stack.start_epoch(self.current_epoch)
        else:
            seed_all("epoch", self.cfg.seed, self.current_epoch, self.global_rank)
        self.losses, self.measured, self._checked_losses = [], [0] * len(self.task.players()), 0
        done, last = self.current_epoch + 1, self.cfg.epochs
        self.evaluates = self.task.evaluates_after(done, last) or done == last
        self.trainer.check_val_every_n_epoch = 1 if self.evaluates else sys.maxsize

    def training_step(self, block: Iterable[Step], block_idx: int) -> None:
        """Takes the optimizer steps of a block, and looks now and then whether all goes well."""
        alone = self.trainer.world_size == 1
        for step in block:
            if alone and self.stop_requested():  # several ranks must agree first, see _check
                raise Stopped
            self._take(step)
        if self.trainer.is_last_batch:
            for table in self.tables:
                table.catch_up()
        if len(self.losses) - self._checked_losses >= STEPS_A_BLOCK or self.trainer.is_last_batch:
            self._check()
        if self.trainer.is_last_batch and not alone:
            self._share_statistics()

    def _take(self, step: Step) -> None:
        """One optimizer step of each player."""
        number = self.current_epoch * self.steps + len(self.losses)
        for table in self.tables:
            table.dense = self.steps - len(self.losses) <= DENSE_AT_THE_END
            if table.dense:
                table.catch_up()
        losses, optimizers = [], enumerate(self.trainer.optimizers)
        for i, player in enumerate(self.task.players().values()):
            mine: list[Any] = list(islice(optimizers, len(self.makers)))
            closure: Callable[[], Tensor] = partial(self.gradient.closure, mine[0][1], player, step)
            if isinstance(player.module, Group):
                closure = player.module.shared(closure)
            for place, optimizer in mine:
                loss = self.history.step(number, place, optimizer, closure)
            losses.append(loss.detach())
            self.measured[i] += self.gradient.weight > 0
        self.losses.append(losses[0] if len(losses) == 1 else torch.stack(losses))
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.step()  # type: ignore[call-arg]
        if self.average:
            self.average.update()

    def _share_statistics(self) -> None:
        """Batch norm's running averages, of each rank's share of the batches, become those of all ranks."""
        norms = (m for m in self.task.modules() if isinstance(m, BATCH_NORMS))
        statistics = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
        if self.average:
            statistics += [self.average.of(t) for t in statistics]
        for t in statistics:
            torch.distributed.all_reduce(t)
            t /= self.trainer.world_size

    def _check(self) -> None:
        """Raises Diverged or Stopped, on all ranks alike. Seldom called: each check waits for the device."""
        first, self._checked_losses = self._checked_losses, len(self.losses)
        is_bad = ~self.by_replica(self.losses[first:]).isfinite()  # (step, player, replica)
        where, epoch = is_bad.any(1).cpu() if is_bad.any() else None, self.current_epoch
        for k, replica in self.live:
            if where is not None and where[:, k].any():
                step = first + int(where[:, k].nonzero()[0])
                what = f"the loss is not finite in epoch {epoch + 1}, step {step + 1}"
                self.end(replica, Diverged(epoch, step, what))
            elif self.trainer.is_last_batch:  # the last step's loss may be finite, and its update not
                norms = torch._foreach_norm([p.detach() for p in replica.task.parameters()])
                if not torch.stack([n.float() for n in norms]).isfinite().all():
                    self.end(replica, self._diverged("the weights' norm is not finite"))
        stop = torch.tensor(int(self.stop_requested()), device=self.device)
        if self.trainer.world_size > 1:  # one rank may have heard of it before another
            torch.distributed.all_reduce(stop, op=torch.distributed.ReduceOp.MAX)
        if stop:
            raise Stopped

    def by_replica(self, losses: list[Tensor]) -> Tensor:
        """Losses of steps as (step, player, replica)."""
        slots = self.stack.slots if self.stack else 1
        return torch.stack(losses).view(len(losses), -1, slots)[..., : len(self.replicas)]

    def end(self, replica: Replica, diverged: Diverged) -> None:
        """Ends a replica; raises what ended it if it was the last."""
        replica.diverged = diverged
        if not self.live:
            raise diverged

    def _diverged(self, what: str) -> Diverged:
        """What to raise at the end of an epoch."""
        return Diverged(self.current_epoch, len(self.losses) - 1, f"{what} after epoch {self.current_epoch + 1}")

    def last_lrs(self, k: int) -> dict[str, float]:
        """A replica's rate in the epoch's last step (of the first parameter group), `lr`; of several players, each."""
        schedulers: list[Any] = [config.scheduler for config in self.own(self.trainer.lr_scheduler_configs, k)]
        rates = [s.base_lrs[0] * s.lr_lambdas[0](s.last_epoch - 1) for s in schedulers]
        rates = rates or [optimizer.param_groups[0]["lr"] for optimizer in self.own(self.trainer.optimizers, k)]
        names = self.task.players()
        return {f"lr_{name}" if len(names) > 1 else "lr": float(r) for name, r in zip(names, rates, strict=True)}

    def on_validation_epoch_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._set_mode("eval")
            if self.average:
                self._evaluate_average(self.average, self.trainer.val_dataloaders)
        self._start_evaluation()

    def _start_evaluation(self) -> None:
        for _, replica in self.live:
            replica.evaluation.start()

    def _evaluate_average(self, average: WeightAverage, loader: Any) -> None:
        with average.in_place():
            self._start_evaluation()
            for batch in loader:
                with self.trainer.precision_plugin.val_step_context():
                    self.validation_step(self.transfer_batch_to_device(batch, self.device, 0), 0)
        for _, replica in self.live:
            replica.average_values = self.values(replica, f"{self.task.split}_ema")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for k, replica in self.live:
            with self.stack.own_random_numbers(k) if self.stack else nullcontext():
                replica.evaluation.update(batch)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            for _, replica in self.live:
                replica.task.after_evaluation(self.current_epoch + 1, self.cfg.epochs)

    def values(self, replica: Replica, split: str | None = None) -> dict[str, float]:
        """The metrics' values, as Evaluation.values; if one is not finite, the replica ends, on all ranks alike."""
        try:
            return replica.evaluation.values(split)
        except NotFinite as error:
            self.end(replica, self._diverged(str(error)))
            return {}
