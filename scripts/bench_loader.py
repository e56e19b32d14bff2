"""How many training examples a second does each task's loader give, and how many torch's DataLoader with 2 workers?

ic: batches as the network reads them, against torchvision's CIFAR-10 and transforms over the same files. Generated
here in the original format: 50,000 training images. fkpd, ig: against a Dataset that opens and transforms each
picture with PIL and torchvision when it is asked for. tc: against a DataLoader over the same tensors. Both take turns;
ours has one thread of one process, the DataLoader two workers besides, which are started before the clock. What ours
reads once, before the first epoch, is told beside it.
Usage: python scripts/bench_loader.py [--rounds 3]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_harness import write_documents
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from tmbench.config.compose import composed
from tmbench.config.settle import settled
from tmbench.task import Task
from tmbench.tasks.fkpd.faces import Faces
from tmbench.tasks.fkpd.task import FKPD, FRAME
from tmbench.tasks.ic.cifar import CIFAR10, SHAPE, write_pickle
from tmbench.tasks.ic.task import IC, PAD
from tmbench.tasks.ig.sneakers import SIZE, Sneakers
from tmbench.tasks.ig.task import IG
from tmbench.tasks.tc.r8 import R8
from tmbench.tasks.tc.task import TC
from tmbench.training.loader import TrainLoader

WORKERS = 2


class Generated(datasets.CIFAR10):
    """torchvision's reader, of files that are not the published ones."""

    train_list = [[name, None] for name, _ in datasets.CIFAR10.train_list]
    test_list = [[name, None] for name, _ in datasets.CIFAR10.test_list]
    meta = datasets.CIFAR10.meta | {"md5": None}


def write_images(root: Path) -> None:
    """Random images in CIFAR-10's format, of its size: 5 x 10,000 and 10,000."""
    rng = np.random.default_rng(0)
    (root / CIFAR10.meta).parent.mkdir(parents=True)
    write_pickle(root / CIFAR10.meta, {b"label_names": [b"class%d" % i for i in range(10)]})
    for name in (*CIFAR10.batches["train"], *CIFAR10.batches["test"]):
        images = rng.integers(0, 256, (10_000, *SHAPE), dtype=np.uint8)
        CIFAR10.write_batch(root / name, images, rng.integers(0, 10, 10_000))


def read(task: Any, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A batch as the network reads it."""
    if isinstance(task, IC):
        return task.preprocess(batch[0], training=True), batch[1]
    if isinstance(task, FKPD):
        return batch[0][:, None].float().div_(255), task.target(batch[1])
    if isinstance(task, IG):
        return (batch[0] / 127.5 - 1,)
    return batch


def ours(task: Task, batch_size: int) -> Callable[[], Iterable[Any]]:
    """An epoch of batches, as the model reads them."""
    loader = TrainLoader(task.examples("train"), task.collate, batch_size, device=torch.device("cpu"), epoch=lambda: 0)
    return lambda: (read(task, batch) for block in loader for ((batch, _),) in block)


class Pictures(Dataset[Any]):
    """Pictures and numbers, as a person would load them from a folder."""

    def __init__(self, items: list[tuple[Path, torch.Tensor]], transform: Callable[[Any], torch.Tensor]) -> None:
        self.items, self.transform = items, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        path, numbers = self.items[i]
        with Image.open(path) as picture:
            return self.transform(picture.convert("RGB")), numbers


def speed(epoch: Callable[[], Iterable[Any]], count: int) -> float:
    """Examples a second over an epoch."""
    started = time.perf_counter()
    seen = sum(len(batch[0]) for batch in epoch())
    assert seen == count
    return count / (time.perf_counter() - started)


def compare(name: str, task: Task, batch_size: int, examples: Any, rounds: int) -> None:
    theirs = DataLoader(examples, batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    started = time.perf_counter()
    epochs = (ours(task, batch_size), lambda: theirs)
    once, count = time.perf_counter() - started, len(examples)
    for epoch in epochs:
        speed(epoch, count)
    pairs = [[speed(epoch, count) for epoch in epochs] for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
    spread = f"median {statistics.median(ratios):.1f}, min {min(ratios):.1f}, max {max(ratios):.1f}"
    print(f"{name:<12} batch {batch_size:>3}: {mine:>11,.0f} examples/s, DataLoader {other:>9,.0f}; ratio: {spread}; "
          f"{once:.1f} s once", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {WORKERS} workers, n={options.rounds}")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_images(root / CIFAR10.folder)
        write_documents(root / "r8")
        standard = [transforms.RandomCrop(32, PAD), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
                    transforms.Normalize(CIFAR10.mean, CIFAR10.std)]  # fmt: skip
        # torchvision's for the same preprocessing, from its documentation
        for preprocess, steps in (("paper", [transforms.ToTensor()]), ("standard", standard)):
            words = ["task=ic", "data=full", f"task.preprocess={preprocess}", "task.width=8"]
            cfg = OmegaConf.create(settled(composed(words)))
            examples = Generated(str(root / CIFAR10.folder), transform=transforms.Compose(steps))
            task = IC(cfg.task, CIFAR10(root / CIFAR10.folder))
            compare(f"ic {preprocess}", task, cfg.batch_size, examples, options.rounds)
        for cls in (Faces, Sneakers):
            (root / cls.folder).mkdir()
            cls.write_tiny(root / cls.folder, np.random.default_rng(0))
        cfg = OmegaConf.create(settled(composed(["task=fkpd", "data=full", "task.width=8"])))
        fkpd = FKPD(cfg.task, Faces(root / "faces"))
        grey = transforms.Compose([transforms.Grayscale(), transforms.Resize((FRAME, FRAME)), transforms.ToTensor()])
        items = [(path, torch.from_numpy(points)) for path, points in Faces(root / "faces").rows("train")]
        compare("fkpd", fkpd, cfg.batch_size, Pictures(items, grey), options.rounds)
        cfg = OmegaConf.create(settled(composed(["task=ig", "data=full", "task.width=8", "task.features=random"])))
        sneakers = Sneakers(root / "sneakers")
        signed = [transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
        items = [(path, torch.tensor(0)) for path in sneakers.files()]
        examples = Pictures(items, transforms.Compose(signed))
        compare("ig", IG(cfg.task, sneakers), cfg.batch_size, examples, options.rounds)
        cfg = OmegaConf.create(settled(composed(["task=tc", "data=full"])))
        tc = TC(cfg.task, R8(root / "r8"))
        compare("tc", tc, cfg.batch_size, tc.examples("train"), options.rounds)


if __name__ == "__main__":
    main()
