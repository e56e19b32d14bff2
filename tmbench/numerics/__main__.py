"""`python -m tmbench.numerics`: measures what theory says of the Taylor methods; figures, tables and one JSON."""

import argparse
import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import ConfigError

EXPERIMENTS = {
    "order": "global error against step size, and where a stiff system blows up",
    "regions": "stability regions in the complex plane, and the limit under momentum",
    "noise": "what gradient noise makes of the weights",
    "start": "the first steps, and the steps after a switch, with and without a history",
    "limit": "lr * curvature just under and over the limit, on a quadratic",
    "edge": "the top Hessian eigenvalue of small networks beside 1/lr and 2/lr",
}
FILE = "numerics.json"


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tmbench.numerics", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures what theory says of the Taylor methods: prints tables, writes a figure for each "
        f"experiment\nand {FILE} with every number. All of them take about a minute.",
        epilog="\n".join(["experiments:", *(f"  {name:<8}  {about}" for name, about in EXPERIMENTS.items())]),
    )  # fmt: skip
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="which ones (all)")
    parser.add_argument("--out", type=Path, default=Path("numerics"), metavar="DIR", help="default: ./numerics")
    asked = parser.parse_args(arguments)
    try:
        names = chosen(asked.experiments)
        folder(asked.out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n\n".join(run(names, asked.out)))
    return 0


def chosen(words: list[str]) -> list[str]:
    """The experiments asked for, in the order of the page.

    Raises:
        ConfigError: there is no such experiment.
    """
    for word in words:
        if word not in EXPERIMENTS:
            raise ConfigError(f"{word}: expected experiments among {', '.join(EXPERIMENTS)}")
    return [name for name in EXPERIMENTS if name in words or not words]


def folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: expected a folder that can be made, got {out} ({error.strerror})") from None


def run(names: list[str], out: Path) -> list[str]:
    """Does the experiments, writes their figures and the JSON; returns what to print."""
    import torch

    from ..config.machine import cpu_model
    from ..figures import save
    from ..files import write
    from ..result import versions

    numbers: dict[str, Any] = {}
    seconds, threads, worked = {}, torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)  # tensors this small only wait for more; and no number depends on how many there are
    try:
        for name in names:
            print(f"{name}: {EXPERIMENTS[name]}", file=sys.stderr)
            started = time.perf_counter()
            experiment = importlib.import_module(f"{__package__}.{name}")
            numbers[name] = rounded(experiment.measure())
            save(experiment.draw(numbers[name]), out / f"{name}.png")
            seconds[name] = round(time.perf_counter() - started, 1)
    finally:
        torch.set_num_threads(threads)
    cpu = round(time.process_time() - worked, 1)
    made = {"seconds": seconds, "cpu_seconds": cpu, "versions": versions(), "hardware": f"{cpu_model()}, one thread"}
    lines = [f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in {"made": made, **numbers}.items()]
    write(out / FILE, "{\n" + ",\n".join(lines) + "\n}\n")
    took = f"{sum(seconds.values()):.0f} s, {cpu:.0f} s of them at work"
    return [*tables(numbers), f"{took}; figures and {FILE} are in {out}"]


def tables(numbers: dict[str, Any]) -> list[str]:
    """The tables of the page, in Markdown, from what the JSON holds."""
    return [
        importlib.import_module(f"{__package__}.{name}").table(numbers[name]) for name in EXPERIMENTS if name in numbers
    ]


def rounded(x: Any) -> Any:
    """Numbers to six digits; what is not finite, which JSON cannot say, to None."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [rounded(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x


if __name__ == "__main__":
    sys.exit(main())
