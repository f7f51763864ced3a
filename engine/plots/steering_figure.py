"""Draw a sweep over layers and strengths as heat maps of effect and damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from engine.plots.style import INK, head
from engine.records.steering import SteeredText, SteeredTexts

_MOST_ROWS, _MOST_COLUMNS = 24, 8  # beyond this, cells are too small for numbers
_MOST_TICKS = 12
_WORST = 100.0  # times the baseline's perplexity: where the color scale ends
_DARK = 0.5  # luminance below which a cell is too dark for dark numbers
_LONGEST_PROMPT = 90


@dataclass(frozen=True)
class _Measure:
    """What a column of heat maps shows.

    Attributes:
        title: Title of the column.
        axis: Label of the color bar.
        value: Function from a text and its baseline to the value of a cell.
        form: Function from a value to the number in the cell.
        colors: Name of the color map.
        scale: Function from all values to the scale of the colors.
    """

    title: str
    axis: str
    value: Callable[[SteeredText, SteeredText], float]
    form: Callable[[float], str]
    colors: str
    scale: Callable[[np.ndarray], Normalize]


def draw_sweep(results: Sequence[SteeredTexts], figure: Figure | None = None) -> Figure:
    """Draw effect and damage at each layer and strength, and below them those of random directions.

    The effect is the shift of the projection from the baseline; negative cells are hatched. The damage is the
    perplexity over that of the baseline, on a logarithmic scale. The random directions share the scales. A dash
    marks a strength that overflowed.

    Args:
        results: Results of `steer_text` for one prompt, at least one, with the same strengths.
        figure: Figure to draw into, for example that of a window; a new one by default.

    Returns:
        The figure.
    """
    some = results[0]
    rows = [(some["concept"] or "custom pairs", [result["steered"] for result in results])]
    if all(result["controls"] for result in results):
        rows.append(("random directions", [result["controls"] for result in results]))
    height = 1.0 + len(rows) * (0.9 + 0.17 * min(len(results), 40))
    drawn = figure or Figure(figsize=(7.2, height), layout="constrained")
    prompt = " ".join(some["prompt"].split())
    said = prompt if len(prompt) <= _LONGEST_PROMPT else f"{prompt[: _LONGEST_PROMPT - 1]}…"
    head(drawn, f"{rows[0][0]} ({some['method']}), steered", said)
    grid = drawn.subplots(len(rows), len(_MEASURES), squeeze=False, sharex=True, sharey=True)
    for column, measure in enumerate(_MEASURES):
        values = [
            np.array(
                [
                    [measure.value(text, result["baseline"]) for text in texts]
                    for result, texts in zip(results, listed, strict=True)
                ]
            )  # (layers, strengths)
            for _, listed in rows
        ]
        norm = measure.scale(np.concatenate(values))
        for row, (name, _) in enumerate(rows):
            axes = grid[row, column]
            axes.set_title(f"{measure.title}: {name}", parse_math=False)
            image = _heat_map(axes, values[row], measure, norm)
        _label([*grid[:, column]], results)
        bar = drawn.colorbar(image, ax=[*grid[:, column]], shrink=0.8, aspect=30)
        bar.set_label(measure.axis)
        if isinstance(norm, LogNorm):
            ticks = [tick for tick in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if norm.vmin <= tick <= norm.vmax]  # type: ignore[operator]  # set by `_ratios`
            bar.set_ticks(ticks, labels=[f"{tick:g}x" for tick in ticks])
            bar.minorticks_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("layer")
    return drawn


def _heat_map(axes: Axes, values: np.ndarray, measure: _Measure, norm: Normalize) -> AxesImage:
    image = axes.imshow(values, cmap=measure.colors, norm=norm, aspect="auto", origin="lower", interpolation="nearest")
    rows, columns = values.shape
    numbers = rows <= _MOST_ROWS and columns <= _MOST_COLUMNS
    for row, column in np.ndindex(rows, columns):
        value = float(values[row, column])
        if np.isnan(value):  # it overflowed
            axes.text(column, row, "-", ha="center", va="center", color=INK, fontsize=6)
            continue
        red, green, blue, _ = image.cmap(norm(value))
        color = INK if 0.299 * red + 0.587 * green + 0.114 * blue > _DARK else "white"
        if value < 0:
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor=color, linewidth=0, alpha=0.25))
        if numbers:
            axes.text(column, row, measure.form(value), ha="center", va="center", color=color, fontsize=6)
    return image


def _label(column: Sequence[Axes], results: Sequence[SteeredTexts]) -> None:
    strengths = [text["strength"] or 0.0 for text in results[0]["steered"]]
    every = -(-len(results) // _MOST_ROWS)
    for axes in column:
        axes.set_yticks(range(0, len(results), every), [str(result["layer"]) for result in results[::every]])
        step = -(-len(strengths) // _MOST_TICKS)
        axes.set_xticks(range(0, len(strengths), step), [f"{amount:+g}" for amount in strengths[::step]])
    column[-1].set_xlabel("strength")


def _ratio(text: SteeredText, baseline: SteeredText) -> float:
    return text["perplexity"] / baseline["perplexity"]


def _symmetric(values: np.ndarray) -> Normalize:
    most = float(np.nanmax(np.abs(values))) or 1.0
    return Normalize(-most, most)


def _ratios(values: np.ndarray) -> Normalize:
    return LogNorm(min(float(np.nanmin(values)), 1.0), min(max(float(np.nanmax(values)), 2.0), _WORST))


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # avoids "-0.0"


def _times(value: float) -> str:
    return f"{value:.2g}x" if value < _WORST else f">{_WORST:g}x"


_MEASURES = (
    _Measure("Effect", "shift of the projection", lambda text, _: text["shift"], _signed, "PuOr_r", _symmetric),
    _Measure("Damage", "perplexity over the baseline's", _ratio, _times, "cividis_r", _ratios),
)
