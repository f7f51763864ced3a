"""Draw a chart as a figure fit for a paper, as PNG, SVG or PDF. Knows matplotlib; imported only to draw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engine.errors import RequestError, StoreError
from engine.plots.chart import LayerChart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind readers, and in grey by its lightness.
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#8c8c8c"
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
    size = (7.2, 4.8) if chart.is_contrast else (7.2, 2.8)
    drawn = figure or Figure(figsize=size, layout="constrained")
    drawn.suptitle(f"{chart.title}\n{chart.subtitle}", x=0.01, ha="left", fontsize=9, parse_math=False)
    if not chart.is_contrast:
        _columns(drawn.subplots(), chart, "norm", "Norm of a token's state (mean)")
        return drawn
    axes = drawn.subplots(2, 2)
    _columns(axes[0, 0], chart, "relative_norm", "Relative norm: difference over size of states")
    _ranking(axes[0, 1], chart)
    _columns(axes[1, 0], chart, "diff_norm", "Difference norm (raw; grows with depth)")
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


def _columns(axes: Axes, chart: LayerChart, column: str, title: str) -> None:
    layers = [row["layer"] for row in chart.rows]
    values = [float(row[column] or 0.0) for row in chart.rows]  # type: ignore[literal-required]
    best = set(chart.ranked[:5]) if column == "relative_norm" else set()
    axes.bar(layers, values, color=[ORANGE if layer in best else BLUE for layer in layers], width=0.8)
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


def _ranking(axes: Axes, chart: LayerChart) -> None:
    values = {row["layer"]: row["relative_norm"] or 0.0 for row in chart.rows}
    shown = chart.ranked[:_SHOWN_RANKS]
    colors = [ORANGE if rank < 5 else BLUE for rank in range(len(shown))]
    axes.barh(range(len(shown)), [values[layer] for layer in shown], color=colors, height=0.75)
    axes.set_yticks(range(len(shown)), [str(layer) for layer in shown])
    axes.invert_yaxis()
    axes.set_ylabel("layer")
    axes.set_xlabel("relative norm")
    axes.set_title("Layers by relative norm")


def _metadata(target: Path, chart: LayerChart) -> dict[str, str]:
    """A title inside the file, which survives the file being renamed."""
    return {"Title": f"{chart.title}: {chart.subtitle}"} if target.suffix.lower() != ".svg" else {"Title": chart.title}
