#!/usr/bin/env bash
# torchmetrics: MeanIoU is the mean over pictures of each picture's own IoU, not the data set's mean IoU of VOC.
# Versions: torch==2.15.0, numpy==2.4.6, torchmetrics==1.9.0
#
# The mean IoU of PASCAL VOC, Cityscapes and the papers adds up intersections and unions per class over the whole test
# set, and divides once. torchmetrics.segmentation.MeanIoU divides for each picture (over the classes that are in it)
# and averages. It does so however the pictures are batched, with per_class=True as well, and no option changes it. The
# same predictions score 0.61 by the one and 0.47 by the other. JaccardIndex, a
# classification metric, is the mean IoU of the papers.
#
# Seen, on a CPU with Python 3.11:
#   MeanIoU, batches of 1, 2, 3, 6 pictures: 0.4677 0.4677 0.4677 0.4677
#   JaccardIndex: 0.6133   by hand over the whole set: 0.6133   by hand picture by picture: 0.4677
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.15.0 numpy==2.4.6 torchmetrics==1.9.0
"$env/bin/python" -W ignore - <<'PYTHON'
import torch, torchmetrics
from torchmetrics import JaccardIndex
from torchmetrics.segmentation import MeanIoU

torch.manual_seed(0)
targets = torch.randint(0, 3, (6, 8, 8))
targets[:3] = 0  # three pictures of background alone
predictions = torch.where(torch.rand(6, 8, 8) < 0.7, targets, torch.randint(0, 3, (6, 8, 8)))


def metric(size):
    mean_iou = MeanIoU(num_classes=3, input_format="index")
    for first in range(0, 6, size):
        mean_iou.update(predictions[first : first + size], targets[first : first + size])
    return round(float(mean_iou.compute()), 4)


def by_hand(guess, truth):
    both = torch.tensor([((guess == c) & (truth == c)).sum() for c in range(3)]).double()
    either = torch.tensor([((guess == c) | (truth == c)).sum() for c in range(3)])
    return (both / either)[either > 0].mean()


scores = [metric(size) for size in (1, 2, 3, 6)]
jaccard = JaccardIndex("multiclass", num_classes=3)
jaccard.update(predictions, targets)
whole = round(float(by_hand(predictions, targets)), 4)
pictures = round(float(torch.stack([by_hand(g, t) for g, t in zip(predictions, targets)]).mean()), 4)
print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
print("MeanIoU, batches of 1, 2, 3, 6 pictures:", *scores)
print("JaccardIndex:", round(float(jaccard.compute()), 4), "  by hand over the whole set:", whole,
      "  picture by picture:", pictures)
assert round(float(jaccard.compute()), 4) == whole
assert scores == [pictures] * 4 and abs(whole - pictures) > 0.1, "changed: MeanIoU is no longer a mean over pictures"
PYTHON
