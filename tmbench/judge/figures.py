"""The figures of a judgement: every difference with its interval and the margin, and how they came about."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..config.settle import Settings
from ..figures import svg
from ..files import naming
from ..report.contents import Drawing
from ..report.figures import COLOURS, GREY, STYLE
from ..report.problems import Problem

OF_VERDICT = {"better": COLOURS[2], "worse": COLOURS[1], "equivalent": COLOURS[0], "undecided": GREY}
FORMS = ("png", "pdf")


def figures(content: Settings, problem: Problem, folder: Path) -> Iterator[Drawing]:
    """The forest plot, and of each method the running difference; PNG and PDF are written into the folder."""
    against = content["against"]
    drawn: dict[str, tuple[str, Callable[..., Figure]]] = {
        "forest": (f"Differences to {against}, their confidence sequences and the margin", forest)
    }
    for name in content["methods"]:
        text = f"{name} less {against} as the seeds came in, with its confidence sequence"
        drawn[f"running-{name}"] = (text, partial(running, name=name))
    with plt.rc_context(STYLE):
        for name, (text, draw) in drawn.items():
            figure = draw(content, problem)
            for form in FORMS:
                with naming(path := folder / f"{name}.{form}"):
                    about = {"CreationDate": None} if form == "pdf" else None
                    figure.savefig(path, dpi=200, facecolor="white", metadata=about)
            yield Drawing(name, text, svg(figure, name))


def _axis(problem: Problem, against: str) -> str:
    unit = "points" if problem.is_percent else problem.metric
    return f"{problem.measure}: difference to {against} ({unit}); right is better"


def forest(content: Settings, problem: Problem) -> Figure:
    """A line a method: the difference, its interval, and the band within which a difference does not matter."""
    methods = content["methods"]
    figure, ax = plt.subplots(figsize=(6.4, 1.3 + 0.42 * len(methods)), layout="constrained")
    scale, margin = problem.scale, content["margin"]
    if margin:
        ax.axvspan(-scale * margin, scale * margin, color=GREY, alpha=0.18, linewidth=0)
    ax.axvline(0, color=GREY, linewidth=1)
    for place, method in enumerate(methods.values()):
        colour, mean, (low, high) = OF_VERDICT[method["verdict"]], method["difference"], method["interval"]
        if None not in (mean, low, high):
            ax.plot([scale * low, scale * high], [place] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
        if mean is not None:
            ax.plot(scale * mean, place, "o", color=colour, markersize=6)
        ax.annotate(f"{method['verdict']}, {method['pairs']} seeds", (1.01, place), xycoords=("axes fraction", "data"),
                    va="center", color=colour)  # fmt: skip
    ax.set(xlabel=_axis(problem, content["against"]), ylim=(len(methods) - 0.5, -0.5))
    ax.set_yticks(range(len(methods)), list(methods))
    ax.grid(axis="y", visible=False)
    return figure


def running(content: Settings, problem: Problem, name: str) -> Figure:
    """The mean difference and the confidence sequence after each seed, the differences themselves, and the margin."""
    method, scale, margin = content["methods"][name], problem.scale, content["margin"]
    figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    if margin:
        ax.axhspan(-scale * margin, scale * margin, color=GREY, alpha=0.18, linewidth=0, label="margin")
    ax.axhline(0, color=GREY, linewidth=1)
    differences = [math.nan if d is None else scale * d for d in method["differences"]]
    seeds = list(range(1, len(differences) + 1))
    ax.plot(seeds, differences, "o", color=GREY, markersize=3, alpha=0.8, label="one seed")
    known = [look for look in method["looks"] if None not in (look["low"], look["high"])]
    if known:
        colour = OF_VERDICT[method["verdict"]]
        at = [look["seeds"] for look in known]
        lows, highs = ([scale * look[end] for look in known] for end in ("low", "high"))
        ax.vlines(at, lows, highs, color=colour, linewidth=0.8, alpha=0.6)
        ax.fill_between(at, lows, highs, color=colour, alpha=0.2, linewidth=0, label="confidence sequence")
    means = [math.fsum(differences[:n]) / n for n in seeds]
    ax.plot(seeds, means, color=OF_VERDICT[method["verdict"]], label="mean so far")
    if method["decided_after"]:
        ax.axvline(method["decided_after"], color=GREY, linestyle="--", linewidth=1)
        ax.annotate(method["verdict"], (method["decided_after"], 1), xycoords=("data", "axes fraction"), ha="center",
                    va="bottom", color=GREY)  # fmt: skip
    unit = "points" if problem.is_percent else problem.metric
    ax.set(xlabel="paired seeds", ylabel=f"{name} less {content['against']} ({unit}); up is better", xlim=(0.5, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(loc="best", fontsize="small")
    return figure
