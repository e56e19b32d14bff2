"""Figures that any run has, whatever its task."""

import matplotlib

matplotlib.use("Agg")  # files only; a run has no screen
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def curves(rows: list[dict[str, float]], headline: str, switch_epoch: int | None) -> Figure:
    """Training loss and headline metric after each epoch, the switch marked."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    epochs = [row["epoch"] + 1 for row in rows]
    for ax, key in zip(axes, ("train/loss", f"test/{headline}"), strict=True):
        ax.plot(epochs, [row[key] for row in rows], marker="o", markersize=3)
        ax.set(title=key, xlabel="epochs trained")
        ax.grid(alpha=0.3)
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        if switch_epoch is not None:
            ax.axvline(switch_epoch, color="grey", linestyle="--", linewidth=1)
            ax.annotate("switch", (switch_epoch, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                        fontsize="x-small", color="grey")  # fmt: skip
    return figure
