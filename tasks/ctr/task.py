"""ctr: whether an advertisement is clicked, by Wide & Deep (Cheng et al. 2016) as in shenweichen/DeepCTR-Torch@048e7ad.

Legend: B batch, F fields, E numbers of an embedding, N examples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import TensorDataset
from torchmetrics import CatMetric, Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy
from torchmetrics.utilities import dim_zero_cat

from tmbench.errors import DataError
from tmbench.task import Figures, Loss, New, Table, Task, finite
from tmbench.training.mup import built, scaled

from ..metrics import Ratio
from .avazu import SETTINGS, Avazu

DRAWN = 500_000  # test examples, at most
BINS = 20


class WideDeep(nn.Module):
    """One weight for each value, plus a multi-layer perceptron over the embeddings of an example's values.

    With n values over all F fields and H units in the last of the hidden layers there are n (E + 1) + H + 1 parameters
    beside the hidden layers'. The source starts those at N(0, 1e-4) too, which leaves SGD nothing to go on; here they
    start as torch's layers do.

    Args:
        sizes: how many values each field has.
        embedding, init_std: E, and the standard deviation that embeddings and linear weights start with.
        hidden, dropout: units of each layer, and the dropout after it.
    """

    offsets_F: Tensor

    def __init__(
        self, sizes: Sequence[int], embedding: int, hidden: Sequence[int], dropout: float = 0.0, init_std: float = 1e-4,
        readout: type[nn.Linear] = nn.Linear,
    ) -> None:  # fmt: skip
        super().__init__()
        # One table for all fields, with the linear weight as its last column: one gather, and one tensor to step.
        self.table = nn.Embedding(sum(sizes), embedding + 1)
        nn.init.normal_(self.table.weight, std=init_std)
        offsets_F = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("offsets_F", offsets_F, persistent=False)
        layers: list[nn.Module] = []
        width = len(sizes) * embedding
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
            width = units
        self.deep = nn.Sequential(*layers, readout(width, 1, bias=False))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, indices_BF: Tensor) -> Tensor:
        """Logits (B,) of a click; each field's indices count from 0."""
        rows_BFE = self.table(indices_BF + self.offsets_F)  # E + 1 of them
        wide_B = rows_BFE[..., -1].sum(1)
        return wide_B + self.deep(rows_BFE[..., :-1].flatten(1)).squeeze(1) + self.bias


class AUC(Metric):
    """The share of (clicked, not clicked) pairs of examples whose logits are in that order, ties as half; exact.

    Of logits, since float32 has one sigmoid, 1, for all above 17. Keeps 5 bytes an example.
    """

    full_state_update = False
    logits: list[Tensor]
    clicks: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("logits", "clicks"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits_B: Tensor, clicks_B: Tensor) -> None:
        self.logits.append(logits_B)
        self.clicks.append(clicks_B.bool())

    def compute(self) -> Tensor:
        logits_N, order_N = dim_zero_cat(self.logits).sort()
        clicked_N = dim_zero_cat(self.clicks)[order_N]
        # All that follows are integers: the hits and misses up to the end of each group of equal logits.
        ends_G = torch.unique_consecutive(logits_N, return_counts=True)[1].cumsum(0)
        hits_G = clicked_N.cumsum(0)[ends_G - 1]
        misses_G = ends_G - hits_G
        before_G = torch.nn.functional.pad(misses_G[:-1], (1, 0))
        twice = (torch.diff(hits_G, prepend=hits_G.new_zeros(1)) * (before_G + misses_G)).sum()
        return twice.double() / (2 * hits_G[-1] * misses_G[-1])


class CalibrationError(Ratio):
    """The mean, over examples, of how far their bin's mean probability is from its share of clicks.

    The bins of probability are of equal width. torchmetrics' own adds millions in float32.
    """

    def __init__(self, bins: int) -> None:
        super().__init__(bins)  # of each bin, what was said less what was clicked

    def update(self, logits_B: Tensor, clicks_B: Tensor) -> None:
        said_B, bins = logits_B.double().sigmoid(), len(self.above)
        self.above.index_add_(0, (said_B * bins).long().clamp(max=bins - 1), said_B - clicks_B)
        self.below += len(clicks_B)


class LogLoss(Ratio):
    """The mean of -log of what was said to be the probability of what happened."""

    def update(self, logits_B: Tensor, clicks_B: Tensor) -> None:
        self.above += binary_cross_entropy_with_logits(logits_B.double(), clicks_B.double(), reduction="sum")
        self.below += len(clicks_B)


class ClickRatio(Ratio):
    """Clicks predicted over clicks observed; 1 if the probabilities are right on average."""

    def update(self, logits_B: Tensor, clicks_B: Tensor) -> None:
        self.above += logits_B.double().sigmoid().sum()
        self.below += clicks_B.sum()


class CTR(Task):
    data: Avazu
    headline = "auc"
    metric_of_examples = ("log_loss", False)  # the auc is no mean over examples

    def __init__(self, cfg: DictConfig, data: Avazu) -> None:
        super().__init__(cfg, data)
        sizes = self._table("train").sizes

        def model(width: int, readout: type[nn.Linear]) -> WideDeep:
            hidden = [max(1, round(units * width / cfg.hidden[0])) for units in cfg.hidden]
            return WideDeep(sizes, cfg.embedding, hidden, cfg.dropout, cfg.init_std, readout)

        self.model = built(cfg, model, default=cfg.hidden[0])
        self.metrics = MetricCollection(
            {
                "auc": AUC(), "log_loss": LogLoss(), "accuracy": BinaryAccuracy(),
                "calibration_error": CalibrationError(BINS), "click_ratio": ClickRatio(),
            },
            compute_groups=False,
        )  # fmt: skip
        self.of_examples = CatMetric(nan_strategy="disable")

    def _table(self, split: str) -> Any:
        return self.data.table(split, **{name: self.cfg[name] for name in SETTINGS})

    def examples(self, split: str) -> TensorDataset:
        """Indices (N, F of the group) in up to three groups by width, and clicks (N,); mapped into memory."""
        table = self._table(split)
        return TensorDataset(*map(torch.from_numpy, table.groups), torch.from_numpy(table.clicks_N))

    def predict(self, groups: Sequence[Tensor]) -> Tensor:
        """Logits (B,) of examples as the loader gives them."""
        return self.model(torch.cat([group.int() for group in groups], 1))

    def loss(self, batch: tuple[Tensor, ...]) -> Loss:
        """Cross-entropy, over the examples; the penalty is one for a step, however many there are.

        A table that is stepped by rows has its penalty in the step alone: its sum is over all rows.
        """
        *groups, clicks_B = batch
        total = binary_cross_entropy_with_logits(self.predict(groups), clicks_B.float(), reduction="sum")
        if self.cfg.l2 and not self.cfg.get("sparse"):
            total = total + len(clicks_B) * self.cfg.l2 * self.model.table.weight.square().sum()
        return total, len(clicks_B)

    def tables(self) -> list[Table]:
        return [Table(self.model.table, self.cfg.l2)]

    def with_own_rates(self, new: Any) -> New:
        return scaled(new) if self.cfg.get("mup") else new

    def evaluate(self, batch: tuple[Tensor, ...]) -> None:
        *groups, clicks_B = batch
        logits_B = finite("logits", self.predict(groups).float())
        for name, metric in self.metrics.items():  # torchmetrics' accuracy takes logits in [0, 1] for probabilities
            metric.update((logits_B > 0).int() if name == "accuracy" else logits_B, clicks_B)
        self.of_examples.update(binary_cross_entropy_with_logits(logits_B, clicks_B.float(), reduction="none"))

    def check_data(self) -> None:
        """An AUC needs examples of both kinds, and so do the trivial predictor's metrics."""
        for split in ("train", "test"):
            clicks_N = self.examples(split).tensors[-1]
            if (least := clicks_N.min()) == clicks_N.max():
                where = f"the {self.split if split == 'test' else split} split of {self.data.root}"
                got = f"in its {len(clicks_N):,} rows click is always {int(least)}; use more rows"
                raise DataError(f"ctr: expected clicked and other rows in {where}, {got}")

    def baseline(self) -> dict[str, float]:
        """The training rows' share of clicks as the probability of each."""
        train, test = (float(self.examples(split).tensors[-1].float().mean()) for split in ("train", "test"))
        log_loss = -test * math.log(train) - (1 - test) * math.log(1 - train)
        return {
            "auc": 0.5, "log_loss": log_loss, "accuracy": test if train > 0.5 else 1 - test,
            "calibration_error": abs(train - test), "click_ratio": train / test,
        }  # fmt: skip

    @classmethod
    def compare(cls, tasks: Mapping[str, Any]) -> Figures:
        """ROC, calibration in bins of equally many examples, and how often each probability is said."""
        import matplotlib.pyplot as plt

        figure, (roc, calibration, histogram) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
        top = 0.0
        for label, task in tasks.items():
            logits_N, clicks_N = task.said()
            order, said_N = logits_N.argsort(descending=True), logits_N.double().sigmoid()
            hits_N = clicks_N[order].double().cumsum(0)
            misses_N = torch.arange(1, len(order) + 1) - hits_N
            few = slice(None, None, max(1, len(order) // 2000))
            roc.plot((misses_N / misses_N[-1])[few], (hits_N / hits_N[-1])[few], label=label)
            bins = [part for part in order.flip(0).tensor_split(BINS) if len(part)]
            means = [[float(t[part].double().mean()) for part in bins] for t in (said_N, clicks_N)]
            calibration.plot(*means, marker="o", markersize=3, label=label)
            top = max(top, 1.05 * max(map(max, means)))
            histogram.hist(said_N.numpy(), bins=50, histtype="step", label=label)
        for ax in (roc, calibration):
            ax.axline((0, 0), slope=1, color="grey", linestyle="--", linewidth=1)
            ax.set_aspect("equal", adjustable="box")
        roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
        calibration.set(
            title="Calibration", xlabel="predicted probability", ylabel="share clicked", xlim=(0, top), ylim=(0, top)
        )
        histogram.set(title="Probabilities", xlabel="predicted probability", ylabel="test examples", yscale="log")
        if len(tasks) > 1:
            figure.legend(*roc.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        yield "calibration", figure

    def said(self) -> tuple[Tensor, Tensor]:
        """Logits and clicks of the first test examples, (N,) each."""
        *groups, clicks_N = (t[:DRAWN] for t in self.examples("test").tensors)
        parts = zip(*(torch.split(group, self.cfg.eval_batch_size) for group in groups), strict=True)
        logits = [self.predict([t.to(self.device) for t in part]).float().cpu() for part in parts]
        return torch.cat(logits), clicks_N
