"""Quartiles from counts are those of the projections themselves, to half a step."""

import numpy as np
import pytest

from engine.stats.quartiles import side_quartiles
from engine.stats.sides import project_sides, summarise_sides
from tests.engine.stats.contrasts import capture_of, planted


@pytest.mark.parametrize("pairs", [12, 13, 40])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_quartiles_are_those_of_the_projections(pairs: int, side: str) -> None:
    data = capture_of(planted(np.random.default_rng(pairs), [0.5, 2.0], pairs), None)
    for summary in summarise_sides(data):
        projections = np.sort(project_sides(data, summary["layer"])[side])  # type: ignore[literal-required]
        step = (summary["high"] - summary["low"]) / 48
        expected = np.quantile(projections, [0, 0.25, 0.5, 0.75, 1], method="nearest")
        found = side_quartiles(summary, side)  # type: ignore[arg-type]
        assert found == sorted(found)
        assert np.abs(np.array(found) - expected).max() <= step / 2 + 1e-9
