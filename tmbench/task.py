"""What a task must say to be run, and the one training step that all tasks share."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import TensorDataset
from torchmetrics import Metric, MetricCollection

from .data import Dataset
from .errors import ConfigError
from .seeds import seed_all
from .training.loader import STEPS_A_BLOCK, Step, held_out, part
from .training.mup import groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Recorded = list[list[tuple[int, Tensor]]]  # for each parameter, newest first: (step of the run, what it added)
Loss = tuple[Tensor, Tensor | int]  # a sum, shape (), and how many terms it is over, also of shape () if a tensor


class Diverged(Exception):  # noqa: N818  (a result, not an error)
    """A loss, weight, prediction or metric is no longer finite; the message says which."""

    def __init__(self, epoch: int, step: int, what: str) -> None:
        super().__init__(what)
        self.epoch, self.step = epoch, step


class NotFinite(Exception):  # noqa: N818  (the run diverges at the end of the evaluation, on all ranks alike)
    """A prediction that no metric may see; the message is its name."""


def finite(name: str, prediction: Tensor) -> Tensor:
    """The prediction, for a metric. Some metrics make a number of nan: the class 0, or the chance's AUC.

    Raises:
        NotFinite: not all of it is finite.
    """
    if not prediction.isfinite().all():
        raise NotFinite(name)
    return prediction


def measured(loss: Any) -> Loss:
    """A task's loss of a batch; TypeError if it is not a sum and what it is over."""
    if not (isinstance(loss, tuple) and len(loss) == 2):
        raise TypeError(f"loss: expected (sum, number of terms), as Task.loss says, got {type(loss).__name__}")
    return loss


def mean(total: Tensor | float, weight: Tensor | int) -> Any:
    """A sum over `weight` terms divided by their number; over none, where it is 0, by 1."""
    return total / (weight.where(weight > 0, 1) if isinstance(weight, Tensor) else weight or 1)


class Stopped(BaseException):
    """A person or the scheduler asked the run to stop; its last epoch is on disk."""


class Player(NamedTuple):
    """Who takes an optimizer step on every batch: the module it trains, by its loss of a batch."""

    module: nn.Module
    loss: Callable[[Any], Loss]
    lr: float | None = None  # a learning rate of its own; None is the run's


class Task(LightningModule, ABC):
    """A model, its data, its loss and its metrics. A task knows nothing of optimizers, devices or runs.

    A subclass sets in its constructor the model and `self.metrics`, a MetricCollection whose keys become
    `test/<key>`, with compute_groups=False: by default, torchmetrics takes two metrics for one whose states happen to
    agree after the first batch. The constructor may rely on the random generators being seeded. It must not need the
    test split, which a run with `validation` never reads.

    Args of every subclass: the settled `task` section of the configuration, and its open data set.
    """

    headline: str  # the metric that ranks runs, a key of self.metrics
    higher_is_better: bool = True
    metrics: MetricCollection
    collate: Callable[[list[Any]], Any] | None = None  # makes a batch of examples; not used for a TensorDataset
    # With what `collate` pads each of a batch's first tensors, at the right and below, where pictures differ in size.
    padding: tuple[float, ...] = ()

    def __init__(self, cfg: DictConfig, data: Dataset) -> None:
        super().__init__()
        self.automatic_optimization = False  # the step below is all there is
        self.cfg, self.data = cfg, data
        self._average: list[Tensor] = []
        self._losses: list[Tensor] = []  # of the epoch's steps so far
        self._weight: Any = 0  # what the last loss is over
        self._unsound: str | None = None  # the first prediction of the evaluation that was not finite
        self.average_values: dict[str, float] = {}

    @abstractmethod
    def examples(self, split: str) -> Any:
        """The `train` or `test` examples: a TensorDataset if they fit into memory, else map-style."""

    @abstractmethod
    def loss(self, batch: Any) -> Loss:
        """The loss of a batch as its sum over whatever it is a mean of, and how many those are.

        That may be examples, labelled pixels or matched boxes. A step divides the sum over all parts and ranks by the
        number over all of them, so that it does not depend on how the batch is divided. A batch with nothing to learn
        from gives 0, with a gradient of 0, over 0. What is added once a step, such as a penalty, is times the number.
        """

    def as_evaluated(self) -> Any:
        """The training examples as `evaluate` takes them, in the same order, where training takes altered ones."""
        return self.examples("train")

    def groups(self) -> Sequence[Any] | None:
        """What each training example belongs to whose parts are too much alike, such as a person; None if nothing."""
        return None

    def players(self) -> dict[str, Player]:
        """Who takes an optimizer step on every batch, in turn, by name.

        One, the whole task with its `loss`, for all but a GAN; each has an optimizer of its own, of the same kind.
        """
        return {"": Player(self, self.loss)}

    @abstractmethod
    def evaluate(self, batch: Any) -> None:
        """Updates self.metrics with a batch of the test split; what it predicts passes through `finite` before."""

    def evaluates_after(self, epochs: int) -> bool:
        """Whether the test split is evaluated after so many epochs of training, beside the last; it may be costly."""
        return True

    def check_data(self) -> None:
        """Refuses a split that has examples, and nothing to learn from or nothing that its metrics can measure.

        It is called before each training, and so must not take long.

        Raises:
            DataError: names the split, what was expected, and what there is.
        """

    def baseline(self) -> dict[str, float]:
        """What a predictor that never looks at its input reaches on the test split, by metric; {} if there is none."""
        return {}

    def pictures(self) -> Iterable[tuple[str, "Figure"]]:
        """(file name without ending, matplotlib figure) pairs that a person would rather look at; drawn at the end."""
        return self.compare({"prediction": self})

    @classmethod
    def compare(cls, tasks: Mapping[str, "Task"]) -> Iterable[tuple[str, "Figure"]]:
        """The same for several trained tasks of this class side by side, each under its label."""
        return ()

    # What follows is the same for all tasks; the runner sets the attributes.

    seed: int
    split: str = "test"  # the name of what is evaluated, in metrics
    held: np.ndarray | None = None  # the training examples that stand for the test split, see hold_out
    optimizer_name: str
    new_optimizer: Callable[..., Optimizer]
    factor: "partial[float] | None" = None  # the schedule: step -> factor on the learning rate
    clip_norm: float | None = None
    clip_value: float | None = None
    ema: float | None = None  # decay of the weight average
    stop_requested: Callable[[], bool] = staticmethod(lambda: False)
    steps: int  # optimizer steps an epoch
    evaluated: bool = True  # whether this epoch is, at its end
    record_from: float = math.inf  # from this step of the run on, what each step adds to the weights is recorded
    recorded: list[Recorded]  # for each optimizer

    def hold_out(self, share: float) -> None:
        """Takes a share of the training examples out of them, to be evaluated: from now on they are the `test` split.

        It is the same share in every run. Classes are represented alike, if the last tensor says them; what `groups`
        holds together stays so. What a constructor has learned of the training examples, such as a vocabulary, knows
        those that are held out, too.

        Raises:
            ConfigError: there would be no example left to train on, or none to evaluate.
        """
        train, judged = self.examples("train"), self.as_evaluated()
        last = train.tensors[-1] if isinstance(train, TensorDataset) else None
        labels = last if last is not None and last.dim() == 1 and not last.is_floating_point() else None
        self.held = held_out(len(train), share, labels, self.groups())
        rest = np.setdiff1d(np.arange(len(train)), self.held, assume_unique=True)
        splits = {"train": part(train, rest), "test": part(judged, self.held)}
        self.examples = splits.__getitem__  # type: ignore[method-assign, assignment]
        self.as_evaluated = partial(part, judged, rest)  # type: ignore[method-assign]
        self.split = "validation"

    def parameter_groups(self, module: nn.Module) -> list[Any]:
        """A player's trainable parameters as its optimizer takes them: in groups where their rates differ."""
        params = [p for p in module.parameters() if p.requires_grad]
        return groups(params) if self.cfg.get("mup") else params

    def new_optimizers(self) -> list[Optimizer]:
        """A fresh optimizer for each player.

        Raises:
            ConfigError: it refuses its settings.
        """
        optimizers = []
        try:
            for player in self.players().values():
                params = self.parameter_groups(player.module)
                own = params if player.lr is None else [{"params": params, "lr": player.lr}]
                optimizers.append(self.new_optimizer(own))
            return optimizers
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer={self.optimizer_name}: {error}") from error

    def configure_optimizers(self) -> Any:
        optimizers = self.new_optimizers()
        if any(hasattr(optimizer, "differentiates") for optimizer in optimizers):
            for key, used in (("clip_norm", self.clip_norm), ("clip_value", self.clip_value)):
                if used is not None:
                    raise ConfigError(f"{key}: optimizer={self.optimizer_name} takes its gradient itself, unclipped")
            if self.trainer.world_size > 1:
                raise ConfigError(f"devices: optimizer={self.optimizer_name} runs on one, it takes its gradient itself")
        if self.factor is None:
            return optimizers
        return optimizers, [LambdaLR(optimizer, self.factor) for optimizer in optimizers]

    def on_fit_start(self) -> None:
        if self.ema is None:
            return
        # What is averaged: parameters, and batch norm's running statistics.
        self._live = [t.detach() for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()]
        self._average = [t.to(self.device, copy=True) for t in self._average or self._live]
        self._blend = get_ema_multi_avg_fn(self.ema)  # type: ignore[no-untyped-call]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["average"] = self._average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._average = checkpoint["average"]
        if "recorded" in checkpoint:  # fresh from a trunk
            self.recorded, self.record_from = checkpoint["recorded"], checkpoint["recorded_from"]

    def _set_mode(self, mode: str) -> None:
        """Tells the optimizers whether their weights are about to be trained or evaluated, if they want to know."""
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, mode):  # schedule-free methods keep two sets of weights
                getattr(optimizer, mode)()

    def on_train_epoch_start(self) -> None:
        self._set_mode("train")
        seed_all("epoch", self.seed, self.current_epoch, self.global_rank)
        self._losses = []
        self._measured: list[Any] = [0] * len(self.players())  # steps with something to learn from
        self._looked_at = 0
        done = self.current_epoch + 1
        self.evaluated = self.evaluates_after(done) or done == self.trainer.max_epochs
        self.trainer.check_val_every_n_epoch = 1 if self.evaluated else sys.maxsize

    def training_step(self, block: list[Step], block_idx: int) -> None:
        """Takes the optimizer steps of a block, and looks now and then whether all goes well."""
        optimizers: list[Any] = self.trainer.optimizers
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        players = list(zip(optimizers, self.players().values(), strict=True))
        alone = self.trainer.world_size == 1
        for number, step in enumerate(block, self.current_epoch * self.steps + len(self._losses)):
            if alone and self.stop_requested():  # several ranks must agree first, see _look
                raise Stopped
            losses = []
            for i, (optimizer, player) in enumerate(players):
                closure = partial(self._closure, optimizer, player.module, player.loss, step)
                if number < self.record_from:
                    losses.append(optimizer.step(closure).detach())
                else:
                    losses.append(self._recorded_step(optimizer, closure, self.recorded[i], number).detach())
                self._measured[i] += self._weight > 0
            self._losses.append(losses[0] if len(losses) == 1 else torch.stack(losses))
            for scheduler in schedulers:
                scheduler.step()
            if self._average:
                self._blend(self._average, self._live, 0)
        if len(self._losses) - self._looked_at >= STEPS_A_BLOCK or self.trainer.is_last_batch:
            self._look()
        if self.trainer.is_last_batch and not alone:
            self._share_statistics()

    @staticmethod
    def _recorded_step(optimizer: Any, closure: Callable[[], Tensor], recorded: Recorded, number: int) -> Any:
        """One step, what it adds noted: taken from the weights, so that it does not depend on who moves them."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        loss = optimizer.step(closure)
        recorded.extend([] for _ in range(len(params) - len(recorded)))
        for p, w, own in zip(params, before, recorded, strict=True):
            if p.grad is not None:  # without a gradient it did not take part
                own.insert(0, (number, p.detach() - w))
        return loss

    def _closure(self, optimizer: Optimizer, module: nn.Module, loss_of: Callable[[Any], Loss], step: Step) -> Tensor:
        """The step's loss, with its gradient left in the module's parameters: those of the whole batch on all ranks."""
        optimizer.zero_grad()
        alone, differentiates = self.trainer.world_size == 1, hasattr(optimizer, "differentiates")
        if alone:  # there is no exchange to take part in
            step = [part for part in step if part[1]]
        if self.padding and (len(step) > 1 or not alone):
            step = self._alike(step)
        if alone and (differentiates or len(step) == 1):
            totals, weights = zip(*(measured(loss_of(batch)) for batch, _ in step), strict=True)
            self._weight = sum(weights[1:], weights[0])
            loss: Tensor = mean(sum(totals[1:], totals[0]), self._weight)
            if differentiates:  # it takes the gradient, and more, itself
                return loss
            loss.backward()  # type: ignore[no-untyped-call]  # saves Lightning's hooks, a twentieth of a small step
        else:
            loss, self._weight = self._in_parts(module, loss_of, step)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), self.clip_norm)
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(module.parameters(), self.clip_value)
        return loss.detach()

    def _alike(self, step: Step) -> Step:
        """A step's parts with pictures as large as the largest of the whole batch, as if it were padded whole."""
        largest = torch.tensor([batch[0].shape[-2:] for batch, _ in step], device=self.device).amax(0)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        height, width = largest.tolist()

        def padded(t: Tensor, value: float) -> Tensor:
            return nn.functional.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2]), value=value)

        first = len(self.padding)
        return [((*map(padded, batch[:first], self.padding), *batch[first:]), counts) for batch, counts in step]

    def _in_parts(self, module: nn.Module, loss_of: Callable[[Any], Loss], step: Step) -> tuple[Tensor, Tensor]:
        """The step's loss and weight over all parts and ranks, whose gradients are added up and then divided once."""
        world = self.trainer.world_size
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch, counts in step:
            total, weight = measured(loss_of(batch))
            if not counts:
                total, weight = 0 * total, 0
            if world > 1:
                self.manual_backward(total)  # announces the exchange of gradients, which are averaged over the ranks
            else:
                total.backward()  # type: ignore[no-untyped-call]
            sums[0] += total.detach()
            sums[1] += weight
        if world > 1:  # the whole batch's loss: a line search must decide alike on all ranks
            torch.distributed.all_reduce(sums)
        total, weight = sums
        torch._foreach_mul_([p.grad for p in module.parameters() if p.grad is not None], mean(world, weight))
        return mean(total, weight), weight

    def _share_statistics(self) -> None:
        """Batch norm's running averages, of each rank's share of the batches, become those of all ranks."""
        norms = (m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats)
        own = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
        if self._average:
            of = {t.data_ptr(): average for t, average in zip(self._live, self._average, strict=True)}
            own += [of[t.data_ptr()] for t in own]
        for t in own:
            torch.distributed.all_reduce(t)
            t /= self.trainer.world_size

    def _look(self) -> None:
        """Raises Diverged or Stopped, on all ranks alike. Seldom: each look waits for the device."""
        first, self._looked_at = self._looked_at, len(self._losses)
        bad = (~torch.stack(self._losses[first:]).isfinite()).nonzero()  # (step,) or (step, player)
        epoch = self.current_epoch
        if len(bad):
            step = first + int(bad[0, 0])
            raise Diverged(epoch, step, f"the loss is not finite in epoch {epoch + 1}, step {step + 1}")
        if self.trainer.is_last_batch:  # the last step's loss may be finite, and its update not
            norms = torch._foreach_norm([p.detach() for p in self.parameters()])
            if not torch.stack([n.float() for n in norms]).isfinite().all():
                raise self._diverged("the weights' norm is not finite")
        stop = torch.tensor(int(self.stop_requested()), device=self.device)
        if self.trainer.world_size > 1:  # one rank may have heard of it before another
            torch.distributed.all_reduce(stop, op=torch.distributed.ReduceOp.MAX)
        if stop:
            raise Stopped

    def _diverged(self, what: str) -> Diverged:
        """What to raise at the end of an epoch."""
        return Diverged(self.current_epoch, len(self._losses) - 1, f"{what} after epoch {self.current_epoch + 1}")

    def last_lrs(self) -> dict[str, float]:
        """The learning rate of the epoch's last step (of the first parameter group), `lr`; of several players, each."""
        schedulers: list[Any] = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if schedulers:
            rates = [s.base_lrs[0] * s.lr_lambdas[0](s.last_epoch - 1) for s in schedulers]
        else:
            rates = [optimizer.param_groups[0]["lr"] for optimizer in self.trainer.optimizers]
        names = self.players()
        return {f"lr_{name}" if len(names) > 1 else "lr": float(r) for name, r in zip(names, rates, strict=True)}

    def epoch_losses(self) -> dict[str, float]:
        """The mean training loss of the epoch over its steps, `train/loss`; of several players, their sum and each.

        Steps with nothing to learn from are left out; {} if all are.
        """
        sums = torch.stack(self._losses).double().sum(0).view(-1)  # float32 may not hold the sum
        known = [(name, s, n) for name, s, n in zip(self.players(), sums, self._measured, strict=True) if n]
        each = {f"train/loss_{name}": float(s / n) for name, s, n in known}
        return ({"train/loss": sum(each.values())} if each else {}) | (each if len(each) > 1 else {})

    def on_validation_epoch_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._set_mode("eval")
            if self._average:
                self.average_values = self._evaluate_average()
        self.reset_metrics()

    def _evaluate_average(self) -> dict[str, float]:
        """The metrics of the weight average over what is evaluated, as `test_ema/<key>`."""
        kept = [t.clone() for t in self._live]
        torch._foreach_copy_(self._live, self._average)
        self.reset_metrics()
        loader: Any = self.trainer.val_dataloaders
        for batch in loader:
            with self.trainer.precision_plugin.val_step_context():
                self.validation_step(self.transfer_batch_to_device(batch, self.device, 0), 0)
        torch._foreach_copy_(self._live, kept)
        return self.values(f"{self.split}_ema")

    def majority(self) -> float:
        """The share of test examples in the most frequent class of the training split; of (input, label) tensors."""
        labels = {split: self.examples(split).tensors[-1] for split in ("train", "test")}
        return float((labels["test"] == labels["train"].mode().values).float().mean())

    def reset_metrics(self) -> None:
        self._unsound = None
        for child in self.children():
            if isinstance(child, (Metric, MetricCollection)):
                child.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        try:
            self.evaluate(batch)
        except NotFinite as found:  # the others would wait for this rank: see values
            self._unsound = self._unsound or str(found)

    @property
    def headline_key(self) -> str:
        """The headline metric as records name it: `test/<headline>`, or `validation/<headline>`."""
        return f"{self.split}/{self.headline}"

    def values(self, split: str | None = None) -> dict[str, float]:
        """The metrics' values, in step over all ranks, as `<split>/<key>`; of what is evaluated by default.

        Raises:
            Diverged: a prediction or a value is not finite; on all ranks alike.
        """
        split = split or self.split
        unsound = [self._unsound]
        if torch.distributed.is_initialized():
            unsound = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(unsound, self._unsound)
        for name in filter(None, unsound):
            raise self._diverged(f"{split}: the {name} are not finite")
        values = {f"{split}/{key}": float(value) for key, value in self.metrics.compute().items()}
        for key, value in values.items():
            if not math.isfinite(value):
                raise self._diverged(f"{key} is {value}")
        return values
