"""The figure of a sweep: every cell is the shift or the perplexity ratio of a text."""

from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from engine.plots.steering_figure import draw_sweep
from engine.plots.style import STYLE, save_figure
from engine.records.steering import SteeredTexts
from tests.engine.plots.pictures import svg_words
from tests.engine.plots.results import overflowed_text, steered_text, steered_texts

STRENGTHS = (-0.2, 0.2)
SHIFTS = [[-2.0, 1.0], [-0.04, 3.0], [0.0, 4.0]]  # layers 10 to 12
PERPLEXITIES = [[2.0, 4.0], [8.0, 1.0], [2.0, 2000.0]]  # the baseline's is 2


def sweep(*, control: bool = True, prompt: str = "Did you do it?") -> list[SteeredTexts]:
    """Three layers at two strengths; controls do half as much and damage nothing."""
    results = []
    for place, (shifts, perplexities) in enumerate(zip(SHIFTS, PERPLEXITIES, strict=True)):
        cells = list(zip(STRENGTHS, shifts, perplexities, strict=True))
        steered = [
            steered_text("steered", ["I"], [0.0], strength=amount, shift=shift, perplexity=perplexity)
            for amount, shift, perplexity in cells
        ]
        controls = [
            steered_text("control", ["I"], [0.0], strength=amount, shift=shift / 2) for amount, shift, _ in cells
        ]
        results.append(
            steered_texts(layer=10 + place, steered=steered, controls=controls if control else [], prompt=prompt)
        )
    return results


def image(axes: Axes) -> AxesImage:
    (found,) = axes.images
    return found


def cells(axes: Axes) -> list[list[float]]:
    """Values of a heat map, lowest layer first."""
    values: list[list[float]] = np.asarray(image(axes).get_array()).tolist()
    return values


def panels(figure: Figure) -> dict[str, Axes]:
    """The heat maps by title."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.images}


def drawn(**changes: Any) -> Figure:
    """The figure in the style in which it is saved."""
    with mpl.rc_context(STYLE):
        return draw_sweep(sweep(**changes))


def test_the_cells_are_shifts_and_perplexity_ratios() -> None:
    found = panels(drawn())
    assert list(found) == [
        "Effect: warmth",
        "Damage: warmth",
        "Effect: random directions",
        "Damage: random directions",
    ]
    assert cells(found["Effect: warmth"]) == SHIFTS
    assert cells(found["Damage: warmth"]) == [[value / 2 for value in row] for row in PERPLEXITIES]
    assert cells(found["Effect: random directions"]) == [[value / 2 for value in row] for row in SHIFTS]
    assert cells(found["Damage: random directions"]) == [[1.0, 1.0]] * 3


def test_control_and_direction_share_scales_and_the_damage_is_logarithmic() -> None:
    found = panels(drawn())
    effect, control = (image(found[f"Effect: {name}"]) for name in ("warmth", "random directions"))
    assert effect.norm is control.norm
    assert (effect.norm.vmin, effect.norm.vmax) == (-4.0, 4.0)
    damage = image(found["Damage: warmth"]).norm
    assert (damage.vmin, damage.vmax) == (0.5, 100.0)
    places: Any = damage(np.array([0.5, 5.0, 50.0]))
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])


def test_negative_effects_are_hatched_for_print_in_grey() -> None:
    axes = panels(drawn())["Effect: warmth"]
    hatched = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert hatched == [(-0.5, -0.5), (-0.5, 0.5)]


def test_numbers_layers_and_strengths_are_written(tmp_path: Path) -> None:
    words = svg_words(save_figure(partial(draw_sweep, sweep(prompt="cost: $5\nor $6")), tmp_path / "sweep.svg"))
    assert {"warmth (mean_diff), steered", "cost: $5 or $6", "layer", "strength"} <= set(words)
    assert {"10", "11", "12", "-0.2", "+0.2"} <= set(words)
    assert {"-2.0", "+0.0", "+4.0", "0.5x", "4x", ">100x"} <= set(words)
    assert "-0.0" not in words


def test_without_a_control_only_the_direction_is_drawn() -> None:
    assert list(panels(drawn(control=False))) == ["Effect: warmth", "Damage: warmth"]


def test_a_sweep_of_many_layers_has_no_numbers_but_labels() -> None:
    results = [steered_texts(layer=layer) for layer in range(80)]
    figure = draw_sweep(results)
    assert not any(axes.texts for axes in figure.axes)
    assert figure.get_figheight() < 20
    first = next(axes for axes in figure.axes if axes.images)
    assert [label.get_text() for label in first.get_yticklabels()] == [str(layer) for layer in range(0, 80, 4)]


def test_a_strength_that_overflowed_is_an_empty_cell_with_a_dash() -> None:
    results = sweep()
    results[2]["steered"][1] = overflowed_text("steered", 0.2)
    with mpl.rc_context(STYLE):
        found = panels(draw_sweep(results))
    for name in ("Effect: warmth", "Damage: warmth"):
        values = np.ma.masked_invalid(np.array(cells(found[name]), dtype=float))
        assert np.ma.getmaskarray(values).tolist() == [[False, False], [False, False], [False, True]]
        assert [text.get_text() for text in found[name].texts].count("-") == 1
    assert image(found["Effect: warmth"]).norm.vmax == 3.0
