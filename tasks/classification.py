"""What the tasks that name one of several classes share. Legend: B batch, C classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchmetrics import CatMetric, ConfusionMatrix, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from tmbench.task import Figures, Loss, New, Task, finite
from tmbench.training.mup import scaled

MOST_IN_MATRIX = 10  # classes


class Classifier(Task):
    """Cross-entropy of the logits (B, C) that `self.model` gives, and accuracy; of few classes a confusion matrix too.

    Examples are (input, label) tensors.
    """

    headline = "accuracy"
    model: nn.Module

    def set_classes(self, names: Sequence[str], **more: Metric) -> None:
        """Sets the metrics: accuracy and `more`."""
        self.names = names
        metrics: dict[str, Any] = {"accuracy": MulticlassAccuracy(len(names), average="micro"), **more}
        self.metrics = MetricCollection(metrics, compute_groups=False)
        self.of_examples = CatMetric(nan_strategy="disable")  # 1 where the class is right
        if len(names) <= MOST_IN_MATRIX:
            self.confusion = ConfusionMatrix(task="multiclass", num_classes=len(names))

    def preprocess(self, inputs_B: Tensor, training: bool) -> Tensor:
        """A batch's inputs as the network reads them."""
        return inputs_B

    def loss(self, batch: tuple[Tensor, Tensor]) -> Loss:
        inputs_B, labels_B = batch
        logits_BC = self.model(self.preprocess(inputs_B, training=True))
        return nn.functional.cross_entropy(logits_BC, labels_B, reduction="sum"), len(labels_B)

    def with_own_rates(self, new: Any) -> New:
        return scaled(new) if self.cfg.get("mup") else new

    def evaluate(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs_B, labels_B = batch
        logits_BC = finite("logits", self.model(self.preprocess(inputs_B, training=False)))
        self.metrics.update(logits_BC, labels_B)
        self.of_examples.update(logits_BC.argmax(1) == labels_B)
        if len(self.names) <= MOST_IN_MATRIX:
            self.confusion.update(logits_BC, labels_B)

    def baseline(self) -> dict[str, float]:
        """The most frequent class of the training split, whatever the input."""
        train_N, test_N = (self.examples(split).tensors[-1] for split in ("train", "test"))
        return {"accuracy": float((test_N == train_N.mode().values).float().mean())}

    def confusion_figure(self, title: str, size: tuple[float, float]) -> Figures:
        """The confusion matrix: counts, coloured by their share of the row's, so that rare classes are seen as well."""
        import matplotlib.pyplot as plt

        counts_CC = self.confusion.compute().cpu()
        shares_CC = counts_CC / counts_CC.sum(1, keepdim=True).clamp(min=1)
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        ax.imshow(shares_CC.numpy(), cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares_CC.numpy()):
            ax.text(column, row, str(int(counts_CC[row, column])), ha="center", va="center",
                    color="white" if share > 0.5 else "black")  # fmt: skip
        ax.set_xticks(range(len(self.names)), self.names, rotation=45, ha="right")
        ax.set_yticks(range(len(self.names)), self.names)
        ax.set(title=f"{title}, coloured by the share of their row", xlabel="predicted", ylabel="true")
        yield "confusion", figure
