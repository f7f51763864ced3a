"""Which directions sort as well: by AUROC, by interval, reversed, and where nothing sorts."""

import pytest

from engine.records.results import Transfer
from engine.stats.sorting import Verdict, compare_sorting, strength


@pytest.mark.parametrize(
    ("found", "own", "verdict"),
    [
        ((0.80, 0.75, 0.85), 0.90, "worse"),
        ((0.80, 0.70, 0.90), 0.90, "as well"),  # the interval reaches it
        ((0.95, 0.90, 0.98), 0.90, "as well"),
        ((0.71, 0.55, 0.95), 0.90, "as well"),  # more than half of the excess
        ((0.71, 0.45, 0.95), 0.90, "not apart"),  # an interval that includes chance
        ((0.69, 0.51, 0.95), 0.90, "not apart"),  # a wide interval, although above chance
        ((0.52, 0.45, 0.60), 0.55, "not apart"),
        ((0.53, 0.45, 0.60), 0.55, "not apart"),
        ((0.72, 0.45, 0.90), 0.70, "not apart"),  # higher, but the interval includes chance
        ((0.60, 0.55, 0.65), 0.55, "as well"),
        ((0.50, 0.00, 1.00), 0.90, "not apart"),
        ((0.60, 0.55, 0.65), 0.50, "as well"),
        ((0.52, 0.45, 0.60), 0.45, "not apart"),  # neither sorts anything
    ],
)
def test_directions_and_their_reverses_are_compared(
    found: tuple[float, float, float], own: float, verdict: Verdict
) -> None:
    auroc, low, high = found
    forwards = Transfer(auroc=auroc, low=low, high=high, in_order=auroc)
    backwards = Transfer(auroc=1 - auroc, low=1 - high, high=1 - low, in_order=1 - auroc)
    target = Transfer(auroc=own, low=own, high=own, in_order=own)
    assert compare_sorting(forwards, target) == verdict
    assert compare_sorting(backwards, target) == verdict
    assert compare_sorting(Transfer(**forwards, shared=3), target) == "in-sample"
    assert strength(forwards) == pytest.approx(strength(backwards))


def test_a_direction_within_the_interval_of_the_own_one_is_not_worse() -> None:
    """Where all pairs are in order, every other direction has an interval below 1."""
    own = Transfer(auroc=1.0, low=0.97, high=1.0, in_order=1.0)
    assert compare_sorting(Transfer(auroc=0.99, low=0.95, high=0.998, in_order=1.0), own) == "as well"
    assert compare_sorting(Transfer(auroc=0.95, low=0.90, high=0.97, in_order=1.0), own) == "worse"
