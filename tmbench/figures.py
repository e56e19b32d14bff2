"""The figure that every run has, its curves; and how figures are saved."""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .files import naming

DPI = 110


def curves(rows: list[dict[str, float]], headline: str, switch_epoch: int | None) -> Figure:
    """Training loss and headline metric (as in the rows) after each epoch, the switch marked."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")  # none of pyplot's, which a notebook would show as well
    for ax, key in zip(figure.subplots(1, 2), ("train/loss", headline), strict=True):
        known = [row for row in rows if key in row]
        ax.plot([row["epoch"] for row in known], [row[key] for row in known], marker="o", markersize=3)
        ax.set(title=key, xlabel="epochs trained")
        _mark_epochs(ax, switch_epoch)
    return figure


def curvature(rows: list[dict[str, float]], switch_epoch: int | None) -> Figure:
    """How much of the stability limit each epoch's rate and curvature use, of each player: 1 is the edge."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.subplots()
    for key in sorted({key for row in rows for key in row if key.startswith("curvature/used")}):
        known = [row for row in rows if row.get(key, 0) > 0]
        name = key.removeprefix("curvature/").replace("used_after_switch", "of the limit after the switch")
        name = name.replace("used", "of the limit of the method at work").replace("_", " of ")
        line = "--" if "after" in key else "-"
        ax.plot(
            [row["epoch"] for row in known], [row[key] for row in known], line, marker="o", markersize=3, label=name
        )
    ax.axhline(1, color="tab:red", linewidth=1)
    ax.set_title("rate x curvature, as a share of the stability limit", pad=14)  # above the mark of the switch
    ax.set(xlabel="epochs trained", yscale="log")
    ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    _mark_epochs(ax, switch_epoch)
    ax.legend(fontsize="small")
    return figure


def _mark_epochs(ax: Any, switch_epoch: int | None) -> None:
    ax.grid(alpha=0.3)
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    if switch_epoch is not None:
        ax.axvline(switch_epoch, color="grey", linestyle="--", linewidth=1)
        ax.annotate("switch", (switch_epoch, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                    fontsize="x-small", color="grey")  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG and closes the figure."""
    # A layout engine has set the margins; "tight" would draw everything twice, which takes most of the time.
    with naming(path):
        figure.savefig(path, dpi=DPI, bbox_inches=None if figure.get_layout_engine() else "tight")
    plt.close(figure)


def svg(figure: Figure, name: str) -> str:
    """The figure as part of a page, and closes it; `name` is unique in that page."""
    text = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    # Without the XML head, and without names that would be there twice in a page of several figures.
    return re.sub(r'<g id="[\w.]+_\d+">', "<g>", text.getvalue()[text.getvalue().index("<svg") :])
