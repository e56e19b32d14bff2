"""The report's figures, as SVG: one style, colours that the colour-blind tell apart, dashes and markers for grey."""

import io
import re
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..result import FINAL
from . import statistics
from .numbers import Report, Standing, place
from .read import Method, Problem
from .words import file_name, scale

# Okabe and Ito 2008, without the yellow that white paper swallows and the black that dark paper does.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
MOST = 7  # curves in one picture
STYLE: Any = {
    "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.25,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.6, "lines.markersize": 4,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False,
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"], "text.parse_math": False,
}  # fmt: skip


def figures(report: Report) -> Iterator[tuple[str, str, str]]:
    """Name, a line for those who cannot see it, and SVG text of each figure."""
    with plt.rc_context(STYLE):
        for name, text, figure in _drawn(report):
            yield name, text, _svg(figure, name)


def _drawn(report: Report) -> Iterator[tuple[str, str, Figure]]:
    for problem in report.runs.problems:
        shown = _shown(report, problem)
        if shown and (figure := learning(report, problem, shown)) is not None:
            names = ", ".join(m.label for m in shown)
            yield _name("curves", problem), f"Learning curves on {problem.label}: {names}", figure
        if (figure := switches(report, problem)) is not None:
            yield _name("switch", problem), f"{problem.measure} against the switch epoch, {problem.label}", figure
    for standing in report.standings:
        ranked = sorted(zip(standing.mean, standing.names, strict=True))
        words = ", ".join(f"{name} {mean:.2f}" for mean, name in ranked[:12])
        yield file_name("ranks", standing.kind), f"Mean ranks on {standing.kind} data: {words}", ranks(standing)
    for kind in report.profiles:
        text = f"Performance profiles on {kind} data: the share of problems brought to their target"
        yield file_name("profiles", kind), text, profiles(report, kind)


def _name(kind: str, problem: Problem) -> str:
    return f"{kind}-{problem.index}-{problem.task}-{problem.profile}"


def _svg(figure: Figure, name: str) -> str:
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    # Without the XML head, and without names that would be there twice in a page of several figures.
    return re.sub(r'<g id="[\w.]+_\d+">', "<g>", text.getvalue()[text.getvalue().index("<svg") :])


def _text(label: str) -> str:
    """A label that fits, and that matplotlib does not hide."""
    label = label if len(label) < 60 else label[:57] + "..."
    return f" {label}" if label.startswith("_") else label


def _styles(methods: list[Method]) -> dict[str, dict[str, Any]]:
    """The looks of each method, the same in all figures of a report."""
    names = list(dict.fromkeys(m.name for m in sorted(methods, key=lambda m: place(m)[1:])))
    looks = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    return {
        n: {"color": c, "linestyle": d, "marker": m}
        for n, (c, d, m) in zip(names, islice(looks, len(names)), strict=True)
    }


def _axis(problem: Problem) -> str:
    return f"{problem.split} {problem.metric}" + (" (%)" if scale(problem) == 100 else "")


def _shown(report: Report, problem: Problem) -> list[Method]:
    """The methods that a picture has room for: the best setting of each optimizer, then the next best."""
    methods = {m.index: m for m in report.runs.methods if m.problem == problem.index}
    if len(methods) <= MOST:
        return sorted(methods.values(), key=place)
    rows = report.summary.filter((pl.col("problem") == problem.index) & pl.col("mean").is_not_null())
    ordered = sorted(rows.iter_rows(named=True), key=lambda row: -problem.sign * row["mean"])
    first = {row["optimizer"]: row["method"] for row in reversed(ordered)}
    chosen = list(first.values())[-MOST:]
    rest = (row["method"] for row in ordered if row["method"] not in chosen)
    return sorted((methods[i] for i in [*chosen, *islice(rest, MOST - len(chosen))]), key=place)


def learning(report: Report, problem: Problem, shown: list[Method]) -> Figure | None:
    """Metric and training loss against epochs, steps and seconds: the mean over seeds, with its standard deviation."""
    those = pl.col("counts") & pl.col("status").is_in(FINAL) & pl.col("method").is_in([m.index for m in shown])
    chosen = report.runs.runs.filter(those).select("run", "method")
    rows = report.runs.curves.join(chosen, on="run", maintain_order="left")
    if not len(rows):
        return None
    bands = (
        rows.group_by("method", "epoch", maintain_order=True)
        .agg(pl.col("step", "seconds").mean(), n=pl.len(), loss=pl.col("loss").mean(), loss_sd=pl.col("loss").std(),
             metric=pl.col("metric").mean(), metric_sd=pl.col("metric").std())
        # Where some runs end early (diverged), the mean time of the others would jump.
        .with_columns(pl.col("step", "seconds").cum_max().over("method", order_by="epoch"))
        .sort("method", "epoch")
    )  # fmt: skip
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained", sharex="col", sharey="row")
    looks, factor = _styles(report.runs.methods), scale(problem)
    for method in shown:
        of = bands.filter(pl.col("method") == method.index)
        for line, (key, times) in enumerate((("metric", factor), ("loss", 1.0))):
            own = of.filter(pl.col(key).is_not_null())
            mean, sd = own[key].to_numpy() * times, own[f"{key}_sd"].fill_null(0).to_numpy() * times
            for ax, x in zip(axes[line], ("epoch", "step", "seconds"), strict=True):
                at, look = own[x].to_numpy(), looks[method.name]
                every = max(1, len(at) // 8)
                ax.plot(at, mean, label=_text(method.label), markevery=every, **look)
                if np.any(sd > 0):
                    ax.fill_between(at, mean - sd, mean + sd, color=look["color"], alpha=0.15, linewidth=0)
    for method in shown:
        if method.switch:
            for ax in axes[:, 0]:
                ax.axvline(method.switch, color="#7F7F7F", linewidth=0.8, linestyle=":")
            axes[0, 0].annotate("switch", (method.switch, 1), xycoords=("data", "axes fraction"), ha="center",
                                va="bottom", fontsize="x-small", color="#7F7F7F")  # fmt: skip
    for ax, label in zip(axes[1], ("epochs", "steps", "seconds of training"), strict=True):
        ax.set_xlabel(label)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 1].xaxis.set_major_locator(MaxNLocator(4))
    axes[0, 0].set_ylabel(_axis(problem))
    axes[1, 0].set_ylabel("training loss")
    columns = max(1, min(len(shown), 110 // (8 + max(len(_text(m.label)) for m in shown))))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=columns)
    return figure


def switches(report: Report, problem: Problem) -> Figure | None:
    """Metric against the switch epoch, SGD's level as a band; None unless a method has several switches."""
    rows = {row["method"]: row for row in report.summary.iter_rows(named=True)}
    lines: dict[str, list[tuple[int, Method]]] = {}
    for method in report.runs.methods:
        if method.problem == problem.index and method.switch is not None and rows[method.index]["mean"] is not None:
            lines.setdefault(re.sub(r" ?switch_epoch=\S+", "", method.label), []).append((method.switch, method))
    lines = {name: sorted(own, key=lambda pair: pair[0]) for name, own in lines.items() if len({s for s, _ in own}) > 1}
    if not lines:
        return None
    figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
    factor = scale(problem)
    level = next((m for m in sorted(report.runs.methods, key=place)
                  if (m.problem, m.optimizer) == (problem.index, "sgd") and rows[m.index]["mean"] is not None),
                 None)  # fmt: skip
    if level:
        mean, sd = factor * rows[level.index]["mean"], factor * (rows[level.index]["sd"] or 0)
        ax.axhspan(mean - sd, mean + sd, color="#7F7F7F", alpha=0.2, linewidth=0)
        ax.axhline(mean, color="#7F7F7F", linewidth=1, label=_text(level.label))
    for (name, own), colour, marker, dash in zip(
        lines.items(), cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False
    ):
        means = [factor * rows[m.index]["mean"] for _, m in own]
        sds = [factor * (rows[m.index]["sd"] or 0) for _, m in own]
        ax.errorbar([s for s, _ in own], means, sds, color=colour, marker=marker, linestyle=dash, capsize=3,
                    label=_text(name))  # fmt: skip
    ax.set(xlabel="switch epoch", ylabel=_axis(problem))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="small")
    return figure


def ranks(standing: Standing) -> Figure:
    """Mean ranks (best at the left) with their span when a block is left out; bars join what is not told apart."""
    order = sorted(range(len(standing.names)), key=lambda i: standing.mean[i])
    cliques = _cliques([standing.mean[i] for i in order], standing.critical)
    figure, ax = plt.subplots(figsize=(6, 1.3 + 0.3 * len(order) + 0.15 * len(cliques)), layout="constrained")
    for y, i in enumerate(order):
        low, high = standing.span[i]
        ax.plot([low, high], [y, y], color=COLOURS[0], linewidth=2, alpha=0.5)
        ax.plot(standing.mean[i], y, marker="o", color=COLOURS[0])
    for j, (first, last) in enumerate(cliques):
        height = len(order) - 0.4 + 0.45 * j
        ends = [standing.mean[order[first]], standing.mean[order[last]]]
        ax.plot(ends, [height, height], color=COLOURS[1], linewidth=3, solid_capstyle="butt")
    ax.set_yticks(range(len(order)), [_text(standing.names[i]) for i in order])
    ax.set(xlim=(0.9, len(order) + 0.1), ylim=(len(order) - 0.3 + 0.45 * len(cliques), -0.6))
    ax.set_xlabel(
        f"mean rank over {len(standing.blocks)} {standing.unit}s; critical difference {standing.critical:.2f}"
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _cliques(means: list[float], critical: float) -> list[tuple[int, int]]:
    """The longest runs of sorted means that lie within the critical difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(means)):
        last = max(i for i in range(len(means)) if means[i] - means[first] <= critical)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def profiles(report: Report, kind: str) -> Figure:
    """The share of problems that each method brings to the target within so many times the fastest one's time."""
    names, units = report.profiles[kind]
    figure, axes = plt.subplots(1, len(units), figsize=(8, 3.2), layout="constrained", sharey=True)
    looks = _styles(report.runs.methods)
    for ax, (unit, times_BM) in zip(axes, units.items(), strict=True):
        with np.errstate(invalid="ignore"):  # a target that nobody reached
            relative = times_BM / times_BM.min(1, keepdims=True)
        top = max(2.0, 1.1 * float(np.max(relative[np.isfinite(relative)], initial=1.0)))
        ratios = np.geomspace(1, top, 400)
        shares_RM = statistics.profile(times_BM, ratios)
        for j, name in enumerate(names):
            look = looks[name] | {"marker": None}
            ax.plot(ratios, shares_RM[:, j], drawstyle="steps-post", label=_text(name), **look)
        ax.set(xlabel=f"{unit} to target / the fastest's", ylim=(-0.03, 1.03), xscale="log" if top > 4 else "linear")
    axes[0].set_ylabel("share of problems")
    axes[-1].legend(fontsize="small")
    return figure


def predictions(report: Report, out: Path) -> dict[Path, str]:
    """PNG files of what trained networks make of the same examples, with captions: of each problem one run a method,
    all of one seed.

    Raises:
        ConfigError, DataError: a run's weights or data are not here.
    """
    from ..runs import Run
    from ..runs.figures import compare

    files = {}
    for problem in report.runs.problems:
        own = [m.index for m in _shown(report, problem)]
        runs = report.runs.runs.filter(
            pl.col("counts") & (pl.col("status") == "completed") & pl.col("method").is_in(own)
        )
        if not len(runs):
            continue
        seed = runs["seed"].mode().sort()[0]
        folders = [Path(folder) for (folder,) in runs.filter(pl.col("seed") == seed).select("folder").rows()]
        for path in compare([Run.open(folder) for folder in folders], out):
            what = path.stem.rpartition("-")[2].capitalize()
            path = path.replace(path.with_name(f"{path.stem}-{problem.index}-{problem.profile}.png"))
            files[path] = f"{what} on {problem.label}, {problem.profile} data, a run of seed={seed} of each method"
    return files
