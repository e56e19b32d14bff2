"""The command line: `tmbench numerics` measures what theory says of the Taylor methods."""

import json
import math
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import folder_for
from ..progress import loading_torch
from ..verbs import JSON, Values, Verb, out_dir

EXPERIMENTS = {
    "order": "global error against step size, and where a stiff system blows up",
    "regions": "stability regions in the complex plane, and the limit under momentum",
    "noise": "what gradient noise does to the weights",
    "start": "the first steps, and the steps after a switch, with and without a history",
    "limit": "lr * curvature just under and over the limit, on a quadratic",
    "edge": "the top Hessian eigenvalue of small networks beside 1/lr and 2/lr",
}
FILE = "numerics.json"


def do(values: Values, words: list[str]) -> int:
    """Prints the tables of the experiments, and writes their figures and numbers.

    Raises:
        UsageError: there is no such experiment.
        ConfigError: the folder cannot be made.
    """
    for word in words:
        if word not in EXPERIMENTS:
            raise UsageError(f"{word}: expected experiments among {', '.join(EXPERIMENTS)}")
    out = folder_for("out", values["out"])
    lines = run([name for name in EXPERIMENTS if name in words or not words], out)
    print((out / FILE).read_text(encoding="utf-8") if values["json"] else "\n\n".join(lines))
    return 0


def run(names: list[str], out: Path) -> list[str]:
    """Does the experiments, writes their figures and the JSON; returns what to print."""
    loading_torch()
    import torch

    from ..config.machine import cpu_model
    from ..figures import save
    from ..files import write
    from ..result import versions

    numbers: dict[str, Any] = {}
    seconds, threads, cpu_start = {}, torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)  # more would only wait for tensors this small; and the numbers do not depend on it
    try:
        for name in names:
            print(f"{name}: {EXPERIMENTS[name]}", file=sys.stderr)
            started = time.perf_counter()
            experiment = import_module(f"{__package__}.{name}")
            numbers[name] = rounded(experiment.measure())
            save(experiment.draw(numbers[name]), out / f"{name}.png")
            seconds[name] = round(time.perf_counter() - started, 1)
    finally:
        torch.set_num_threads(threads)
    cpu = round(time.process_time() - cpu_start, 1)
    made = {"seconds": seconds, "cpu_seconds": cpu, "versions": versions(), "hardware": f"{cpu_model()}, one thread"}
    lines = [f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in {"made": made, **numbers}.items()]
    write(out / FILE, "{\n" + ",\n".join(lines) + "\n}\n")
    took = f"{sum(seconds.values()):.0f} s, of which the processor worked {cpu:.0f} s"
    return [*tables(numbers), f"{took}; figures and {FILE} are in {out}"]


def tables(numbers: dict[str, Any]) -> list[str]:
    """The tables of the page, in Markdown, from what the JSON holds."""
    return [import_module(f"{__package__}.{name}").table(numbers[name]) for name in EXPERIMENTS if name in numbers]


def rounded(x: Any) -> Any:
    """Numbers to six digits; None for one that is not finite, which JSON does not know."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [rounded(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x


main = Verb(
    "numerics",
    f"Measures what theory says of the Taylor methods: prints tables, writes a figure for each experiment and {FILE} "
    "with every number. All experiments take about a minute:\n\n"
    + "\n".join(f"  {name:<8}  {text}" for name, text in EXPERIMENTS.items()),
    do, {"out": out_dir("./numerics"), "json": JSON}, "[EXPERIMENT ...]",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
