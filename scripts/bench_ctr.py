"""What does preparing and loading Avazu cost, beside pandas and a DataLoader? Rows a second and peak memory.

Writes a file of 5 million rows in Kaggle's format, and the same as gz, with about as many values in each field as the
real one has in so many rows. Preparation, each in a process of its own: ours (everything: ids checked, split, rare
values counted in the training rows, indices written); pandas with its default reader doing the same; pandas with its
pyarrow engine and categories, on as many rows as are asked for. Then an epoch of training batches from our loader
beside a DataLoader over rows. Wall time, and processor time beside it where the machine is shared.
Usage: python scripts/bench_ctr.py [--rows 5000000] [--keep FOLDER]
"""

import argparse
import gzip
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tmbench.config.machine import cpu_model
from tmbench.tasks.ctr.avazu import SETTINGS, Avazu
from tmbench.tasks.ctr.avazu.columns import COLUMNS, HEXADECIMAL
from tmbench.tasks.ctr.avazu.indexing import WIDTHS

REAL_ROWS = 40_428_967
# Values in the real file's field; those of the two that grow with the rows are in proportion.
REAL = {
    "C1": 7, "banner_pos": 7, "site_id": 4737, "site_domain": 7745, "site_category": 26, "app_id": 8552,
    "app_domain": 559, "app_category": 36, "device_id": 2_686_408, "device_ip": 6_729_486, "device_model": 8251,
    "device_type": 5, "device_conn_type": 4, "C14": 2626, "C15": 8, "C16": 9, "C17": 435, "C18": 4, "C19": 68,
    "C20": 172, "C21": 60,
}  # fmt: skip
LEAST = {"C1": 1001, "C14": 18_000, "C15": 320, "C16": 50, "C17": 1700, "C19": 35, "C20": 100_000, "C21": 13}
GROW = ("device_id", "device_ip")
PART = 250_000  # rows written at once
MIN_COUNT = 2
BATCH = 256


def write(path: Path, rows: int) -> None:
    """The file, and the same as gz beside it."""
    import pyarrow as pa
    from pyarrow import csv

    rng = np.random.default_rng(0)
    texts = {}
    for name, size in REAL.items():
        size = max(1000, size * rows // REAL_ROWS) if name in GROW else size
        if name in HEXADECIMAL:
            texts[name] = pa.array([f"{v:08x}" for v in rng.choice(2**32, size, replace=False).tolist()])
        else:
            texts[name] = pa.array(np.arange(size) + LEAST.get(name, 0))
    with path.open("wb") as f:
        for first in range(0, rows, PART):
            numbers = np.arange(first, min(first + PART, rows))
            days, hours = np.divmod(numbers * 240 // rows, 24)
            columns: dict[str, Any] = {
                "id": numbers.astype(np.uint64) * np.uint64(3 * 10**12) + np.uint64(10**18),
                "click": (rng.random(len(numbers)) < 0.17).astype(np.uint8),
                "hour": 14102100 + 100 * days + hours,
            }
            for name, own in texts.items():  # few are frequent, many rare
                shares = rng.random(len(numbers)) ** (1.5 if name in GROW else 4)
                columns[name] = own.take(pa.array((shares * len(own)).astype(np.int64)))
            options = csv.WriteOptions(include_header=not first, quoting_style="none", quoting_header="none")
            csv.write_csv(pa.table({name: columns[name] for name in COLUMNS}), f, options)
    with path.open("rb") as f, gzip.open(path.with_suffix(".csv.gz"), "wb", compresslevel=1) as packed:
        shutil.copyfileobj(f, packed, 2**20)


def ours(path: Path, out: Path) -> int:
    """The whole preparation: both stages, with every check."""
    root = out / "avazu"
    root.mkdir(parents=True)
    (root / ("train.csv.gz" if path.suffix == ".gz" else "train.csv")).symlink_to(path)
    data = Avazu(root)
    digests = {path.name: "none"}  # a run has them anyway
    folder = data.prepared(out, digests, **(SETTINGS | {"min_count": MIN_COUNT}))
    return sum(json.loads((folder / "fields.json").read_text())["rows"].values())


def with_pandas(path: Path, out: Path, categories: bool = False) -> int:
    """The same by pandas: split, values of at least two training rows counted, indices saved by width."""
    import pandas as pd

    if categories:
        kinds = {name: "category" for name in COLUMNS if name not in ("id", "click", "hour")}
        frame = pd.read_csv(path, engine="pyarrow", dtype={**kinds, "id": "uint64"})
    else:
        frame = pd.read_csv(path, dtype={"id": "uint64"})
    if frame["id"].duplicated().any():
        raise ValueError("an id is there twice")
    times = pd.to_datetime(frame["hour"].astype(str), format="%y%m%d%H")
    frame = frame.assign(hour=times.dt.hour, weekday=times.dt.weekday, weekend=times.dt.weekday >= 5)
    rng = np.random.default_rng(0)
    split = np.zeros(len(frame), np.uint8)
    for click in (0, 1):
        own = rng.permutation(np.flatnonzero(frame["click"] == click))
        split[own[round(0.8 * len(own)) : round(0.9 * len(own))]] = 1
        split[own[round(0.9 * len(own)) :]] = 2
    out.mkdir(parents=True)
    groups: dict[np.dtype[Any], list[np.ndarray]] = {dtype: [] for dtype in WIDTHS}
    for name in frame.columns:
        if name in ("id", "click"):
            continue
        counts = frame.loc[split == 0, name].value_counts()
        kept = counts.index[counts >= MIN_COUNT].sort_values()
        indices = pd.Index(kept).get_indexer(frame[name]) + 1
        dtype = next(dtype for dtype, most in WIDTHS.items() if len(kept) + 1 <= most)
        groups[dtype].append(indices.astype(dtype))
    for number in range(3):
        for dtype, own in groups.items():
            if own:
                np.save(out / f"{number}_{dtype}.npy", np.stack([values[split == number] for values in own], 1))
        np.save(out / f"{number}_click.npy", frame["click"].to_numpy(np.uint8)[split == number])
    return len(frame)


def pandas_categories(path: Path, out: Path) -> int:
    return with_pandas(path, out, categories=True)


def load_ours(folder: Path, out: Path) -> int:
    import torch
    from torch.utils.data import TensorDataset

    from tmbench.training.loader import TrainLoader

    torch.set_num_threads(1)
    loader = TrainLoader(TensorDataset(*tensors(folder)), None, BATCH, device=torch.device("cpu"), epoch=lambda: 0)
    return sum(len(batch[-1]) for block in loader for step in block for batch, _ in step)


def load_rows(folder: Path, out: Path) -> int:
    """torch's own way: a DataLoader over rows, one example at a time; of no more rows than take some seconds."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    examples = TensorDataset(*(t[:200_000] for t in tensors(folder)))
    return sum(len(batch[-1]) for batch in DataLoader(examples, BATCH, shuffle=True))


def tensors(folder: Path) -> list[Any]:
    import torch

    names = [f"train_{kind}" for kind in (*WIDTHS, "click")]
    paths = [folder / f"{name}.npy" for name in names]
    return [torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths if path.is_file()]


MODULES = {  # imported before the clock starts
    "ours": ["pyarrow.csv"], "with_pandas": ["pandas"], "pandas_categories": ["pandas", "pyarrow.csv"],
    "load_ours": ["torch", "tmbench.training.loader"], "load_rows": ["torch"],
}  # fmt: skip


def measured(do: Callable[[Path, Path], int], path: Path, out: Path, answers: Any) -> None:
    for module in MODULES[do.__name__]:
        importlib.import_module(module)
    started, busy = time.perf_counter(), time.process_time()
    rows = do(path, out)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    answers.put((rows, seconds, busy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def measure(name: str, do: Callable[[Path, Path], int], path: Path, scratch: Path) -> dict[str, float]:
    """In a process of its own, so that its peak memory is its own; what it writes is removed."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    out = scratch / "out"
    process = context.Process(target=measured, args=(do, path, out, answers))
    process.start()
    while process.is_alive() and answers.empty():
        time.sleep(0.1)
    got = None if answers.empty() else answers.get()
    process.join()
    if got is None:
        print(f"{name:<34} ended without a result (exit code {process.exitcode})", flush=True)
        return {}
    rows, seconds, busy, peak = got
    print(f"{name:<34} {rows:>9,} rows {seconds:>7.1f} s {rows / seconds:>12,.0f} rows/s   processor {busy:>6.1f} s "
          f"{rows / busy:>12,.0f} rows/s   peak {peak / 2**30:.2f} GiB", flush=True)  # fmt: skip
    if do is not ours:
        shutil.rmtree(out, ignore_errors=True)
    return {"wall": rows / seconds, "busy": rows / busy}


def compare(title: str, ours: dict[str, float], other: dict[str, float]) -> None:
    if ours and other:
        by_clock, by_processor = (ours[kind] / other[kind] for kind in ("wall", "busy"))
        print(f"  {title}: {by_clock:.1f}x by the clock, {by_processor:.1f}x by processor time", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--keep", type=Path, help="a folder for the generated files, used again if they are there")
    options = parser.parse_args()
    tools = ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "pandas", "torch"))
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{cpu_model()}, {cores} processors, {tools}; others busy: load {load:.1f}")
    with tempfile.TemporaryDirectory(dir=options.keep) as folder:
        scratch = Path(folder)
        plain = (options.keep or scratch).resolve() / f"train-{options.rows}.csv"
        packed = plain.with_suffix(".csv.gz")
        if not packed.is_file():
            write(plain, options.rows)
        print(f"{options.rows:,} rows, {plain.stat().st_size / 1e6:,.0f} MB, gz {packed.stat().st_size / 1e6:,.0f} MB")
        for kind, path in (("plain", plain), ("gz", packed)):
            mine = measure(f"prepare, ours, {kind}", ours, path, scratch)
            if kind == "plain":
                kept = next(p for p in (scratch / "out" / ".prepared").glob("avazu-*") if (p / "fields.json").is_file())
                size = sum(p.stat().st_size for p in kept.glob("*.npy"))
                print(f"  prepared: {size / options.rows:.0f} bytes a row", flush=True)
                kept = kept.rename(scratch / "kept")
            shutil.rmtree(scratch / "out", ignore_errors=True)
            theirs = measure(f"prepare, pandas default, {kind}", with_pandas, path, scratch)
            compare("ours / pandas default", mine, theirs)
            if kind == "plain":
                theirs = measure("prepare, pandas pyarrow+categories", pandas_categories, path, scratch)
                compare("ours / pandas pyarrow+categories", mine, theirs)
        mine = measure(f"load, ours, batch {BATCH}", load_ours, kept, scratch)
        theirs = measure(f"load, DataLoader, batch {BATCH}", load_rows, kept, scratch)
        compare("ours / DataLoader", mine, theirs)


if __name__ == "__main__":
    main()
