"""What several test files use."""

import csv
import itertools
import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import chdir, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Compose
from forked import Forked
from hydra.utils import get_class
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from tmbench import checkpoint
from tmbench.__main__ import main
from tmbench.config.settle import settle
from tmbench.data import open_dataset
from tmbench.result import Result, examples_of
from tmbench.seeds import seed_all
from tmbench.task import Task
from tmbench.training.loader import TrainLoader


def draw_nothing(figure: Figure, file: Any, **settings: Any) -> None:
    """In place of Figure.savefig, which takes half of the time of so small runs; a figure of one pixel for loggers."""
    if isinstance(file, Path) and file.suffix == ".png":
        Image.new("L", (1, 1)).save(file)


def tmbench(*words: str, cwd: Path | str = ".") -> subprocess.CompletedProcess[str]:
    """What `tmbench WORDS` does, but in this process, which has torch already; only reports and judgements draw."""
    out, err, status = StringIO(), StringIO(), None
    with (
        redirect_stdout(out), redirect_stderr(err), chdir(cwd), mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", ["tmbench", *words]), mock.patch.object(sys, "path", [*sys.path]),
        nullcontext() if words[0] in ("report", "judge") else mock.patch.object(Figure, "savefig", draw_nothing),
    ):  # fmt: skip
        try:
            main()
        except SystemExit as leaving:
            status = leaving.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def pairwise(**choices: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test by a few cases among which any two values of two parameters occur together."""
    values = [list(each) for each in choices.values()]
    cases = list(itertools.product(*(range(len(each)) for each in values)))
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    left, chosen = set().union(*pairs.values()), []
    while left:
        chosen.append(max(cases, key=lambda case: len(pairs[case] & left)))
        left -= pairs[chosen[-1]]
    picked = [tuple(each[i] for each, i in zip(values, case, strict=True)) for case in chosen]
    return pytest.mark.parametrize(tuple(choices), picked)


def assert_mean_of_examples(result: Result, folder: Path, key: str, higher_is_better: bool) -> list[float]:
    """Asserts that a run has kept a score of each test example, and that the metric is their mean; returns them."""
    kept = examples_of(folder)
    assert kept is not None
    assert (kept.key, kept.higher_is_better) == (key, higher_is_better)
    assert math.fsum(kept.scores) / len(kept.scores) == pytest.approx(result.metrics["last"][key], rel=1e-5)
    return list(kept.scores)


def count(model: nn.Module) -> int:
    """How many numbers a model's parameters are."""
    return sum(p.numel() for p in model.parameters())


# Runs

SHORT = {"tc": ["epochs=4", "batch_size=8"], "seg": ["epochs=3", "batch_size=8", "task.short_side=32"],
         "ic": ["epochs=3", "batch_size=100", "task.width=1"],
         "fkpd": ["epochs=3", "batch_size=50", "task.width=1"],
         "ig": ["epochs=3", "batch_size=64", "task.width=1", "task.samples=8"],
         "od": ["epochs=3", "batch_size=8", "task.size=64", "task.width=0.05"],
         "ctr": ["epochs=3", "batch_size=256"]}  # fmt: skip


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "checkpoints" / name)["state_dict"]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def curves(folder: Path) -> list[dict[str, str]]:
    """The rows of curves.csv, without the one column that may differ."""
    with (folder / "curves.csv").open() as f:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


def start(folder: Path, *overrides: str) -> Forked:
    """A run in a process of its own."""
    return Forked(*overrides, f"runs_dir={folder}")


def wait_for_epochs(folder: Path, count: int) -> Path:
    """The run's folder, as soon as so many epochs are on disk."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in folder.glob("*/curves.csv"):
            if len(path.read_text().splitlines()) > count:
                return path.parent
        time.sleep(0.01)
    raise AssertionError(f"no {count} epochs within two minutes")


def results(folder: Path) -> dict[str, tuple[Result, Path]]:
    """The results in a runs_dir by run id."""
    found = {path.parent.name: (Result.load(path.parent), path.parent) for path in folder.glob("*/result.json")}
    return {name: (result, path) for name, (result, path) in found.items() if result is not None}


def trained(runs: dict[str, tuple[Result, Path]]) -> int:
    return sum(r.epochs["trained"] - r.epochs["from_trunk"] for r, _ in runs.values())


# Tasks


def build(composed: Compose, name: str, *overrides: str) -> tuple[Task, Any]:
    """A task of tiny data with the same beginning each time, and its settled configuration."""
    cfg = settle(composed(f"task={name}", *overrides))
    data, _, _ = open_dataset(cfg, get_class(cfg.task.data))
    seed_all("weights", 0)
    return get_class(cfg.task._target_)(cfg.task, data), cfg


def first_batch(task: Task, batch_size: int) -> Any:
    examples = task.examples("train")
    loader = TrainLoader(examples, task.collate, batch_size, device=torch.device("cpu"), epoch=lambda: 0)
    return next(iter(loader))[0][0][0]


# Weights & Biases


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file, by W&B's own message class.

    W&B 0.31 has dropped its Python reader of these files, so the framing, LevelDB's log format in blocks of
    32 KiB after a head of 7 bytes, is undone here.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, record = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            break
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            record = b""
            yield message


def items(listed: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in listed}


def read_back(folder: Path) -> dict[str, Any]:
    """What the newest offline file of a run tells: about, config, history, summary, files."""
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "files": []}
    file = max(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    deadline = time.monotonic() + 20
    # W&B's service may still be writing when finish() is back.
    while not any(record.WhichOneof("record_type") == "exit" for record in records(file)):
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.1)
    for record in records(file):
        match record.WhichOneof("record_type"):
            case "run":
                found["about"] = record.run
                found["config"] |= items(record.run.config.update)
            case "history":
                found["history"].append(items(record.history.item))
            case "summary":
                found["summary"] |= items(record.summary.update)
            case "files":
                found["files"] += [file.path for file in record.files.files]
    return found


# Pages

UNREADABLE = """() => {
    const channel = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const numbers = colour => { const n = colour.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
    const behind = element => {
        const layers = [];
        for (let e = element; e; e = e.parentElement) layers.push(numbers(getComputedStyle(e).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const found = [];
    if (document.documentElement.scrollWidth > innerWidth) found.push(`the page is wider than ${innerWidth} px`);
    for (const image of document.images) if (!image.alt) found.push(`no alt text: ${image.src}`);
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement, style = getComputedStyle(element);
        const seen = element.checkVisibility({opacityProperty: true, visibilityProperty: true});
        if (!walker.currentNode.data.trim() || !seen || element.closest("svg, script, style, noscript")) continue;
        const below = behind(element), text = over(numbers(style.color), below);
        const [light, dark] = [luminance(text), luminance(below)].sort((a, b) => b - a);
        const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.6 && style.fontWeight >= 700);
        const contrast = (light + 0.05) / (dark + 0.05);
        if (contrast < (large ? 3 : 4.5))
            found.push(`contrast ${contrast.toFixed(1)}: ${walker.currentNode.data.trim().slice(0, 40)}`);
    }
    return [...new Set(found)];
}"""


def unreadable(page: Any) -> list[str]:
    """What a person may not be able to read on an open page: too wide, no alt text, contrast below WCAG's AA."""
    return page.evaluate(UNREADABLE)
