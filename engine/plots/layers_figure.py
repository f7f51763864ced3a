"""Draw the layers of a capture as a figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from engine.plots.layers_chart import LayersChart
from engine.plots.style import BAND, BLUE, GREY, INK, ORANGE, head, label_layers
from engine.records.results import LayerRow, may_be_best

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN_RANKS = 12


def draw_layers(chart: LayersChart, figure: Figure | None = None) -> Figure:
    """Draw the chart of a capture.

    A ranked contrast shows held-out d' with intervals, ties and the permutation null; an unranked one shows the
    relative norm. Both add the raw difference norm and the cosine. Prompts show the mean norm.

    Args:
        chart: Chart of a capture.
        figure: Figure to draw into, for example that of a window; a new one by default.

    Returns:
        The figure.
    """
    drawn = figure or Figure(figsize=(7.2, 4.8) if chart.contrast else (7.2, 2.8), layout="constrained")
    head(drawn, chart.title, chart.subtitle)
    if not chart.contrast:
        _columns(drawn.subplots(), chart, lambda row: row["norm"], "Mean norm of a token's state")
        return drawn
    grid = drawn.add_gridspec(2, 6, height_ratios=[3, 2])
    if chart.ranked:
        _scores(drawn.add_subplot(grid[0, :4]), chart)
        _ranking(drawn.add_subplot(grid[0, 4:]), chart)
    else:
        _columns(
            drawn.add_subplot(grid[0, :]),
            chart,
            lambda row: row["relative_norm"] or 0.0,
            "Relative norm (in-sample: nothing held out)",
        )
    _columns(
        drawn.add_subplot(grid[1, :3]),
        chart,
        lambda row: row["diff_norm"] or 0.0,
        "Raw difference norm (grows with depth)",
    )
    _cosine(drawn.add_subplot(grid[1, 3:]), chart)
    return drawn


def _scores(axes: Axes, chart: LayersChart) -> None:
    rows = sorted(chart.ranked, key=lambda row: row["layer"])
    layers = [row["layer"] for row in rows]
    axes.fill_between(
        layers,
        [row["null_low"] for row in rows],
        [row["null_high"] for row in rows],
        color=BAND,
        linewidth=0,
        label="permutation null (shuffled labels), 95%",
    )
    if chart.chance is not None:
        axes.axhline(
            chart.chance, color=GREY, linestyle="--", linewidth=0.8, label="best layer of the permutation null, 95%"
        )
    others = "other layers" if any(may_be_best(row) for row in rows) else "layers"
    for tied, color, marker, name in ((True, ORANGE, "o", "tied with the best"), (False, BLUE, "s", others)):
        some = [row for row in rows if may_be_best(row) == tied]
        if some:
            axes.errorbar(
                [row["layer"] for row in some],
                [row["d_prime"] for row in some],
                yerr=[
                    [row["d_prime"] - row["low"] for row in some],
                    [row["high"] - row["d_prime"] for row in some],
                ],
                fmt=marker,
                color=color,
                markersize=3.5,
                elinewidth=1,
                label=f"{name}, 95% interval",
            )
    axes.axhline(0, color=INK, linewidth=0.6)
    label_layers(axes, "Held-out d'", chart.axis)
    axes.legend(loc="upper left", fontsize=6)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # room for the legend


def _ranking(axes: Axes, chart: LayersChart) -> None:
    shown = chart.ranked[:_SHOWN_RANKS]
    axes.barh(
        range(len(shown)),
        [row["d_prime"] for row in shown],
        xerr=[[row["d_prime"] - row["low"] for row in shown], [row["high"] - row["d_prime"] for row in shown]],
        color=[ORANGE if may_be_best(row) else BLUE for row in shown],
        error_kw={"elinewidth": 0.8, "ecolor": INK},
        height=0.75,
    )
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_yticks(range(len(shown)), [str(row["layer"]) for row in shown])
    axes.invert_yaxis()
    axes.set_ylabel("layer")
    axes.set_xlabel("held-out d'")
    axes.set_title("Layers by rank")


def _columns(axes: Axes, chart: LayersChart, value: Callable[[LayerRow], float], title: str) -> None:
    axes.bar([row["layer"] for row in chart.rows], [value(row) for row in chart.rows], color=BLUE, width=0.8)
    label_layers(axes, title, chart.axis)


def _cosine(axes: Axes, chart: LayersChart) -> None:
    layers = [row["layer"] for row in chart.rows]
    axes.plot(
        layers, [row["cosine_sim"] or 0.0 for row in chart.rows], color=BLUE, marker="o", markersize=3, linewidth=1
    )
    axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.ticklabel_format(axis="y", useOffset=False)
    label_layers(axes, "Cosine of the class means (near 1 is normal)", chart.axis)
