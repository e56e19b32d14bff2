"""How long a step takes beside torch's own and a copy of memory, and whether training waits for its loader."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device
from omegaconf import OmegaConf
from torch import Tensor, nn

from ..config.compose import composed
from ..optim import TMSGD
from ..plan import Plan, planned
from ..task import mean
from ..training.build import task_of
from ..training.loader import TrainLoader
from . import Finding

# Words that each path has to move a parameter, and what moves them. TM-SGD reads the weight, gradient and two
# differences, and writes the weight and one difference; SGD with momentum reads 3 and writes 2.
PATHS: dict[str, tuple[int, Callable[..., torch.optim.Optimizer]]] = {
    "sgdm foreach": (5, lambda params: torch.optim.SGD(params, lr=1e-6, momentum=0.9, foreach=True)),
    "sgdm fused": (5, lambda params: torch.optim.SGD(params, lr=1e-6, momentum=0.9, fused=True)),
    "tmsgd for-loop": (6, lambda params: TMSGD(params, lr=1e-6, foreach=False)),
    "tmsgd foreach": (6, lambda params: TMSGD(params, lr=1e-6, foreach=True)),
    "tmsgd fused": (6, lambda params: TMSGD(params, lr=1e-6, fused=True)),
}
WORD = 4  # bytes of a float32
OF_COPY, OF_FUSED = 0.8, 1.25  # what a GPU should reach: of the bandwidth; times torch's fused step
OF_SYNTHETIC = {"cuda": 0.95, "cpu": 0.5}  # the part of an epoch that is not spent waiting for the loader
ROUNDS = {"cuda": 30, "cpu": 10}


def seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def copy_bandwidth(device: str, count: int = 100_000_000) -> float:
    """Bytes read and written a second by the fastest of several copies of so many float32."""
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(7))


def timed(shapes: Sequence[tuple[int, ...]], device: str, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of each path's steps, which take turns in each round, and how many parameters they step.

    Raises:
        RuntimeError: a path left a tensor as it was, so its time is worth nothing.
    """
    steps: dict[str, Callable[[], object]] = {}
    tensors: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for path, (_, new_optimizer) in PATHS.items():
        params: list[Tensor] = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        steps[path] = new_optimizer(params).step
        for _ in range(3):  # untimed: buffers, compilation
            steps[path]()
        tensors[path] = [(p, p.detach().flatten()[:4096].clone()) for p in params]
    taken: dict[str, list[float]] = {path: [] for path in PATHS}
    for _ in range(rounds):
        for path, step in steps.items():
            taken[path].append(seconds(step, device))
    for path, pairs in tensors.items():
        if any(torch.equal(p.detach().flatten()[:4096], before) for p, before in pairs):
            raise RuntimeError(f"{path}: a tensor did not move in {rounds} steps, so its time says nothing")
    return taken, sum(p.numel() for p, _ in tensors["sgdm fused"])


def step(device: str) -> Iterator[Finding]:
    """A step of TM-SGD beside the copy bandwidth and torch's fused SGD with momentum."""
    width = 4096 if device == "cuda" else 1536
    shapes = [(width, width)] * 3 + [(width, 64)] * 8 + [(width,)] * 12
    taken, count = timed(shapes, device, ROUNDS[device])
    bandwidth = copy_bandwidth(device, 2 * count)  # as large as the step's four tensors a parameter
    fastest = {path: min(times) for path, times in taken.items()}
    share = PATHS["tmsgd fused"][0] * WORD * count / fastest["tmsgd fused"] / bandwidth
    ratio = statistics.median(a / b for a, b in zip(taken["tmsgd fused"], taken["sgdm fused"], strict=True))
    times = ", ".join(f"{path} {1e3 * least:.2f} ms" for path, least in fastest.items())
    found = (
        f"{count:,} parameters: {times}; tmsgd fused moves 24 bytes a parameter at {share:.2f} of the copy bandwidth "
        f"({bandwidth / 1e9:.1f} GB/s), and takes {ratio:.2f} times sgdm fused; every tensor moved"
    )
    if device == "cuda" and (share < OF_COPY or ratio > OF_FUSED):
        remedy = f"expected at least {OF_COPY} of the bandwidth and at most {OF_FUSED} times; do others use the GPU?"
        yield Finding("time", "yellow", found, remedy)
    else:
        yield Finding("time", "green", found)


def loader(folder: Path, device: str) -> Iterator[Finding]:
    """An epoch with its loader against the same steps on batches that are there already: pictures in memory, files."""
    for name in ("ic", "seg"):
        words = [f"task={name}", "data=tiny", f"trainer={'gpu' if device == 'cuda' else 'cpu'}", f"runs_dir={folder}"]
        yield _loads(name, planned(OmegaConf.create(composed(words))), device)


def _loads(name: str, plan: Plan, device: str) -> Finding:
    task = task_of([plan]).to(device)
    settings: dict[str, Any] = {"device": torch.device(device), "epoch": lambda: 0}
    settings["num_workers"] = plan.cfg.trainer.num_workers
    loader = TrainLoader(task.examples("train"), task.collate, plan.cfg.batch_size, **settings)
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3)

    def batches() -> Iterator[Any]:
        for block in loader:
            for ((batch, _),) in block:
                yield move_data_to_device(batch, torch.device(device))

    def train(source: Iterable[Any]) -> None:
        for batch in source:
            optimizer.zero_grad()
            mean(*task.loss(batch)).backward()
            optimizer.step()

    kept = list(batches())
    pairs = [(seconds(lambda: train(kept), device), seconds(lambda: train(batches()), device)) for _ in range(6)]
    synthetic, real = (min(times) for times in zip(*pairs[1:], strict=True))  # the first warms up
    share = min(synthetic / real, 1)
    found = f"{loader.count / real:,.0f} examples/s, {share:.2f} of those on batches that are in memory already"
    if share >= OF_SYNTHETIC[device]:
        return Finding(name, "green", found)
    return Finding(name, "yellow", found, "trainer.num_workers=4 prepares pictures in other processes")
