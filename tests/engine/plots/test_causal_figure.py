"""The figure of reading against cause: its points, intervals and labels."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from engine.plots.causal_figure import draw_causal
from tests.engine.plots.records import causal_layer, causal_ranking, contrast_record, contrast_rows, ranking_of

CAUSAL = causal_ranking([causal_layer(1, 0.2), causal_layer(2, 0.01)])


@pytest.fixture
def panels() -> list[Axes]:
    record = contrast_record(contrast_rows(), ranking_of())
    return list(draw_causal(record, CAUSAL).axes)


def test_each_layer_is_a_point_at_its_reading_and_its_effect(panels: list[Axes]) -> None:
    points = {text.get_text(): tuple(text.xy) for text in panels[0].texts}  # type: ignore[attr-defined]  # annotations
    assert points == {"1": (2.0, 0.2), "2": (1.7, 0.01)}
    bars = [container.lines[0].get_markerfacecolor() for container in panels[0].containers]  # type: ignore[attr-defined]
    assert bars[1] == "white" != bars[0]  # only the first does more than controls


def test_effects_by_layer_come_with_random_directions_and_half_of_the_prompts(panels: list[Axes]) -> None:
    _, labels = panels[1].get_legend_handles_labels()
    assert set(labels) == {"half of the prompts", "random directions", "more than chance and controls", "not found"}
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in panels[1].lines}
    assert drawn["random directions"] == [0.02, 0.02]
    assert drawn["not found"] == [0.01]
