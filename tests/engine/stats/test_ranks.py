"""Places that are left open: obvious where the answer is obvious, by a plain loop where it is not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.stats.ranks import open_places
from engine.stats.student import half_width, widening

Array = NDArray[np.float64]
MANY = 10_000
"""Groups enough for Student's t to be the normal distribution."""


def places(
    scores: Array | list[float], deviations: Array, groups: int = MANY, confidence: float = 0.95
) -> list[tuple[int, int]]:
    given_scores = torch.tensor(np.asarray(scores, dtype=np.float64))
    return open_places(given_scores, torch.from_numpy(deviations), [groups] * len(given_scores), confidence)


def drawn(layers: int, spread: float, resamples: int = 400, seed: int = 0) -> Array:
    return spread * np.random.default_rng(seed).normal(size=(layers, resamples))


def by_hand(scores: Array, deviations: Array, groups: int, confidence: float) -> list[tuple[int, int]]:
    """Each layer against every other: a loop over both, and over resamples for the largest deviation of all."""
    found = []
    for one in range(len(scores)):
        others = [j for j in range(len(scores)) if j != one]
        errors = {j: np.std(deviations[j] - deviations[one], ddof=1) for j in others}
        higher, lower = [], []
        for draw in range(deviations.shape[1]):
            moved = [(deviations[j, draw] - deviations[one, draw]) / errors[j] for j in others]
            higher.append(max(moved))
            lower.append(max(-value for value in moved))
        widen = widening(groups, confidence)
        better = [j for j in others if (scores[j] - scores[one]) / errors[j] > widen * np.quantile(lower, confidence)]
        worse = [j for j in others if (scores[one] - scores[j]) / errors[j] > widen * np.quantile(higher, confidence)]
        found.append((1 + len(better), len(scores) - len(worse)))
    return found


def test_layers_far_apart_have_one_place_each() -> None:
    assert places([1.0, 5.0, 2.0, -3.0], drawn(4, 0.01)) == [(3, 3), (1, 1), (2, 2), (4, 4)]


def test_the_best_layer_is_beyond_doubt_and_the_rest_is_not() -> None:
    assert places([1.0, 9.0, 1.1, 0.9], drawn(4, 0.5)) == [(2, 4), (1, 1), (2, 4), (2, 4)]


def test_layers_that_resamples_throw_about_are_all_tied() -> None:
    assert places([1.0, 1.2, 1.1], drawn(3, 5.0)) == [(1, 3)] * 3


def test_two_leaders_share_two_places_and_two_losers_the_others() -> None:
    assert places([3.0, 0.0, 3.01, 0.01], drawn(4, 0.1)) == [(1, 2), (3, 4), (1, 2), (3, 4)]


def test_a_copy_of_a_layer_is_tied_with_it() -> None:
    deviations = drawn(3, 0.1)
    deviations[2] = deviations[0]
    assert places([4.0, 1.0, 4.0], deviations) == [(1, 2), (3, 3), (1, 2)]


def test_nothing_is_beyond_doubt_where_all_layers_are_copies() -> None:
    assert places([2.0, 2.0, 2.0], np.tile(drawn(1, 0.3), (3, 1))) == [(1, 3)] * 3


def test_a_single_layer_is_first_and_last() -> None:
    assert places([1.0], drawn(1, 0.3)) == [(1, 1)]


def test_what_moves_all_layers_alike_leaves_no_doubt() -> None:
    """Layers are compared in the same resamples: their own intervals overlap by far, their differences do not."""
    together = np.tile(drawn(1, 10.0), (3, 1)) + drawn(3, 0.01, seed=1)
    assert places([1.0, 3.0, 2.0], together) == [(3, 3), (1, 1), (2, 2)]
    assert places([1.0, 3.0, 2.0], drawn(3, 10.0)) == [(1, 3)] * 3


def test_few_groups_leave_more_places_open() -> None:
    scores, deviations = np.linspace(0.0, 2.0, 6), drawn(6, 0.2)
    widths = [sum(high - low for low, high in places(scores, deviations, groups)) for groups in (2, 3, 5, 20, MANY)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]


def test_the_fewest_groups_of_any_layer_decide() -> None:
    scores, deviations = torch.linspace(0.0, 2.0, 3, dtype=torch.float64), torch.from_numpy(drawn(3, 0.2))
    assert open_places(scores, deviations, [3, 50, 50], 0.95) == open_places(scores, deviations, [3, 3, 3], 0.95)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_places_are_those_of_a_loop(seed: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=7)
    deviations = rng.normal(size=(7, 7)) @ drawn(7, 0.15, resamples=150, seed=seed)  # layers move together
    assert places(scores, deviations, 12, confidence) == by_hand(scores, deviations, 12, confidence)


made_up = st.tuples(st.integers(1, 8), st.floats(0.01, 3.0), st.integers(2, 30), st.integers(0, 1000))


@given(made_up)
def test_the_place_by_score_is_always_open(made: tuple[int, float, int, int]) -> None:
    layers, spread, groups, seed = made
    scores = np.random.default_rng(seed).normal(size=layers)
    by_score = (-scores).argsort().argsort() + 1
    for place, (low, high) in zip(by_score, places(scores, drawn(layers, spread, 50, seed), groups), strict=True):
        assert 1 <= low <= place <= high <= layers


@given(made_up, st.floats(0.05, 0.99))
def test_smaller_deviations_never_leave_more_places_open(made: tuple[int, float, int, int], factor: float) -> None:
    layers, spread, groups, seed = made
    scores, deviations = np.random.default_rng(seed).normal(size=layers), drawn(layers, spread, 50, seed)
    before, after = places(scores, deviations, groups), places(scores, deviations * factor, groups)
    assert all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(before, after, strict=True))


@given(made_up)
def test_the_order_in_which_layers_are_given_does_not_matter(made: tuple[int, float, int, int]) -> None:
    layers, spread, groups, seed = made
    scores, deviations = np.random.default_rng(seed).normal(size=layers), drawn(layers, spread, 50, seed)
    order = np.random.default_rng(seed + 1).permutation(layers)
    straight = places(scores, deviations, groups)
    assert places(scores[order], deviations[order], groups) == [straight[i] for i in order]


@given(made_up, st.sampled_from([2.0**-10, 0.25, 8.0]))
def test_units_do_not_matter(made: tuple[int, float, int, int], scale: float) -> None:
    layers, spread, groups, seed = made
    scores, deviations = np.random.default_rng(seed).normal(size=layers), drawn(layers, spread, 50, seed)
    assert places(scores * scale, deviations * scale, groups) == places(scores, deviations, groups)


def test_students_t_is_that_of_the_tables() -> None:
    """Two-sided 95% for 1, 3, 11 degrees of freedom, and the normal distribution in the limit."""
    assert [round(half_width(groups, 0.95), 3) for groups in (2, 4, 12)] == [12.706, 3.182, 2.201]
    assert half_width(10**7, 0.95) == pytest.approx(1.959964, abs=1e-5)
    assert widening(10**7, 0.95) == pytest.approx(1.0, abs=1e-5)
    assert widening(12, 0.95) == pytest.approx(1.795885 / 1.644854, abs=1e-6)
