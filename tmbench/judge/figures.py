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

OF_VERDICT = {"better": COLOURS[2], "worse": COLOURS[1], "equivalent": COLOURS[0], "undecided": COLOURS[3]}
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
    """The mean difference and the confidence sequence after each seed, the differences themselves, and the margin.

    The band fills the figure at looks that can exclude nothing yet.
    """
    method, scale, margin = content["methods"][name], problem.scale, content["margin"]
    colour = OF_VERDICT[method["verdict"]]
    figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    if margin:
        ax.axhspan(-scale * margin, scale * margin, color=GREY, alpha=0.18, linewidth=0, label="margin")
    ax.axhline(0, color=GREY, linewidth=1)
    gaps = [math.nan if gap is None else scale * gap for gap in method["differences"]]
    looks, last = method["looks"], method["interval"]
    seen = [value for value in [*gaps, *(scale * end for end in last if end is not None), 0.0] if math.isfinite(value)]
    room = 0.15 * (max(seen) - min(seen)) or 1.0
    bottom, top = min(seen) - room, max(seen) + room
    lows = [bottom if look["low"] is None else scale * look["low"] for look in looks]
    highs = [top if look["high"] is None else scale * look["high"] for look in looks]
    if None not in last:  # else a run diverged, and the difference has no size
        edges = [n + 0.5 for n in range(len(looks) + 1)]
        ax.fill_between(edges, [*lows, *lows[-1:]], [*highs, *highs[-1:]], step="post", color=colour, alpha=0.2,
                        linewidth=0, label="confidence sequence")  # fmt: skip
    seeds = list(range(1, len(gaps) + 1))
    ax.plot(seeds, gaps, "o", color=GREY, markersize=3, alpha=0.8, label="one seed")
    ax.plot(seeds, [math.fsum(gaps[:n]) / n for n in seeds], color=colour, label="mean so far")
    if at := method["decided_after"]:
        ax.annotate(method["verdict"], (at, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                    color=colour)  # fmt: skip
    unit = "points" if problem.is_percent else problem.metric
    ax.set(xlabel="paired seeds", ylabel=f"{name} less {content['against']} ({unit}); up is better",
           xlim=(0.5, len(gaps) + 0.5), ylim=(bottom, top))  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure
