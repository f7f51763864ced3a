"""Draw a reading as a heat map, layers by tokens. Knows matplotlib; imported only to draw."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from engine.plots.style import BLUE, INK, ORANGE, head
from engine.plots.tokens_text import readable_token
from engine.records.directions import TokenReading

_MAP = LinearSegmentedColormap.from_list("sides", [BLUE, "#f2f2f2", ORANGE])
_MOST_LABELS = 80
_LONGEST_LABEL = 16
_MOST_SPREADS = 3.0
_NORMAL = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation


def draw_tokens(reading: TokenReading, figure: Figure | None = None) -> Figure:
    """Draw which tokens stand out towards which side, at every layer.

    The colour is the value over or below the median of the text at that layer, in units of the spread of its tokens
    (median absolute deviation, scaled to a normal standard deviation). Values in class gaps, as the text and the JSON
    give them, would show one colour a layer: early layers have hardly a gap, and in most layers all tokens of running
    text lie to one side of the tokens that the direction was read at.

    Args:
        reading: From `read_text`.
        figure: Drawn into if given, for a window.
    """
    tokens, layers = reading["tokens"], reading["layers"]
    width = min(max(4.0, 1.6 + 0.16 * len(tokens)), 14.0)
    height = max(2.2, 1.6 + 0.09 * len(layers))
    drawn = figure or Figure(figsize=(width, height), layout="constrained")
    title = f"{reading['concept'] or 'pairs of your own'} ({reading['method']})"
    head(drawn, title, "tokens that stand out within their layer")
    axes = drawn.subplots()
    image = axes.imshow(
        [stand_out(reading["values"][layer]) for layer in layers],
        aspect="auto",
        origin="lower",
        cmap=_MAP,
        vmin=-_MOST_SPREADS,
        vmax=_MOST_SPREADS,
        interpolation="nearest",
    )
    step = -(-len(tokens) // _MOST_LABELS)
    places = range(0, len(tokens), step)
    labels = [readable_token(tokens[place]).strip()[:_LONGEST_LABEL] or "␣" for place in places]
    axes.set_xticks(places, labels, rotation=90, fontsize=6, parse_math=False)
    every = max(1, len(layers) // 10)
    axes.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    axes.set_ylabel("layer")
    if reading["leading"] in layers:
        row = layers.index(reading["leading"])
        axes.axhspan(row - 0.5, row + 0.5, fill=False, edgecolor=INK, linewidth=0.8)
    bar = drawn.colorbar(image, ax=axes, extend="both", shrink=0.8, ticks=[-_MOST_SPREADS, 0, _MOST_SPREADS])
    bar.set_label("spreads from the median\nnegative side    positive side", fontsize=6)
    return drawn


def stand_out(values: list[float]) -> list[float]:
    """How far each token lies from the median of a layer, in spreads of its tokens; the first token counts for neither.

    Args:
        values: One a token.
    """
    others = np.asarray(values[1:] or values)
    middle = float(np.median(others))
    spread = _NORMAL * float(np.median(np.abs(others - middle)))
    return [(value - middle) / spread if spread > 0 else 0.0 for value in values]
