"""Draw a reading as a heat map, layers by tokens. Knows matplotlib; imported only to draw."""

from __future__ import annotations

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from engine.plots.style import BLUE, INK, ORANGE, head
from engine.plots.tokens_text import MOST_SPREADS, readable_token, stand_out
from engine.records.files import TokenReading

_MAP = LinearSegmentedColormap.from_list("sides", [BLUE, "#f2f2f2", ORANGE])
_MOST_LABELS = 80
_LONGEST_LABEL = 16


def draw_tokens(reading: TokenReading, figure: Figure | None = None) -> Figure:
    """Draw which tokens stand out towards which side, at every layer.

    The colour is how far a token lies from the median of its layer, see `stand_out`; the text and the JSON give values
    in class gaps.

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
        vmin=-MOST_SPREADS,
        vmax=MOST_SPREADS,
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
    bar = drawn.colorbar(image, ax=axes, extend="both", shrink=0.8, ticks=[-MOST_SPREADS, 0, MOST_SPREADS])
    bar.set_label("spreads from the median\nnegative side    positive side", fontsize=6)
    return drawn
