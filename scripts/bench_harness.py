"""How much slower is an epoch of tc through the runner than in a bare PyTorch loop with a DataLoader?

Same model, data, optimizer, batch size and number of steps, taking turns in one process, so that the ratio holds
on a noisy machine. With --sparse both step the rows that a batch reads, else both the whole embedding.
Usage: python scripts/bench_harness.py [--data-dir DIR] [--rounds 5] [--sparse]; without DIR, generated documents of
R8's size.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from tmbench.config.compose import composed
from tmbench.config.settle import settled
from tmbench.optim import LazyRows
from tmbench.run import run
from tmbench.tasks.tc.r8 import LABELS, R8
from tmbench.tasks.tc.task import TC

EPOCHS = 2  # through the runner in a round; the first warms up and is left out


def write_documents(folder: Path) -> None:
    """Random documents in R8's format, of its size: 5,485 and 2,189 of about 100 words out of 23,000."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, count in (("train", 5485), ("test", 2189)):
        ranks = rng.zipf(1.3, (count, 100)) % 23_000
        lines = (f"{LABELS[i % 8]}\t{' '.join(f'w{r}' for r in row)}" for i, row in enumerate(ranks))
        (folder / f"{split}.txt").write_text("\n".join(lines))


def bare_epoch(task: TC, loader: DataLoader, optimizer: torch.optim.Optimizer) -> float:
    started = time.perf_counter()
    for tokens_BT, labels_B in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(task.model(tokens_BT), labels_B)
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="a folder with r8/train.txt and r8/test.txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparse", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = options.data_dir or Path(scratch)
        if not options.data_dir:
            write_documents(data_dir / "r8")
        words = ["task=tc", "optimizer=sgd", "data=full", f"data_dir={data_dir}", f"runs_dir={scratch}/runs"]
        words += [f"task.sparse={str(options.sparse).lower()}", f"epochs={EPOCHS}", "force=true"]
        cfg = OmegaConf.create(settled(composed(words)))
        task = TC(cfg.task, R8(data_dir / "r8"))
        loader = DataLoader(task.examples("train"), batch_size=cfg.batch_size, shuffle=True)
        optimizer = torch.optim.SGD(task.parameters(), lr=cfg.lr)
        if options.sparse:
            LazyRows(optimizer, task.model.embedding)
        bare_epoch(task, loader, optimizer)
        ratios, ours, bares = [], [], []
        for _ in range(options.rounds):
            _, folder, _ = run(cfg)
            rows = (folder / "curves.csv").read_text().splitlines()[1:]
            seconds = [float(row.split(",")[3]) for row in rows]
            ours.append(seconds[-1] - seconds[-2])
            bares.append(bare_epoch(task, loader, optimizer))
            ratios.append(ours[-1] / bares[-1])
    steps = len(loader)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {steps} steps an epoch, n={options.rounds}")
    for name, values in (("runner, s", ours), ("bare, s", bares), ("ratio", ratios)):
        print(f"{name:>10}: median {statistics.median(values):.3f}, min {min(values):.3f}, max {max(values):.3f}")


if __name__ == "__main__":
    main()
