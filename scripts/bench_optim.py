"""What a step costs, beside torch's SGD with momentum: milliseconds, bytes moved a second, ratios; all in one run.

    python scripts/bench_optim.py [--device cuda] [--rounds 30]

TM-SGD has to move 6 words a parameter (read the weight, gradient and two differences; write the weight and one
difference), SGD with momentum 5. "GB/s" counts those, whatever a path really moves, so it is comparable with the copy
bandwidth, measured here with one copy of the largest model's size. The paths take turns in each round; a ratio is the
median of the rounds' ratios, with the fastest quarter's in brackets, which other work on the machine disturbs less.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torchvision.models import resnet18
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from tmbench.doctor.speed import PATHS, copy_bandwidth, timed

MODELS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "ResNet18": lambda: [tuple(p.shape) for p in resnet18().parameters()],
    "LRASPP": lambda: [tuple(p.shape) for p in lraspp_mobilenet_v3_large(weights_backbone=None).parameters()],
    "100M": lambda: [(4096, 4096)] * 5 + [(4096, 1024)] * 4 + [(4096,)] * 9,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    bandwidth = copy_bandwidth(options.device)
    print(f"torch {torch.__version__}, {options.device} ({name}), copies at {bandwidth / 1e9:.1f} GB/s")
    print(f"{'model':10}{'path':16}{'ms':>9}{'GB/s':>8}{'of copy':>9}   to sgdm foreach   to sgdm fused")
    for model in options.models:
        bench(model, options.device, options.rounds, bandwidth)


def bench(model: str, device: str, rounds: int, bandwidth: float) -> None:
    taken, words = timed(MODELS[model](), device, rounds)

    def ratio(path: str, to: str) -> str:
        typical = statistics.median(a / b for a, b in zip(taken[path], taken[to], strict=True))
        return f"{typical:.2f} ({quick(taken[path]) / quick(taken[to]):.2f})"

    for path, (moved, _) in PATHS.items():
        median = statistics.median(taken[path])
        speed = moved * 4 * words / median
        print(f"{model:10}{path:16}{median * 1e3:9.2f}{speed / 1e9:8.1f}{speed / bandwidth:9.2f}"
              f"{ratio(path, 'sgdm foreach'):>18}{ratio(path, 'sgdm fused'):>16}")  # fmt: skip


def quick(times: list[float]) -> float:
    """The mean of the fastest quarter."""
    return statistics.mean(sorted(times)[: max(1, len(times) // 4)])


if __name__ == "__main__":
    main()
