"""Draw a comparison as a figure. Knows matplotlib; imported only to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from engine.plots.style import BAND, BLUE, GREEN, INK, ORANGE, head, label_layers
from engine.records.results import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_comparison(comparison: Comparison, figure: Figure | None = None) -> Figure:
    """Draw two captures side by side: cosines with what random directions give, or scores by relative depth.

    Args:
        comparison: From `compare_captures`.
        figure: Drawn into if given, for a window.
    """
    drawn = figure or Figure(figsize=(7.2, 3.2), layout="constrained")
    head(drawn, " and ".join(comparison["titles"]), " and ".join(comparison["names"]))
    (_cosines if comparison["kind"] == "directions" else _depths)(drawn.subplots(), comparison)
    return drawn


def _cosines(axes: Axes, comparison: Comparison) -> None:
    rows = comparison["directions"]
    layers = [row["layer"] for row in rows]
    axes.fill_between(
        layers,
        [-row["chance"] for row in rows],
        [row["chance"] for row in rows],
        color=BAND,
        linewidth=0,
        label="random directions, 95%",
    )
    axes.plot(
        layers,
        [row["ceiling"] for row in rows],
        color=GREEN,
        linewidth=1,
        linestyle="--",
        label="two halves of one capture",
    )
    axes.plot(
        layers, [row["cosine"] for row in rows], color=BLUE, marker="o", markersize=3, linewidth=1, label="cosine"
    )
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_ylim(-1.05, 1.05)
    label_layers(axes, "Cosine between the two directions")
    axes.legend(loc="lower left", ncols=3)


def _depths(axes: Axes, comparison: Comparison) -> None:
    looks = ((ORANGE, "o", "-"), (BLUE, "s", "--"))
    for name, title, (color, marker, line) in zip(comparison["names"], comparison["titles"], looks, strict=True):
        rows = [row for row in comparison["depths"] if row["capture"] == name]
        depths = [row["depth"] for row in rows]
        axes.fill_between(
            depths, [row["low"] for row in rows], [row["high"] for row in rows], color=color, alpha=0.2, linewidth=0
        )
        axes.plot(
            depths,
            [row["d_prime"] for row in rows],
            color=color,
            marker=marker,
            linestyle=line,
            markersize=3,
            label=title,
        )
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_title("Held-out d' with 95% intervals")
    axes.set_xlabel("depth (share of the blocks that have run)")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper left")
