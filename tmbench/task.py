"""The contract between a task and what trains it: the model, its data, its loss and its metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric, MetricCollection

from .data import Dataset
from .errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Loss = tuple[Tensor, Tensor | int]  # a sum, shape (), and how many terms it is over, also of shape () if a tensor
Figures = Iterable[tuple[str, "Figure"]]  # the name of a file without its ending, and what to save there
New = Callable[[Any], Optimizer]  # parameters, or groups of them -> a fresh optimizer


class NotFinite(Exception):  # noqa: N818  (the run diverges at the end of the evaluation, on all ranks alike)
    """A prediction that no metric may see; the message is its name."""


def finite(name: str, prediction: Tensor) -> Tensor:
    """The prediction, for a metric; raises NotFinite. Some metrics make nan a number: class 0, or the AUC of chance."""
    if not prediction.isfinite().all():
        raise NotFinite(name)
    return prediction


def mean(total: Tensor | float, weight: Tensor | int) -> Any:
    """A sum over `weight` terms divided by their number; over none, where it is 0, by 1."""
    return total / (weight.where(weight > 0, 1) if isinstance(weight, Tensor) else weight or 1)


class Player(NamedTuple):
    """A module that takes an optimizer step on every batch, by its own loss."""

    module: nn.Module
    loss: Callable[[Any], Loss]
    lr: float | None = None  # a learning rate of its own; None is the run's


def checked_loss(player: Player, batch: Any) -> Loss:
    """A player's loss of a batch; ConfigError if it is not a sum and what it is over."""
    loss: Any = player.loss(batch)
    if not (isinstance(loss, tuple) and len(loss) == 2):
        name = getattr(player.loss, "__qualname__", "loss")
        raise ConfigError(
            f"{name}: expected to return (sum of the loss, number of terms), as Task.loss says, got a "
            f"{type(loss).__name__}; return loss.sum(), len(loss), say"
        )
    return loss


class Table(NamedTuple):
    """An embedding of which a batch reads few rows, and that nothing else reads while it is trained."""

    embedding: nn.Embedding
    l2: float = 0.0  # of a penalty l2 sum(w^2) over the whole table, once a step; not part of the loss then


class Task(nn.Module, ABC):
    """A model, its data, its loss and its metrics. A task knows nothing of optimizers or runs.

    A subclass sets in its constructor the model and `self.metrics`, a MetricCollection whose keys become
    `test/<key>`, with compute_groups=False: by default, torchmetrics merges two metrics whose states happen to
    agree after the first batch. It takes the settled `task` section of the configuration and the open data set. The
    random generators are seeded by then. It must not need the test split, which a run with `validation` never reads.
    """

    headline: str  # the metric that ranks runs, a key of self.metrics
    higher_is_better: bool = True
    metrics: MetricCollection
    collate: Callable[[list[Any]], Any] | None = None  # makes a batch of examples; not used for a TensorDataset
    padding: tuple[float, ...] = ()  # with what `collate` pads a batch's first tensors, at the right and below
    split: str = "test"  # the name of what is evaluated; `validation` where held-out training examples are
    of_examples: Metric  # if a task has one, `evaluate` gives it a number an example, whose mean is the metric below
    metric_of_examples: tuple[str, bool] | None = None  # a key, and whether higher is better; None: the headline
    held_out_N: np.ndarray | None = None  # the training examples that are evaluated in place of the test split

    def __init__(self, cfg: DictConfig, data: Dataset) -> None:
        super().__init__()
        self.cfg, self.data = cfg, data

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def examples(self, split: str) -> Any:
        """The `train` or `test` examples: a TensorDataset if they fit into memory, else map-style."""

    @abstractmethod
    def loss(self, batch: Any) -> Loss:
        """The loss of a batch as its sum over examples, labelled pixels or matched boxes, and how many those are.

        A step divides the sum over all parts and ranks by the number over all of them, so that it does not depend on
        how the batch is divided. A batch with nothing to learn from gives 0, with a gradient of 0, over 0. What is
        added once a step, such as a penalty, is multiplied by the number.
        """

    @abstractmethod
    def evaluate(self, batch: Any) -> None:
        """Updates self.metrics with a batch of the test split; predictions pass through `finite` first."""

    def as_evaluated(self) -> Any:
        """The training examples as `evaluate` takes them, in the same order, where training takes altered ones."""
        return self.examples("train")

    def groups(self) -> Sequence[Any] | None:
        """The group of each training example, such as the person it shows, held out as a whole; None: no groups."""
        return None

    def hold_out(self, held_out_N: np.ndarray) -> None:
        """Notes that these training examples are evaluated, not trained on; ConfigError if the task cannot do that."""
        self.held_out_N, self.split = held_out_N, "validation"

    def players(self) -> dict[str, Player]:
        """What takes a step on every batch, in turn, by name, each with an optimizer of its own; two for a GAN."""
        return {"": Player(self, self.loss)}

    def tables(self) -> Sequence[Table]:
        """The embeddings that are stepped by the rows read, where `cfg.sparse` is true; a key of the task's YAML."""
        return ()

    def with_own_rates(self, new: "partial[Optimizer]") -> New:
        """What makes the task's optimizer, where its parameters need other rates than `new` gives them."""
        return new

    def evaluates_after(self, epochs: int, of: int) -> bool:
        """Whether the test split is evaluated after so many epochs `of` all; after the last it always is."""
        return True

    def after_evaluation(self, epochs: int, of: int) -> None:
        """Called when the test split has been evaluated after so many epochs `of` all."""

    def check_data(self) -> None:
        """Raises DataError for a split that has examples, but none to learn from or that its metrics can measure.

        It names the split, what was expected, and what there is. Called before each training: it must not take long.
        """

    def baseline(self) -> dict[str, float]:
        """What a predictor that never looks at its input reaches on the test split, by metric; {} if there is none."""
        return {}

    def pictures(self) -> Figures:
        """What a person may look at; drawn at the end of training."""
        return self.compare({"prediction": self})

    @classmethod
    def compare(cls, tasks: Mapping[str, "Task"]) -> Figures:
        """The same for several trained tasks of this class side by side, each under its label."""
        return ()
