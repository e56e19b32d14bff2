"""The report's figures, as SVG, in colours that the colour-blind can tell apart; dashes and markers serve in grey."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..figures import svg
from ..result import FINAL
from .across import Ranking, profile
from .contents import Drawing, Report
from .formats import file_name
from .paper import table_order
from .problems import Method, Problem
from .switches import by_switch

GREY = "#7F7F7F"
# Okabe and Ito 2008, without yellow and black, which are hard to see on white and on dark paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
MOST_CURVES = 7  # in one picture
STYLE: Any = {
    "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.25,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.6, "lines.markersize": 4,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False,
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"], "text.parse_math": False,
}  # fmt: skip


def figures(report: Report) -> Iterator[Drawing]:
    """Learning curves and switch epochs of each problem; ranks and profiles of each kind of problems."""
    with plt.rc_context(STYLE):
        for name, text, figure in _drawn(report):
            yield Drawing(name, text, svg(figure, name))


def _drawn(report: Report) -> Iterator[tuple[str, str, Figure]]:
    for problem in report.runs.problems:
        methods = _selected(report, problem)
        if methods and (figure := learning(report, problem, methods)) is not None:
            names = ", ".join(m.label for m in methods)
            yield _name("curves", problem), f"Learning curves on {problem.label}: {names}", figure
        if (figure := switches(report, problem)) is not None:
            yield _name("switch", problem), f"{problem.measure} against the switch epoch, {problem.label}", figure
    for ranking in report.rankings:
        best_first = sorted(zip(ranking.mean, ranking.names, strict=True))
        words = ", ".join(f"{name} {mean:.2f}" for mean, name in best_first[:12])
        yield file_name("ranks", ranking.kind), f"Mean ranks on {ranking.kind} data: {words}", ranks(ranking)
    for kind in report.profiles:
        text = f"Performance profiles on {kind} data: the share of problems brought to their target"
        yield file_name("profiles", kind), text, profiles(report, kind)


def _name(kind: str, problem: Problem) -> str:
    return f"{kind}-{problem.index}-{problem.task}-{problem.profile}"


def _text(label: str) -> str:
    """A label that fits, and that matplotlib does not hide."""
    label = label if len(label) < 60 else label[:57] + "..."
    return f" {label}" if label.startswith("_") else label


def _styles(methods: list[Method]) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of each method, the same in all figures of a report."""
    names = dict.fromkeys(m.name for m in sorted(methods, key=lambda m: table_order(m)[1:]))
    styles = zip(names, cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False)
    return {name: {"color": colour, "linestyle": dashes, "marker": marker} for name, colour, dashes, marker in styles}


def _axis(problem: Problem) -> str:
    return f"{problem.split} {problem.metric}" + (" (%)" if problem.is_percent else "")


def _selected(report: Report, problem: Problem) -> list[Method]:
    """The methods that a picture has room for: the best setting of each optimizer, then the next best."""
    methods = report.runs.methods_of(problem)
    if len(methods) <= MOST_CURVES:
        return methods
    means = {m.index: report.summary[m.index]["mean"] for m in methods}
    best_first = sorted((m for m in methods if means[m.index] is not None),
                        key=lambda m: -problem.sign * means[m.index])  # fmt: skip
    first = {m.optimizer: m.index for m in reversed(best_first)}
    chosen = sorted(best_first, key=lambda m: m.index != first[m.optimizer])[:MOST_CURVES]
    return sorted(chosen, key=lambda m: m.place)


def learning(report: Report, problem: Problem, methods: list[Method]) -> Figure | None:
    """Metric and training loss against epochs, steps and seconds: the mean over seeds, with its standard deviation."""
    bands = _bands(report, methods)
    if not len(bands):
        return None
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained", sharex="col", sharey="row")
    styles = _styles(report.runs.methods)
    for method in methods:
        of = bands.filter(pl.col("method") == method.index)
        for row, (key, scale) in enumerate((("metric", problem.scale), ("loss", 1.0))):
            _draw_band(axes[row], of.filter(pl.col(key).is_not_null()), key, scale, method, styles[method.name])
    for i, epoch in enumerate(sorted({method.switch for method in methods if method.switch})):
        for ax in axes[:, 0]:
            ax.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":")
        if i == 0:
            axes[0, 0].annotate("switch", (epoch, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                                fontsize="x-small", color=GREY)  # fmt: skip
    for ax, name in zip(axes[1], ("epochs", "steps", "seconds of training"), strict=True):
        ax.set_xlabel(name)
    for ax in axes[0, :2]:  # a single epoch has one tick
        ax.xaxis.set_major_locator(MaxNLocator(4 if ax is axes[0, 1] else "auto", integer=True, min_n_ticks=1))
    axes[0, 0].set_ylabel(_axis(problem))
    axes[1, 0].set_ylabel("training loss")
    columns = max(1, min(len(methods), 110 // (8 + max(len(_text(m.label)) for m in methods))))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=columns)
    return figure


def _bands(report: Report, methods: list[Method]) -> pl.DataFrame:
    """Means and standard deviations over seeds, a row a (method, epoch)."""
    is_drawn = pl.col("counts") & pl.col("status").is_in(FINAL) & pl.col("method").is_in([m.index for m in methods])
    runs = report.runs.runs.filter(is_drawn).select("run", "method")
    return (
        report.runs.curves.join(runs, on="run", maintain_order="left")
        .group_by("method", "epoch", maintain_order=True)
        .agg(pl.col("step", "seconds").mean(), n=pl.len(), loss=pl.col("loss").mean(), loss_sd=pl.col("loss").std(),
             metric=pl.col("metric").mean(), metric_sd=pl.col("metric").std())
        # Where some runs end early (diverged), the mean time of the others would jump.
        .with_columns(pl.col("step", "seconds").cum_max().over("method", order_by="epoch"))
        .sort("method", "epoch")
    )  # fmt: skip


def _draw_band(axes: Any, rows: pl.DataFrame, key: str, scale: float, method: Method, style: dict[str, Any]) -> None:
    """One method's mean and deviation of metric or loss, against epochs, steps and seconds."""
    mean, sd = rows[key].to_numpy() * scale, rows[f"{key}_sd"].fill_null(0).to_numpy() * scale
    for ax, x in zip(axes, ("epoch", "step", "seconds"), strict=True):
        at = rows[x].to_numpy()
        ax.plot(at, mean, label=_text(method.label), markevery=max(1, len(at) // 8), **style)
        if np.any(sd > 0):
            ax.fill_between(at, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)


def switches(report: Report, problem: Problem) -> Figure | None:
    """Metric against the switch epoch, the reference's level as a band; None unless a method has several switches."""
    rows = report.summary
    methods = [m for m in report.runs.methods_of(problem) if rows[m.index]["mean"] is not None]
    lines = by_switch(methods)
    if not lines:
        return None

    def values(method: Method) -> tuple[float, float]:
        return problem.scale * rows[method.index]["mean"], problem.scale * (rows[method.index]["sd"] or 0)

    figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
    references = [m for m in methods if m.optimizer == report.settings["against"]]
    if references:
        mean, sd = values(references[0])
        ax.axhspan(mean - sd, mean + sd, color=GREY, alpha=0.2, linewidth=0)
        ax.axhline(mean, color=GREY, linewidth=1, label=_text(references[0].label))
    styles = zip(lines.items(), cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False)
    for (name, found), colour, marker, dash in styles:
        means, sds = zip(*map(values, found.values()), strict=True)
        ax.errorbar([*found], means, sds, color=colour, marker=marker, linestyle=dash, capsize=3,
                    label=_text(name))  # fmt: skip
    ax.set(xlabel="switch epoch", ylabel=_axis(problem))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="small")
    return figure


def ranks(ranking: Ranking) -> Figure:
    """Mean ranks (best at the left), with their range if a block is left out; bars join ranks that do not differ."""
    order = sorted(range(len(ranking.names)), key=lambda i: ranking.mean[i])
    cliques = _cliques([ranking.mean[i] for i in order], ranking.critical_difference)
    figure, ax = plt.subplots(figsize=(6, 1.3 + 0.3 * len(order) + 0.15 * len(cliques)), layout="constrained")
    for y, i in enumerate(order):
        low, high = ranking.range_without_one[i]
        ax.plot([low, high], [y, y], color=COLOURS[0], linewidth=2, alpha=0.5)
        ax.plot(ranking.mean[i], y, marker="o", color=COLOURS[0])
    for j, (first, last) in enumerate(cliques):
        height = len(order) - 0.4 + 0.45 * j
        ends = [ranking.mean[order[first]], ranking.mean[order[last]]]
        ax.plot(ends, [height, height], color=COLOURS[1], linewidth=3, solid_capstyle="butt")
    ax.set_yticks(range(len(order)), [_text(ranking.names[i]) for i in order])
    ax.set(xlim=(0.9, len(order) + 0.1), ylim=(len(order) - 0.3 + 0.45 * len(cliques), -0.6))
    over = f"{len(ranking.blocks)} {ranking.unit}s"
    ax.set_xlabel(f"mean rank over {over}; critical difference {ranking.critical_difference:.2f}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _cliques(means: list[float], critical: float) -> list[tuple[int, int]]:
    """The longest runs of sorted means that lie within the critical difference."""
    cliques: list[tuple[int, int]] = []
    for first in range(len(means)):
        last = max(i for i in range(len(means)) if means[i] - means[first] <= critical)
        if last > first and (not cliques or last > cliques[-1][1]):
            cliques.append((first, last))
    return cliques


def profiles(report: Report, kind: str) -> Figure:
    """The share of problems that each method brings to the target within so many times the fastest one's time."""
    names, units = report.profiles[kind]
    figure, axes = plt.subplots(1, len(units), figsize=(8, 3.2), layout="constrained", sharey=True)
    styles = _styles(report.runs.methods)
    for ax, (unit, times_BM) in zip(axes, units.items(), strict=True):
        with np.errstate(invalid="ignore"):  # a target that nobody reached
            relative = times_BM / times_BM.min(1, keepdims=True)
        top = max(2.0, 1.1 * float(np.max(relative[np.isfinite(relative)], initial=1.0)))
        ratios = np.geomspace(1, top, 400)
        shares_RM = profile(times_BM, ratios)
        for j, name in enumerate(names):
            style = styles[name] | {"marker": None}
            ax.plot(ratios, shares_RM[:, j], drawstyle="steps-post", label=_text(name), **style)
        ax.set(xlabel=f"{unit} to target / the fastest's", ylim=(-0.03, 1.03), xscale="log" if top > 4 else "linear")
    axes[0].set_ylabel("share of problems")
    axes[-1].legend(fontsize="small")
    return figure


def predictions(report: Report, out: Path) -> dict[Path, str]:
    """PNG files of what networks predict for the same examples, with captions: of each problem one run a method, all of
    one seed. Raises ConfigError or DataError if a run's weights or data are not here.
    """
    from ..runs import Run
    from ..runs.figures import compare

    files = {}
    for problem in report.runs.problems:
        methods = [m.index for m in _selected(report, problem)]
        is_shown = pl.col("counts") & (pl.col("status") == "completed") & pl.col("method").is_in(methods)
        runs = report.runs.runs.filter(is_shown)
        if not len(runs):
            continue
        seed = runs["seed"].mode().sort()[0]
        folders = [report.runs.root / folder for folder in runs.filter(pl.col("seed") == seed)["folder"]]
        for path in compare([Run.open(f) for f in folders], out, trust=report.settings["trust"]):
            what = path.stem.rpartition("-")[2].capitalize()
            path = path.replace(path.with_name(f"{path.stem}-{problem.index}-{problem.profile}.png"))
            files[path] = f"{what} on {problem.label}, {problem.profile} data, a run of seed={seed} of each method"
    return files
