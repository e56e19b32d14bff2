"""od: VOC-2007 detection with RFBNet300 or Fast R-CNN.

Legend: B batch, D detections and N objects of an image.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.detection import MeanAveragePrecision

from tmbench.errors import ConfigError, DataError
from tmbench.task import Figures, Loss, Task

from ..voc import CLASSES
from .boxes import Detection
from .examples import Batch, Detections, Detector, collate
from .fast_rcnn import FastRCNN
from .metric import Curve, VOCMeanAP
from .rfbnet import RFBNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = 6
SHOWN, MOST = 0.3, 10  # the least score of a detection that is drawn, and how many in an image at most
MODELS: dict[str, Any] = {"rfbnet": RFBNet, "fast_rcnn": FastRCNN}


class CocoMeanAP(MeanAveragePrecision):
    """COCO's mean average precision over overlaps 0.5 to 0.95, by torchmetrics; difficult objects count as crowds."""

    def compute(self) -> dict[str, Tensor]:
        values = super().compute()
        return {"coco_map": values["map"], "coco_map_50": values["map_50"]}


class OD(Task):
    data: Detection
    headline = "map"
    collate = staticmethod(collate)
    padding = (0,)

    def __init__(self, cfg: DictConfig, data: Detection) -> None:
        super().__init__(cfg, data)
        if cfg.weights == "imagenet" and (cfg.width != 1 or cfg.batch_norm):
            raise ConfigError("task.weights=imagenet: these are for task.width=1 and task.batch_norm=false")
        self.model: Detector = MODELS[cfg.model](cfg, data)
        metrics: dict[str, Metric | MetricCollection] = {"map": VOCMeanAP(len(CLASSES) - 1)}
        if cfg.coco:
            try:
                metrics["coco"] = CocoMeanAP(backend="faster_coco_eval")
            except ModuleNotFoundError:
                raise ConfigError("task.coco=true needs a package: pip install 'tmbench[od]'") from None
        self.metrics = MetricCollection(metrics, compute_groups=False)

    def examples(self, split: str) -> Any:
        return self.model.examples(split, training=split == "train")

    def as_evaluated(self) -> Any:
        return self.model.examples("train", training=False)

    def judged(self, count: int) -> list[Any]:
        """The (image, annotation) files of the first images that are evaluated."""
        if self.held_out_N is None:
            return self.data.split("test")[:count]
        pairs = self.data.split("train")
        return [pairs[i] for i in self.held_out_N[:count]]

    def loss(self, batch: Batch) -> Loss:
        return self.model.loss(batch)

    def evaluate(self, batch: Batch) -> None:
        targets = batch[1]
        detections = self.model.detect(batch)
        self.metrics["map"].update(detections, targets)
        if self.cfg.coco:
            self.metrics["coco"].update(
                [{"boxes": d.boxes_D4, "scores": d.scores_D, "labels": d.labels_D} for d in detections],
                [{"boxes": t["boxes"], "labels": t["labels"], "iscrowd": t["difficult"].long()} for t in targets],
            )

    def check_data(self) -> None:
        """An object to train with, and one to find that is not difficult; images are read until there is one."""
        for split, examples in (("train", self.as_evaluated()), (self.split, self.examples("test"))):
            targets = (examples[i][1] for i in range(len(examples)))
            if not any(len(t["labels"]) if split == "train" else bool((~t["difficult"]).any()) for t in targets):
                kind = "an object" if split == "train" else "an object that is not marked difficult"
                where = f"the {split} split of {self.data.root}, its {len(examples)} annotations have none"
                raise DataError(f"od: expected {kind} in {where}; annotate some, or list other images")

    def baseline(self) -> dict[str, float]:
        """Nothing found."""
        return {"map": 0.0, "map_area": 0.0}

    def detect(self, i: int) -> Detections:
        """What is found in test image i, on the CPU."""
        batch = move_data_to_device(collate([self.examples("test")[i]]), self.device)
        return Detections(*(t.cpu() for t in self.model.detect(batch)[0]))

    def curves(self) -> dict[str, Curve]:
        """The precision-recall curve of each class with objects in the test split, as last evaluated."""
        metric: Any = self.metrics["map"]
        if not metric.update_called:  # fresh from a checkpoint
            examples = self.examples("test")
            for i in range(len(examples)):
                self.evaluate(move_data_to_device(collate([examples[i]]), self.device))
        return {CLASSES[label]: curve for label, curve in metric.curves().items() if curve.objects}

    @classmethod
    def compare(cls, tasks: Mapping[str, Any]) -> Figures:
        curves = {name: task.curves() for name, task in tasks.items()}
        yield "detections", detections_figure(tasks)
        yield "precision_recall", curves_figure(curves)
        yield "average_precision", classes_figure(curves)


def detections_figure(runs: Mapping[str, OD]) -> "Figure":
    """The first test images: what is there, and what each run finds."""
    import matplotlib.pyplot as plt

    some = next(iter(runs.values()))
    pairs = some.judged(PICTURES)
    names = ["truth", *runs]
    size = (3.2 * len(names), 2.6 * len(pairs))
    figure, axes = plt.subplots(len(pairs), len(names), figsize=size, squeeze=False, layout="constrained")
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name)
    for i, (row, pair) in enumerate(zip(axes, pairs, strict=True)):
        image, objects = some.data.read(*pair)
        for ax in row:
            ax.imshow(image)
            ax.set_axis_off()
        for box, label, difficult in zip(objects.boxes, objects.labels, objects.difficult, strict=True):
            draw_box(row[0], box, label, CLASSES[label] + (" (difficult)" if difficult else ""))
        for ax, task in zip(row[1:], runs.values(), strict=True):
            found = task.detect(i)
            for box, score, label in zip(*(t[:MOST].tolist() for t in found), strict=True):
                if score >= SHOWN:
                    draw_box(ax, box, label, f"{CLASSES[label]} {score:.2f}")
    figure.suptitle(f"detections with a score of at least {SHOWN}", fontsize="small")
    return figure


def draw_box(ax: "Axes", box: Any, label: int, text: str) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    colour = plt.get_cmap("tab20")(label - 1)
    x1, y1, x2, y2 = box
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, linewidth=1.5))
    # Below those that it would cover. In the picture's pixels: a letter of 7 points, a line with its box.
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    letter, line = 0.02 * abs(right - left), 0.06 * abs(top - bottom)
    others = [(*other.get_position(), len(other.get_text())) for other in ax.texts]
    while any(abs(y1 - y) < line and x1 < x + letter * n and x < x1 + letter * len(text) for x, y, n in others):
        y1 += line
    ax.text(x1, y1, text, fontsize=7, color="white", va="bottom", bbox={"facecolor": colour, "pad": 1, "linewidth": 0})


def curves_figure(curves: Mapping[str, Mapping[str, Curve]]) -> "Figure":
    """Precision over recall, a panel for each class, a line for each run."""
    import matplotlib.pyplot as plt

    names = list(next(iter(curves.values())))
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    shape: Any = {"figsize": (2.4 * columns, 2.2 * rows + 0.4), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, sharex=True, sharey=True, **shape)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, names, strict=False):
        for run, each in curves.items():
            curve = each[name]
            ax.plot(curve.recall_E, curve.precision_E, label=f"{run}: AP {curve.points:.2f}", linewidth=1.2)
        ax.set_title(f"{name} ({each[name].objects})", fontsize="small")
        ax.set(xlim=(0, 1.02), ylim=(0, 1.05))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=6, loc="lower left")
    figure.supxlabel("recall", fontsize="small")
    figure.supylabel("precision", fontsize="small")
    return figure


def classes_figure(curves: Mapping[str, Mapping[str, Curve]]) -> "Figure":
    """VOC 2007's average precision of each class, as bars and as a table's numbers; of several runs, side by side."""
    import matplotlib.pyplot as plt

    names = list(next(iter(curves.values())))
    height = 0.8 / len(curves)
    figure, ax = plt.subplots(figsize=(7, 1 + 0.32 * len(names) * max(1.0, 0.6 * len(curves))), layout="constrained")
    for n, (run, each) in enumerate(curves.items()):
        values = [curve.points for curve in each.values()]
        at = [k + height * (n - (len(curves) - 1) / 2) for k in range(len(names))]
        bars = ax.barh(at, values, height, label=f"{run}: mAP {sum(values) / len(values):.3f}")
        ax.bar_label(bars, [f"{value:.3f}" for value in values], fontsize=7, padding=2)
    ax.set_yticks(range(len(names)), [f"{name} ({each[name].objects})" for name in names], fontsize="small")
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="average precision (11 points); in brackets: objects to find")
    ax.legend(loc="lower right", fontsize="small")
    return figure
