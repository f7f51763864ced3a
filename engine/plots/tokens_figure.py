"""Draw a reading as a heat map of layers by tokens."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from engine.plots.style import BLUE, GREY, INK, ORANGE, head
from engine.plots.tokens_text import MOST_SPREADS, describe_aside, shown_token, stand_out, tokens_aside
from engine.records.files import TokenReading

_MAP = LinearSegmentedColormap.from_list("classes", [BLUE, "#f2f2f2", ORANGE])
_MOST_LABELS = 80
_LONGEST_LABEL = 16


def draw_tokens(reading: TokenReading, figure: Figure | None = None) -> Figure:
    """Draw the robust z-score of every token at every layer.

    Colors show z-scores within each layer (see `stand_out`). Tokens that are set aside are hatched. The text and the
    JSON instead give projections scaled to 0 at the mean of the negative class and 1 at that of the positive class.

    Args:
        reading: Reading from `read_text`.
        figure: Figure to draw into, for example that of a window; a new one by default.

    Returns:
        The figure.
    """
    tokens, layers = reading["tokens"], reading["layers"]
    width = min(max(4.0, 1.6 + 0.16 * len(tokens)), 14.0)
    height = max(2.2, 1.6 + 0.09 * len(layers))
    drawn = figure or Figure(figsize=(width, height), layout="constrained")
    title = f"{reading['concept'] or 'custom pairs'} ({reading['method']})"
    head(drawn, title, "token projections, standardized within each layer")
    axes = drawn.subplots()
    aside = sorted(tokens_aside(reading))
    scores = np.array([stand_out(reading["values"][layer], aside) for layer in layers])  # (layers, tokens)
    scores[:, aside] = np.nan
    image = axes.imshow(
        scores,
        aspect="auto",
        origin="lower",
        cmap=_MAP,
        vmin=-MOST_SPREADS,
        vmax=MOST_SPREADS,
        interpolation="nearest",
    )
    step = -(-len(tokens) // _MOST_LABELS)
    places = range(0, len(tokens), step)
    labels = [shown_token(reading, place).strip()[:_LONGEST_LABEL] or "␣" for place in places]
    axes.set_xticks(places, labels, rotation=90, fontsize=6, parse_math=False)
    if aside:
        _hatch(axes, aside)
        axes.set_xlabel(f"hatched: {describe_aside(aside)}", fontsize=6)
    every = max(1, len(layers) // 10)
    axes.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    axes.set_ylabel("layer")
    if reading["leading"] in layers:
        row = layers.index(reading["leading"])
        axes.axhspan(row - 0.5, row + 0.5, fill=False, edgecolor=INK, linewidth=0.8)
    bar = drawn.colorbar(image, ax=axes, extend="both", shrink=0.8, ticks=[-MOST_SPREADS, 0, MOST_SPREADS])
    bar.set_label("robust z-score within the layer\nnegative class    positive class", fontsize=6)
    return drawn


def _hatch(axes: Axes, aside: list[int]) -> None:
    """Hatch the columns of the tokens that are set aside, and gray their labels."""
    for label, place in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True):
        if place in aside:
            label.set_color(GREY)
    starts = [place for place in aside if place - 1 not in aside]
    stops = [place for place in aside if place + 1 not in aside]
    for start, stop in zip(starts, stops, strict=True):
        axes.axvspan(start - 0.5, stop + 0.5, fill=False, hatch="////", edgecolor=GREY, linewidth=0, alpha=0.5)
