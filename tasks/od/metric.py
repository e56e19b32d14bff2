"""Average precision as the VOC-2007 devkit computes it (VOCevaldet.m and, for the area, VOC 2010's).

Legend: D detections and N objects of an image, E detections over all images, K classes (without background), R ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

OVERLAP = 0.5  # from which on a detection hits
HIT, MISS, IGNORED = 1, 0, -1


def overlaps(boxes_D4: Tensor, truth_N4: Tensor) -> Tensor:
    """Intersection over union (D, N) of boxes whose last pixel belongs to them: a side is x2 - x1 + 1; float64."""
    a_D14, b_1N4 = boxes_D4.double()[:, None], truth_N4.double()[None]
    last_DN2, first_DN2 = torch.minimum(a_D14[..., 2:], b_1N4[..., 2:]), torch.maximum(a_D14[..., :2], b_1N4[..., :2])
    shared_DN = (last_DN2 - first_DN2 + 1).clamp(min=0).prod(2)
    area_D1, area_1N = ((b[..., 2:] - b[..., :2] + 1).prod(2) for b in (a_D14, b_1N4))
    return shared_DN / (area_D1 + area_1N - shared_DN)


def judge(
    boxes_D4: Tensor, scores_D: Tensor, labels_D: Tensor, truth_N4: Tensor, truth_N: Tensor, difficult_N: Tensor
) -> Tensor:
    """HIT, MISS or IGNORED for each detection in an image; int8 of shape (D,).

    A detection is compared with the one object of its class that it overlaps most. It hits if that is by 0.5 or more
    (the devkit's rule; its later translation into Python asks for more), and if no better detection hit the same
    object. One that falls on a difficult object is ignored.
    """
    verdict_D = torch.full((len(boxes_D4),), MISS, dtype=torch.int8, device=boxes_D4.device)
    if not len(boxes_D4) or not len(truth_N4):
        return verdict_D
    overlap_DN = overlaps(boxes_D4, truth_N4).masked_fill(labels_D[:, None] != truth_N[None], -1)
    overlap_D, which_D = overlap_DN.max(dim=1)
    falls_D = overlap_D >= OVERLAP
    order_D = torch.sort(scores_D, descending=True, stable=True).indices
    claims_DN = (which_D[:, None] == torch.arange(len(truth_N4), device=which_D.device)) & falls_D[:, None]
    first_DN = claims_DN[order_D].cumsum(0)[order_D.argsort()] == 1
    verdict_D[(claims_DN & first_DN).any(1)] = HIT
    verdict_D[falls_D & difficult_N[which_D]] = IGNORED
    return verdict_D


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class as more and more detections count, best first; float64 of shape (E,)."""

    recall_E: Tensor
    precision_E: Tensor
    objects: int  # to be found, the difficult ones aside

    @property
    def points(self) -> float:
        """VOC 2007's average precision: the mean, over recalls 0, 0.1 ... 1, of the best precision from there on."""
        # k / 10 as it rounds once: a recall of 3 / 10 reaches 0.3, which 3 * 0.1 would put out of its reach.
        best = [self.precision_E[self.recall_E >= k / 10] for k in range(11)]
        return sum(float(p.max()) for p in best if len(p)) / 11

    @property
    def area(self) -> float:
        """VOC 2010's: the area under the precision made to fall with recall."""
        falling_E = self.precision_E.flip(0).cummax(0).values.flip(0) if len(self.precision_E) else self.precision_E
        steps_E = torch.diff(self.recall_E, prepend=torch.zeros(1, dtype=torch.float64))
        return float((falling_E * steps_E).sum())


class VOCMeanAP(Metric):
    """`map`, the VOC-2007 mean average precision, and `map_area`, that by VOC 2010's area; over classes with objects.

    Each image is judged as it comes, so the state is one row a detection, and several ranks' states are one another's
    continuation: equal scores are counted in the order of the images' numbers, whoever saw them. Labels are 1 to K.
    """

    full_state_update = False
    scores: list[Tensor]
    rows: list[Tensor]
    objects_K: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("rows", [], dist_reduce_fx="cat")  # image, label, verdict
        self.add_state("objects_K", torch.zeros(num_classes + 1, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, detections: Sequence[Any], targets: Sequence[dict[str, Tensor]]) -> None:
        """Judges detections (boxes, scores, labels) in images, of which the targets have all that `truth` tells."""
        for (boxes_D4, scores_D, labels_D), target in zip(detections, targets, strict=True):
            easy_N = target["labels"][~target["difficult"]]
            self.objects_K += torch.bincount(easy_N, minlength=self.num_classes + 1)
            verdict_D = judge(boxes_D4, scores_D, labels_D, target["boxes"], target["labels"], target["difficult"])
            self.scores.append(scores_D.float())
            self.rows.append(torch.stack([target["number"].expand_as(labels_D), labels_D, verdict_D.long()], dim=1))

    def compute(self) -> dict[str, Tensor]:
        curves = [curve for curve in self._curves().values() if curve.objects]
        values = {"map": [c.points for c in curves], "map_area": [c.area for c in curves]}
        return {key: torch.tensor(each, device=self.objects_K.device).mean() for key, each in values.items()}

    def curves(self) -> dict[int, Curve]:
        """Each class's curve by its label; in step over all ranks, like compute."""
        with self.sync_context(should_sync=self._to_sync, should_unsync=self._should_unsync):
            return self._curves()

    def _curves(self) -> dict[int, Curve]:
        scores_E, rows_E3 = dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.rows).cpu()
        order_E = torch.sort(rows_E3[:, 0], stable=True).indices
        order_E = order_E[torch.sort(scores_E[order_E], descending=True, stable=True).indices]
        rows_E3 = rows_E3[order_E]
        curves = {}
        for label in range(1, self.num_classes + 1):
            objects = int(self.objects_K[label])
            verdict_E = rows_E3[(rows_E3[:, 1] == label) & (rows_E3[:, 2] != IGNORED), 2]
            hits_E = verdict_E.cumsum(0).double()
            curves[label] = Curve(hits_E / max(objects, 1), hits_E / torch.arange(1, len(hits_E) + 1), objects)
        return curves
