"""What a step of an embedding table costs by the number of its rows, beside the dense step; all in one run.

    python scripts/bench_rows.py [most=10000000] [out=docs/rows]

A batch looks up 256 x 22 rows of 16 numbers, by Zipf's law (exponent 1.1) or uniformly. A step is all of reading the
rows, a loss, its gradient and the optimizer's step, without a network. Tables of up to `most` rows; the dense steps, of
torch's foreach and fused SGD and of TMSGD, on up to a million, since they pass over the whole table. Writes
rows.json and rows.png.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmbench.config.machine import cpu_model
from tmbench.config.values import Setting
from tmbench.optim import TMSGD, LazyRows
from tmbench.verbs import Values, Verb

NUMBERS, LOOKUPS, WARM, DENSE_UP_TO = 16, 256 * 22, 30, 10**6
METHODS: dict[str, Callable[..., Any]] = {
    "sgd, l2": lambda params, **path: torch.optim.SGD(params, 0.01, weight_decay=1e-5, **path),
    "sgdm": lambda params, **path: torch.optim.SGD(params, 0.01, 0.9, **path),
    "tmsgd": lambda params, **path: TMSGD(params, 0.01, **path),
    "tmsgdm": lambda params, **path: TMSGD(params, 0.01, 0.9, **path),
}


def batches(ids: str, rows: int, count: int) -> list[Tensor]:
    """Rows (LOOKUPS,), scattered over the table."""
    random = torch.Generator().manual_seed(0)
    if ids == "uniform":
        return [torch.randint(rows, (LOOKUPS,), generator=random) for _ in range(count)]
    # The inverse of the continuous law's distribution: rank = (1 - u (1 - rows^-0.1))^-10.
    u = torch.rand(count, LOOKUPS, generator=random, dtype=torch.float64)
    ranks = (1 - u * (1 - rows**-0.1)).pow(-10).long().clamp(1, rows) - 1
    return [*(ranks * 7_368_787 % rows)]


def milliseconds(method: str, path: str, ids: str, rows: int) -> float:
    """The median of a step."""
    lazy = path == "rows"
    count = 60 if lazy else 10 if rows > 10**5 else 30
    table = nn.Embedding(rows, NUMBERS, sparse=lazy)
    optimizer = METHODS[method](table.parameters(), **({} if lazy else {path: True}))
    if lazy:
        LazyRows(optimizer, table)
    warm = WARM if lazy else 3
    times = []
    for read in batches(ids, rows, warm + count):
        started = time.perf_counter()
        optimizer.zero_grad()
        (table(read) - 1).square().sum().backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[warm:])


def bench(values: Values, _: list[str]) -> int:
    torch.set_num_threads(1)
    sizes = [size for size in (10**4, 10**5, 10**6, 10**7) if size <= values["most"]]
    found: list[dict[str, Any]] = []
    for method in METHODS:
        for path, kinds in {"rows": ("zipf", "uniform"), "foreach": ("zipf",), "fused": ("zipf",)}.items():
            for ids in kinds:
                sized = [size for size in sizes if path == "rows" or size <= DENSE_UP_TO]
                times = {size: milliseconds(method, path, ids, size) for size in sized}
                found.append({"method": method, "path": path, "ids": ids, "milliseconds": times})
                print(f"{method:9} {path:8} {ids:8}", *(f"{ms:9.2f} ms" for ms in times.values()), flush=True)
    out = Path(values["out"])
    out.mkdir(parents=True, exist_ok=True)
    facts = {"torch": torch.__version__, "processor": cpu_model(), "threads": 1, "numbers": NUMBERS, "lookups": LOOKUPS}
    (out / "rows.json").write_text(json.dumps({**facts, "steps": found}, indent=1) + "\n")
    draw(found, out / "rows.png")
    return 0


def draw(found: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(METHODS), figsize=(12, 3.6), sharey=True, layout="constrained")
    styles = {
        ("rows", "zipf"): "C0o-",
        ("rows", "uniform"): "C0s--",
        ("foreach", "zipf"): "C1o-",
        ("fused", "zipf"): "C2o-",
    }
    labels = {"rows": "rows read", "foreach": "whole table, foreach", "fused": "whole table, fused"}
    for ax, method in zip(axes, METHODS, strict=True):
        for series in (one for one in found if one["method"] == method):
            sizes, times = [*series["milliseconds"]], [*series["milliseconds"].values()]
            label = labels[series["path"]] + (f", {series['ids']}" if series["path"] == "rows" else "")
            ax.plot(sizes, times, styles[series["path"], series["ids"]], markersize=4, label=label)
        ax.set(title=method, xlabel="rows of the table", xscale="log", yscale="log")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds a step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=110)


main = Verb(
    "bench_rows", "Says what a step of an embedding table costs by the number of its rows.", bench,
    {
        "most": Setting("a whole number >= 10000", "rows of the largest table", 10**7),
        "out": Setting("a folder", "where rows.json and rows.png go", "docs/rows"),
    },
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
