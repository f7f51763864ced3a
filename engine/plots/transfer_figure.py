"""Draw a transfer matrix as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from engine.plots.specificity_text import shortened
from engine.plots.style import INK, head
from engine.stats.sorting import compare_sorting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from engine.records.results import TransferMatrix

_CELL = 0.62  # inches
_MARGIN = 1.6
_MOST_NUMBERS = 24  # rows; beyond this, cells are too small for numbers
_DARK = 0.3  # distance from 0.5 above which a cell is too dark for dark numbers


def draw_transfer(matrix: TransferMatrix, figure: Figure | None = None) -> Figure:
    """Draw the AUROC of each row's direction on each column's pairs, with its 95% interval.

    The diagonal holds the held-out directions. A frame marks a direction that sorts the pairs of a column as well as
    their own does; cells that are in-sample say so.

    Args:
        matrix: From `compare_transfer`.
        figure: Figure to draw into; a new one by default.

    Returns:
        The figure.
    """
    side = min(_MARGIN + _CELL * len(matrix["titles"]), 16.0)
    drawn = figure or Figure(figsize=(max(side + 0.8, 4.2), max(side, 3.0)), layout="constrained")
    head(drawn, f"Transfer at layer {matrix['layer']}", "AUROC, 95% interval; on the diagonal, held out")
    axes = drawn.subplots()
    image = axes.imshow(
        [[cell["auroc"] for cell in row] for row in matrix["cells"]], cmap="PuOr_r", vmin=0, vmax=1, aspect="auto"
    )
    drawn.colorbar(image, ax=axes, shrink=0.8)
    _label(axes, matrix)
    if len(matrix["titles"]) <= _MOST_NUMBERS:
        _write(axes, matrix)
    return drawn


def _label(axes: Axes, matrix: TransferMatrix) -> None:
    names = [shortened(title) for title in matrix["titles"]]
    places = range(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set_xlabel("pairs")
    axes.set_ylabel("direction")


def _write(axes: Axes, matrix: TransferMatrix) -> None:
    from matplotlib.patches import Rectangle

    for row, cells in enumerate(matrix["cells"]):
        for column, cell in enumerate(cells):
            color = "white" if abs(cell["auroc"] - 0.5) > _DARK else INK
            axes.text(column, row - 0.12, f"{cell['auroc']:.2f}", ha="center", va="center", color=color)
            interval = f"{cell['low']:.2f}–{cell['high']:.2f}"  # noqa: RUF001 - an en dash is narrow
            below = "in-sample" if cell.get("shared") else interval
            axes.text(column, row + 0.22, below, ha="center", va="center", color=color, fontsize=5)
            if row != column and compare_sorting(cell, matrix["cells"][column][column]) == "as well":
                axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=INK))
