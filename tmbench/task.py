"""What a task must say to be run, and the one training step that all tasks share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection

from .data import Dataset
from .errors import ConfigError
from .loader import STEPS_A_BLOCK, Step, seed_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Diverged(Exception):  # noqa: N818  (a result, not an error)
    """The training loss is no longer finite."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(f"non-finite loss in epoch {epoch}, step {step}")
        self.epoch, self.step = epoch, step


class Stopped(BaseException):
    """A person or the scheduler asked the run to stop; its last epoch is on disk."""


class Task(LightningModule, ABC):
    """A model, its data, its loss and its metrics. A task knows nothing of optimizers, devices or runs.

    A subclass sets in its constructor the model and `self.metrics`, a MetricCollection whose keys become
    `test/<key>`; the constructor may rely on the random generators being seeded.

    Args of every subclass: the settled `task` section of the configuration, and its open data set.
    """

    headline: str  # the metric that ranks runs, a key of self.metrics
    higher_is_better: bool = True
    metrics: MetricCollection
    collate: Callable[[list[Any]], Any] | None = None  # makes a batch of examples; not used for a TensorDataset

    def __init__(self, cfg: DictConfig, data: Dataset) -> None:
        super().__init__()
        self.automatic_optimization = False  # the step below is all there is
        self.cfg, self.data = cfg, data

    @abstractmethod
    def examples(self, split: str) -> Any:
        """The `train` or `test` examples: a TensorDataset if they fit into memory, else map-style."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The mean loss over a batch; shape ()."""

    @abstractmethod
    def evaluate(self, batch: Any) -> None:
        """Updates self.metrics with a batch of the test split."""

    def pictures(self) -> Iterable[tuple[str, "Figure"]]:
        """(file name without ending, matplotlib figure) pairs that a person would rather look at; drawn at the end."""
        return ()

    # What follows is the same for all tasks; the runner sets the next five.

    seed: int
    optimizer_name: str
    new_optimizer: Callable[..., Optimizer]
    factor: "partial[float] | None" = None  # the schedule: step -> factor on the learning rate
    stop_requested: Callable[[], bool] = staticmethod(lambda: False)

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.new_optimizer([p for p in self.parameters() if p.requires_grad])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer={self.optimizer_name}: {error}") from error
        if self.factor is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, self.factor)}

    def on_train_epoch_start(self) -> None:
        seed_all("epoch", self.seed, self.current_epoch, self.global_rank)
        self._losses: list[Tensor] = []
        self._looked_at = 0

    def training_step(self, block: list[Step], block_idx: int) -> None:
        """Takes the optimizer steps of a block, and looks now and then whether all goes well."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        for step in block:
            self._losses.append(optimizer.step(partial(self._closure, optimizer, step)))
            if scheduler is not None:
                scheduler.step()
        if len(self._losses) - self._looked_at >= STEPS_A_BLOCK or self.trainer.is_last_batch:
            self._look()

    def _closure(self, optimizer: Optimizer, step: Step) -> Tensor:
        """The step's loss, with its gradient left in the parameters."""
        optimizer.zero_grad()
        total: Tensor | None = None
        for batch, weight in step:
            loss = self.loss(batch)
            if weight != 1.0:
                loss = loss * weight
            if self.trainer.world_size > 1:
                self.manual_backward(loss)  # announces the exchange of gradients
            else:
                loss.backward()  # type: ignore[no-untyped-call]  # saves Lightning's hooks, a twentieth of a small step
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _look(self) -> None:
        """Raises Diverged or Stopped, on all ranks alike. Seldom: each look waits for the device."""
        first, self._looked_at = self._looked_at, len(self._losses)
        bad = (~torch.stack(self._losses[first:]).isfinite()).nonzero()
        never = len(self._losses)
        news = [-(first + int(bad[0])) if len(bad) else -never, int(self.stop_requested())]
        if self.trainer.world_size > 1:
            all_news = torch.tensor(news, device=self.device)
            torch.distributed.all_reduce(all_news, op=torch.distributed.ReduceOp.MAX)
            news = all_news.tolist()
        if -news[0] < never:
            raise Diverged(self.current_epoch, -news[0])
        if news[1]:
            raise Stopped

    def last_lr(self) -> float:
        """The learning rate of the epoch's last step (of the first parameter group)."""
        scheduler: Any = self.lr_schedulers()
        if scheduler is None:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            return float(optimizer.param_groups[0]["lr"])
        return float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](scheduler.last_epoch - 1))

    def epoch_loss(self) -> float:
        """The mean training loss of the epoch over its steps and all ranks."""
        mean = torch.stack(self._losses).mean()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(mean)
            mean /= self.trainer.world_size
        return float(mean)

    def on_validation_epoch_start(self) -> None:
        for child in self.children():
            if isinstance(child, (Metric, MetricCollection)):
                child.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch)


def as_floats(metrics: MetricCollection | Metric) -> dict[str, float]:
    """The metrics' values, in step over all ranks, as `test/<key>`."""
    return {f"test/{key}": float(value) for key, value in metrics.compute().items()}
