#!/usr/bin/env python
"""Does a detector learn at all? Overfits it to a few real images of VOC 2007, and says how long that took.

    python scripts/overfit_od.py DATA_DIR --model rfbnet --steps 400

Prints the loss and the VOC-2007 mAP on those same images as it goes; ends at a mAP above --goal, or with an error.
Weights are random and the input is small, so that it takes minutes on a CPU; all else is what a run trains.

Fast R-CNN sees only what its proposals cover: on the first 8 images those leave out a chair and two persons, and a
perfect classifier of regions would reach a mAP of 0.92. --covered takes the first images of which every object that
counts overlaps a proposal by half.
"""

import argparse
import sys
import time
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from omegaconf import OmegaConf

from tmbench.config.compose import composed
from tmbench.config.settle import settled
from tmbench.seeds import seed_all
from tmbench.task import mean
from tmbench.tasks.od.boxes import VOCDetection
from tmbench.tasks.od.fast_rcnn import OBJECT
from tmbench.tasks.od.metric import overlaps
from tmbench.tasks.od.selective_search import search
from tmbench.tasks.od.task import OD
from tmbench.training.evaluation import Evaluation
from tmbench.training.loader import TestLoader, TrainLoader

IMAGES = 8


class Few(VOCDetection):
    """A few images to train with, also to test on: the first, or the first whose objects `limit` proposals cover."""

    limit: int | None = None

    @cache  # noqa: B019 - one data set, as long as the process
    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        pairs = iter(super().pairs("trainval"))
        return list(islice(pairs if self.limit is None else filter(self.covered, pairs), IMAGES))

    def covered(self, pair: tuple[Path, Path]) -> bool:
        _, objects = self.read(*pair)
        counted_N4 = torch.from_numpy(objects.boxes[~objects.difficult])
        proposals_P4 = torch.from_numpy(search(pair[0])[: self.limit].astype("float32"))
        return len(counted_N4) > 0 and bool((overlaps(counted_N4, proposals_P4).amax(1) >= OBJECT).all())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, help="with voc2007/VOCdevkit/VOC2007 in it")
    parser.add_argument("--model", default="rfbnet", choices=("rfbnet", "fast_rcnn"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--lr", type=float, default=1e-3, help="of Adam; a tenth in the last quarter")
    parser.add_argument("--covered", action="store_true", help="only images whose objects proposals cover")
    parser.add_argument("--goal", type=float, default=0.9)
    parser.add_argument("--runs-dir", default="runs", help="where proposals are kept")
    parser.add_argument("settings", nargs="*", help="more of the task's, such as task.size=192 task.width=0.5")
    options = parser.parse_intermixed_args()
    small = ["task.mode=paper_text", "task.weights=none", "task.size=192", "task.width=0.5", "task.batch_norm=true"]
    small += ["task.bn_momentum=0.1", "task.frozen=false", f"runs_dir={options.runs_dir}"]
    words = ["task=od", f"task.model={options.model}", "data=full", *small, *options.settings]
    cfg = OmegaConf.create(settled(composed(words)))
    seed_all("weights", 0)
    data = Few(options.data_dir / Few.folder)
    data.limit = cfg.task.proposals if options.covered else None
    data.opened = Path(options.runs_dir), data.digests()
    task = OD(cfg.task, data)
    evaluation = Evaluation(task)
    optimizer = torch.optim.Adam(task.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [options.steps * 3 // 4])
    cpu, epoch = torch.device("cpu"), 0
    count = min(IMAGES, cfg.batch_size)
    train = TrainLoader(task.examples("train"), task.collate, count, device=cpu, epoch=lambda: epoch)
    test = TestLoader(task.examples("test"), task.collate, cfg.task.eval_batch_size, device=cpu)
    parameters = sum(p.numel() for p in task.parameters())
    print(f"{options.model}: {parameters:,} parameters, {IMAGES} images, {torch.get_num_threads()} threads", flush=True)
    step, best, start = 0, 0.0, time.perf_counter()
    while step < options.steps:
        seed_all("epoch", epoch)
        for (((batch, _),),) in train:
            task.train()
            optimizer.zero_grad()
            loss = mean(*task.loss(batch))
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % options.every:
                continue
            task.eval()
            evaluation.start()
            with torch.no_grad():
                for some in test:
                    evaluation.update(some)
            value = evaluation.values()["test/map"]
            best = max(best, value)
            seconds = time.perf_counter() - start
            print(f"step {step:5}  {seconds:7.0f} s  loss {loss.item():8.4f}  map {value:.4f}", flush=True)
            if value > options.goal:
                print(f"{options.model}: mAP {value:.4f} on {IMAGES} images after {step} steps, {seconds:.0f} s")
                return 0
        epoch += 1
    print(f"{options.model}: mAP at best {best:.4f}, not above {options.goal}, in {options.steps} steps")
    return 1


if __name__ == "__main__":
    sys.exit(main())
