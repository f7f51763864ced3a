"""Draw a chart as a figure fit for a paper, as PNG, SVG or PDF. Knows matplotlib; imported only to draw."""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engine.errors import RequestError, StoreError
from engine.plots.chart import HELD_OUT, LayerChart, Score
from engine.records.statistics import LayerRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by its lightness.
BLUE, ORANGE, GREY, INK = "#0072B2", "#E69F00", "#8c8c8c", "#222222"
MARKERS = {"persona": "o", "template": "s", "topic": "^", "pairs": "o"}
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_FORMATS = (".png", ".svg", ".pdf")
_SHOWN_RANKS = 10
_BEST = 5


def save_figure(chart: LayerChart, path: str | Path, *, dpi: int = 200) -> Path:
    """Draw a chart into a file; the suffix says the format.

    Args:
        chart: What to draw.
        path: Where to; `.png`, `.svg` or `.pdf`.
        dpi: Dots per inch of a PNG.

    Raises:
        RequestError: Another suffix.
        StoreError: The file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in _FORMATS:
        raise RequestError(
            f"{target.name!r} says no picture format", expected=f"a name ending in {', '.join(_FORMATS)}"
        )
    with mpl.rc_context(_STYLE):
        figure = draw_layers(chart)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target, dpi=dpi, metadata=_metadata(target, chart))
        except OSError as error:
            raise StoreError(
                f"{target} cannot be written: {error.strerror}", next_step="choose another path"
            ) from error
    return target


def draw_layers(chart: LayerChart, figure: Figure | None = None) -> Figure:
    """Draw a chart: of a contrast four panels, of prompts the norms alone.

    Args:
        chart: What to draw.
        figure: Drawn into if given, for a window.
    """
    drawn = figure or Figure(figsize=(7.2, 4.8) if chart.score else (7.2, 2.8), layout="constrained")
    drawn.suptitle(f"{chart.title}\n{chart.subtitle}", x=0.01, ha="left", fontsize=9, parse_math=False)
    if chart.score is None:
        _columns(drawn.subplots(), chart, lambda row: row["norm"], "Norm of a token's state (mean)")
        return drawn
    axes = drawn.subplots(2, 2)
    _scores(axes[0, 0], chart, chart.score)
    _ranking(axes[0, 1], chart, chart.score)
    _columns(axes[1, 0], chart, lambda row: row["diff_norm"] or 0.0, "Difference norm (raw; grows with depth)")
    _cosine(axes[1, 1], chart)
    return drawn


def show_figure(chart: LayerChart) -> None:
    """Open a window with the chart and wait until it is closed.

    Raises:
        RequestError: There is no display.
    """
    import matplotlib.pyplot as plt

    if mpl.get_backend().lower() in {"agg", "pdf", "ps", "svg", "cairo", "template"}:
        raise RequestError(
            "there is no display to open a window on", next_step="save the figure with --output FILE.png"
        )
    with mpl.rc_context(_STYLE):
        draw_layers(chart, plt.figure(figsize=(7.2, 4.8), layout="constrained"))
        plt.show()


def _scores(axes: Axes, chart: LayerChart, score: Score) -> None:
    """The score as columns, the best in another colour; what it is the worst of, as marks."""
    _columns(axes, chart, score.of, score.name.capitalize(), best=set(chart.ranked[:_BEST]))
    if score is not HELD_OUT:
        return
    layers = [row["layer"] for row in chart.rows]
    for factor, marker in MARKERS.items():
        values = [row["separation"]["by_factor"].get(factor) if row["separation"] else None for row in chart.rows]
        if all(values):
            heights = [value["d_prime"] for value in values if value]
            axes.plot(layers, heights, marker, color=INK, markersize=3, fillstyle="none", label=f"{factor} left out")
    axes.legend(fontsize=6, frameon=False, loc="upper left")


def _columns(
    axes: Axes, chart: LayerChart, value: Callable[[LayerRow], float], title: str, best: Set[int] = frozenset()
) -> None:
    layers = [row["layer"] for row in chart.rows]
    colors = [ORANGE if layer in best else BLUE for layer in layers]
    axes.bar(layers, [value(row) for row in chart.rows], color=colors, width=0.8)
    _label(axes, title)


def _cosine(axes: Axes, chart: LayerChart) -> None:
    layers = [row["layer"] for row in chart.rows]
    axes.plot(
        layers, [row["cosine_sim"] or 0.0 for row in chart.rows], color=BLUE, marker="o", markersize=3, linewidth=1
    )
    axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    _label(axes, "Cosine of the two means (near 1 is normal)")


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("layer (output of block)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _ranking(axes: Axes, chart: LayerChart, score: Score) -> None:
    values = {row["layer"]: score.of(row) for row in chart.rows}
    shown = chart.ranked[:_SHOWN_RANKS]
    colors = [ORANGE if rank < _BEST else BLUE for rank in range(len(shown))]
    axes.barh(range(len(shown)), [values[layer] for layer in shown], color=colors, height=0.75)
    axes.set_yticks(range(len(shown)), [str(layer) for layer in shown])
    axes.invert_yaxis()
    axes.set_ylabel("layer")
    axes.set_xlabel(score.name)
    axes.set_title(f"Layers by {score.name}")


def _metadata(target: Path, chart: LayerChart) -> dict[str, str]:
    """A title inside the file, which survives the file being renamed."""
    return {"Title": f"{chart.title}: {chart.subtitle}"} if target.suffix.lower() != ".svg" else {"Title": chart.title}
