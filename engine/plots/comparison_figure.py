"""Draw a comparison of two captures as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from engine.plots.specificity_text import shortened
from engine.plots.style import BAND, BLUE, GREEN, INK, ORANGE, head, label_layers
from engine.records.results import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_comparison(comparison: Comparison, figure: Figure | None = None) -> Figure:
    """Draw a comparison of two captures.

    On one model: the cosine of the two directions by layer, against random directions and split halves, and the AUROC
    of each direction on the pairs of the other capture. On two models: held-out d' by relative depth.

    Args:
        comparison: Comparison from `compare_captures`.
        figure: Figure to draw into, for example that of a window; a new one by default.

    Returns:
        The figure.
    """
    directions = comparison["kind"] == "directions"
    drawn = figure or Figure(figsize=(7.2, 5.6 if directions else 3.2), layout="constrained")
    head(drawn, " and ".join(comparison["titles"]), " and ".join(comparison["names"]))
    if directions:
        cosines, transfers = drawn.subplots(2, 1, sharex=True)
        _cosines(cosines, comparison)
        _transfers(transfers, comparison)
    else:
        _depths(drawn.subplots(), comparison)
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
        label="split halves of one capture",
    )
    axes.plot(
        layers, [row["cosine"] for row in rows], color=BLUE, marker="o", markersize=3, linewidth=1, label="cosine"
    )
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_ylim(-1.05, 1.05)
    label_layers(axes, "Cosine of the two directions")
    axes.legend(loc="lower left", ncols=3)


def _transfers(axes: Axes, comparison: Comparison) -> None:
    rows = comparison["directions"]
    layers = [row["layer"] for row in rows]
    one, other = comparison["titles"]
    ways = (
        ([row["transfer"] for row in rows], [row["own"][1] for row in rows], one, other, ORANGE, "o"),
        ([row["back"] for row in rows], [row["own"][0] for row in rows], other, one, BLUE, "s"),
    )
    for found, own, direction, pairs, color, marker in ways:
        low, high = ([way[end] for way in found] for end in ("low", "high"))
        axes.fill_between(layers, low, high, color=color, alpha=0.2, linewidth=0)
        label = f"direction of {shortened(direction)} on {shortened(pairs)}"
        label += ", in-sample" if any(way.get("shared") for way in found) else ""
        axes.plot(layers, [way["auroc"] for way in found], color=color, marker=marker, markersize=3, label=label)
        known = [(layer, way["auroc"]) for layer, way in zip(layers, own, strict=True) if way is not None]
        if known:
            label = f"own direction of {shortened(pairs)}, held out"
            axes.plot(*zip(*known, strict=True), color=color, linewidth=1, linestyle="--", label=label)
    axes.axhline(0.5, color=INK, linewidth=0.6)
    axes.set_ylim(-0.02, 1.02)
    label_layers(axes, "AUROC of a direction on pairs, with 95% intervals")
    for text in axes.legend(loc="lower left", ncols=2).get_texts():
        text.set_parse_math(False)


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
    axes.set_xlabel("relative depth (share of blocks)")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper left")
