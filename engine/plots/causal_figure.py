"""Draw reading against cause: a scatter of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from engine.plots.style import BAND, BLUE, GREY, INK, ORANGE, head, label_layers
from engine.records.causal import ablation_works, works

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from engine.records.causal import CausalLayer, CausalRanking
    from engine.records.files import CaptureRecord


def draw_causal(record: CaptureRecord, causal: CausalRanking, figure: Figure | None = None) -> Figure:
    """Draw the effect of steering against held-out d', and by layer with the distribution over prompts.

    Args:
        record: Record of a contrast.
        causal: Its causal ranking.
        figure: Figure to draw into; a new one by default.

    Returns:
        The figure.
    """
    drawn = figure or Figure(figsize=(7.6, 3.6), layout="constrained")
    title = record["concept"] or record["name"]
    head(drawn, f"{title}: reading and cause", f"steering by {causal['strength']:g}; {causal['prompts']} prompts")
    scatter, layers = drawn.subplots(1, 2)
    ranked = {row["layer"]: row["d_prime"] for row in record["ranking"]["layers"]} if record["ranking"] else {}
    for row in causal["layers"]:
        if row["layer"] in ranked:
            _place(scatter, row, ranked[row["layer"]])
    scatter.axhline(0, color=GREY, linewidth=0.6)
    scatter.set_title("Layers by reading and cause")
    scatter.set_xlabel("held-out d' (reading)")
    scatter.set_ylabel("effect of steering, nats per token")
    _by_layer(layers, causal)
    return drawn


def _place(axes: Axes, row: CausalLayer, d_prime: float) -> None:
    found = works(row)
    axes.errorbar(
        d_prime,
        row["effect"],
        yerr=[[row["effect"] - row["low"]], [row["high"] - row["effect"]]],
        fmt="s" if found and ablation_works(row) else "o",
        color=BLUE if found else GREY,
        markerfacecolor=BLUE if found else "white",
        linewidth=0.8,
        markersize=5,
    )
    axes.annotate(
        str(row["layer"]), (d_prime, row["effect"]), (4, 3), textcoords="offset points", color=INK, fontsize=7
    )


def _by_layer(axes: Axes, causal: CausalRanking) -> None:
    rows = causal["layers"]
    numbers = [row["layer"] for row in rows]
    axes.fill_between(
        numbers,
        [row["quantiles"][1] for row in rows],
        [row["quantiles"][3] for row in rows],
        color=BAND,
        label="half of the prompts",
    )
    axes.plot(numbers, [row["random"] for row in rows], color=ORANGE, linestyle="--", label="random directions")
    axes.plot(numbers, [row["effect"] for row in rows], color=GREY, linewidth=0.8)
    for found, face in ((True, BLUE), (False, "white")):
        shown = [row for row in rows if works(row) is found]
        label = "more than chance and controls" if found else "not found"
        edge = BLUE if found else GREY
        axes.plot(
            [row["layer"] for row in shown],
            [row["effect"] for row in shown],
            "o",
            color=edge,
            markerfacecolor=face,
            label=label,
        )
    axes.axhline(0, color=GREY, linewidth=0.6)
    label_layers(axes, "Effect by layer")
    axes.legend(loc="best")
