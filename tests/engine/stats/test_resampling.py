"""Bootstrap and permutations: correct, distinct, reproducible, and in bounded memory."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from engine.stats import resampling
from engine.stats.groups import PAIRS, pairs_of
from engine.stats.held_out import hold_out
from engine.stats.moments import UnitMoments
from engine.stats.resampling import (
    all_permutations,
    as_students_t,
    bootstrap_deviations,
    distinct_permutations,
    half_width,
    permutation_null,
    rank_intervals,
)
from engine.stats.separation import compute_separation
from tests.engine.stats.contrasts import Sides, capture_of, noise, numbers_of, only_personas, planted, swapped

D_PRIME = UnitMoments.d_prime


def moments_of(layers: list[Sides], groups: torch.Tensor, factor: str = "persona") -> list[UnitMoments]:
    sides = [(torch.from_numpy(positive), torch.from_numpy(negative)) for positive, negative in layers]
    return [hold_out(pairs_of(*layer), {factor: groups}).by_factor[factor].moments for layer in sides]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_layers(groups: torch.Tensor, factor: str = "persona") -> list[UnitMoments]:
    return moments_of(planted(np.random.default_rng(0), [0.0, 1.0], len(groups)), groups, factor)


def shuffle_all(layers: list[UnitMoments], permutations: int, seed: int = 0) -> torch.Tensor:
    return torch.stack([permutation_null(moments, permutations, seeded(seed)) for moments in layers])


@pytest.fixture
def signs_used(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The signs that `d_prime` is called with, in order."""
    return record(monkeypatch, "signs")


@pytest.fixture
def weights_used(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    return record(monkeypatch, "weights")


def record(monkeypatch: pytest.MonkeyPatch, name: str) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []

    def recorded(
        moments: UnitMoments, weights: torch.Tensor | None = None, signs: torch.Tensor | None = None
    ) -> torch.Tensor:
        used = {"weights": weights, "signs": signs}[name]
        assert used is not None
        seen.append(used)
        return D_PRIME(moments, weights, signs)

    monkeypatch.setattr(UnitMoments, "d_prime", recorded)
    return seen


@pytest.mark.parametrize("count", [2, 3, 5, 8, 11, 14])
def test_every_permutation_is_enumerated_once_up_to_swapping_all(count: int, signs_used: list[torch.Tensor]) -> None:
    groups = torch.arange(count)
    scores = shuffle_all(two_layers(groups)[:1], 10_000)
    signs = torch.cat(signs_used, dim=1)
    assert scores.shape == (1, signs.shape[1]) == (1, 2 ** (count - 1))
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    alike = {tuple((column * column[0]).tolist()) for column in signs.T}  # equal up to swapping all labels
    assert len(alike) == signs.shape[1]
    assert (1.0,) * count in alike  # the true labels


def test_the_true_labels_are_among_all_permutations() -> None:
    factors = only_personas(6, 4)
    layers = planted(np.random.default_rng(1), [0.5, 2.0], len(factors))
    groups = torch.from_numpy(numbers_of(factors, "persona"))
    scores = shuffle_all(moments_of(layers, groups), 32)
    for row, layer in zip(scores, compute_separation(capture_of(layers, factors)).values(), strict=True):
        assert (row - layer["by_factor"]["persona"]["d_prime"]).abs().min() < 1e-9


def test_permutations_equal_compute_separation_on_swapped_prompts() -> None:
    factors = only_personas(5, 3)
    layers = planted(np.random.default_rng(2), [0.0, 1.5], len(factors))
    groups = torch.from_numpy(numbers_of(factors, "persona"))
    scores = shuffle_all(moments_of(layers, groups), 10_000)
    from_scratch = []
    for signs in itertools.product([1.0, -1.0], repeat=5):
        by_pair = np.array(signs)[groups.numpy()]
        separations = compute_separation(capture_of([swapped(sides, by_pair) for sides in layers], factors))
        from_scratch.append([layer["by_factor"]["persona"]["d_prime"] for layer in separations.values()])
    assert len(from_scratch) == 2 * scores.shape[1]  # each permutation and its mirror image
    expected = sorted([tuple(row) for row in from_scratch])[::2]
    np.testing.assert_allclose(sorted(map(tuple, scores.T.tolist())), expected, rtol=1e-9, atol=1e-9)


def test_pairs_of_a_group_are_swapped_together(signs_used: list[torch.Tensor]) -> None:
    factors = only_personas(20, 2)
    groups = torch.from_numpy(numbers_of(factors, "persona"))
    shuffle_all(two_layers(groups), 50)
    for signs in signs_used:
        assert signs.shape == (20, 50)  # one for each group
        assert len({tuple(column) for column in signs.T.tolist()}) == 50


def test_pairs_without_factors_are_swapped_one_by_one_and_not_by_fold(signs_used: list[torch.Tensor]) -> None:
    shuffle_all(two_layers(torch.arange(30), PAIRS), 200)
    for signs in signs_used:
        assert signs.shape == (30, 200)
        assert len({tuple(row) for row in signs.tolist()}) == 30


def test_random_permutations_are_balanced() -> None:
    """Each label is swapped in half of 4000 permutations, within four standard errors of 1 / (2 √4000)."""
    signs = torch.cat(list(resampling._signs(50, 4000, seeded())), dim=1)
    assert signs.shape == (50, 4000)
    assert ((signs < 0).double().mean(dim=1) - 0.5).abs().max() < 4 * 0.5 / math.sqrt(4000)


Resample = Callable[[int, int], torch.Tensor]


def shuffle(number: int, seed: int) -> torch.Tensor:
    return shuffle_all(two_layers(torch.arange(20), PAIRS), number, seed)


def bootstrap(number: int, seed: int) -> torch.Tensor:
    layers = two_layers(torch.arange(20), PAIRS)
    return torch.stack([bootstrap_deviations(moments, number, seeded(seed)) for moments in layers])


@pytest.mark.parametrize("resample", [shuffle, bootstrap])
def test_the_same_seed_gives_the_same_resamples(resample: Resample) -> None:
    assert torch.equal(resample(1200, 3), resample(1200, 3))
    assert not torch.equal(resample(1200, 3), resample(1200, 4))


@pytest.mark.parametrize("resample", [shuffle, bootstrap])
def test_more_resamples_begin_with_the_fewer(resample: Resample) -> None:
    few, many = resample(1000, 0), resample(2500, 0)
    assert many.shape == (2, 2500)
    begun = many[:, :1000]
    torch.testing.assert_close(begun - begun.mean(dim=1, keepdim=True), few - few.mean(dim=1, keepdim=True))


def test_permutations_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = two_layers(torch.arange(13))
    in_chunks = shuffle_all(layers, 10_000)
    monkeypatch.setattr(resampling, "_AT_ONCE", 1_000_000)
    in_one = shuffle_all(layers, 10_000)
    assert in_chunks.shape == in_one.shape == (2, 4096)
    torch.testing.assert_close(in_chunks, in_one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("number", [1, 999, 1000, 1001, 5500])
def test_at_most_a_thousand_permutations_are_in_memory(
    number: int, signs_used: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shuffle(number, 0).shape == (2, number)
    assert max(signs.shape[1] for signs in signs_used) <= 1000
    weights_used = record(monkeypatch, "weights")
    assert bootstrap(number, 0).shape == (2, number)
    assert max(weights.shape[1] for weights in weights_used) <= 1000


def test_weights_are_shared_by_group_and_by_layer_and_none_is_lost(weights_used: list[torch.Tensor]) -> None:
    factors = only_personas(6, 4)
    groups = torch.from_numpy(numbers_of(factors, "persona"))
    for moments in two_layers(groups):
        bootstrap_deviations(moments, 300, seeded())
    first, second = weights_used
    assert torch.equal(first, second)
    assert first.shape == (6, 300)
    assert first.min() > 0
    torch.testing.assert_close(first.mean(dim=0), torch.ones(300, dtype=torch.float64))


def test_deviations_are_those_of_a_capture_with_those_weights(weights_used: list[torch.Tensor]) -> None:
    """Up to the mean over resamples and the correction for few groups."""
    factors = only_personas(6, 4)
    groups = torch.from_numpy(numbers_of(factors, "persona"))
    (moments,) = moments_of([noise(np.random.default_rng(3), 24)], groups)
    deviations = bootstrap_deviations(moments, 50, seeded())
    scores = moments.d_prime(weights=weights_used[0])
    torch.testing.assert_close(deviations, (scores - scores.mean()) * math.sqrt(7 / 5), rtol=1e-12, atol=1e-12)


def test_the_spread_of_a_mean_is_the_textbook_standard_error() -> None:
    """If only the mean difference varies between resamples, d' is that mean over a constant.

    On a single axis, each group has its own difference, and much larger midpoints of opposite sign set the spread. Four
    standard errors of a variance estimated from 20,000 resamples are within 6%.
    """
    rng = np.random.default_rng(4)
    count = 8
    gaps = 1 + 0.1 * rng.normal(size=count)
    middles = np.tile([-100.0, 100.0], count)
    groups = np.repeat(np.arange(count), 2)
    positive = (middles + gaps[groups] / 2)[:, None]
    negative = (middles - gaps[groups] / 2)[:, None]
    (moments,) = moments_of([(positive, negative)], torch.from_numpy(groups))
    deviations = bootstrap_deviations(moments, 20_000, seeded())
    spread = np.sqrt(middles.var(ddof=1))
    expected = gaps.std(ddof=1) / np.sqrt(count) / spread
    assert deviations.std().item() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(
    ("count", "permutations", "number", "every"),
    [
        (2, 10_000, 2, True),
        (6, 10_000, 32, True),
        (6, 32, 32, True),
        (6, 31, 31, False),
        (14, 10_000, 8192, True),
        (15, 10_000, 10_000, False),
        (40, 10_000, 10_000, False),
        (5000, 10_000, 10_000, False),
    ],
)
def test_the_number_of_distinct_permutations(count: int, permutations: int, number: int, every: bool) -> None:
    assert distinct_permutations(count, permutations) == number
    assert all_permutations(count, permutations) is every


Array = NDArray[np.float64]
MANY = 10_000
"""Enough groups for Student's t to equal the normal distribution."""


def places(
    scores: Array | list[float], deviations: Array, groups: int = MANY, confidence: float = 0.95
) -> list[tuple[int, int]]:
    given_scores = torch.tensor(np.asarray(scores, dtype=np.float64))
    return rank_intervals(given_scores, torch.from_numpy(deviations), [groups - 1] * len(given_scores), confidence)


def drawn(layers: int, spread: float, resamples: int = 400, seed: int = 0) -> Array:
    return spread * np.random.default_rng(seed).normal(size=(layers, resamples))


def by_hand(scores: Array, deviations: Array, groups: int, confidence: float) -> list[tuple[int, int]]:
    """Compare each layer with every other, with loops over layers and resamples."""
    found = []
    for one in range(len(scores)):
        others = [j for j in range(len(scores)) if j != one]
        errors = {j: np.std(deviations[j] - deviations[one], ddof=1) for j in others}
        higher, lower = [], []
        for draw in range(deviations.shape[1]):
            moved = [(deviations[j, draw] - deviations[one, draw]) / errors[j] for j in others]
            higher.append(max(moved))
            lower.append(max(-value for value in moved))
        bounds = [student.isf(norm.sf(np.quantile(moved, confidence)), groups - 1) for moved in (lower, higher)]
        better = [j for j in others if (scores[j] - scores[one]) / errors[j] > bounds[0]]
        worse = [j for j in others if (scores[one] - scores[j]) / errors[j] > bounds[1]]
        found.append((1 + len(better), len(scores) - len(worse)))
    return found


def test_layers_far_apart_have_one_rank_each() -> None:
    assert places([1.0, 5.0, 2.0, -3.0], drawn(4, 0.01)) == [(3, 3), (1, 1), (2, 2), (4, 4)]


def test_only_the_best_layer_is_certain() -> None:
    assert places([1.0, 9.0, 1.1, 0.9], drawn(4, 0.5)) == [(2, 4), (1, 1), (2, 4), (2, 4)]


def test_layers_with_large_deviations_are_all_tied() -> None:
    assert places([1.0, 1.2, 1.1], drawn(3, 5.0)) == [(1, 3)] * 3


def test_two_leaders_share_two_ranks_and_the_others_the_rest() -> None:
    assert places([3.0, 0.0, 3.01, 0.01], drawn(4, 0.1)) == [(1, 2), (3, 4), (1, 2), (3, 4)]


def test_a_copy_of_a_layer_is_tied_with_it() -> None:
    deviations = drawn(3, 0.1)
    deviations[2] = deviations[0]
    assert places([4.0, 1.0, 4.0], deviations) == [(1, 2), (3, 3), (1, 2)]


def test_identical_layers_are_all_tied() -> None:
    assert places([2.0, 2.0, 2.0], np.tile(drawn(1, 0.3), (3, 1))) == [(1, 3)] * 3


def test_a_single_layer_is_first_and_last() -> None:
    assert places([1.0], drawn(1, 0.3)) == [(1, 1)]


def test_common_deviations_do_not_widen_rank_intervals() -> None:
    """Layers share resamples: their intervals overlap widely, but those of their differences exclude 0."""
    together = np.tile(drawn(1, 10.0), (3, 1)) + drawn(3, 0.01, seed=1)
    assert places([1.0, 3.0, 2.0], together) == [(3, 3), (1, 1), (2, 2)]
    assert places([1.0, 3.0, 2.0], drawn(3, 10.0)) == [(1, 3)] * 3


def test_few_groups_widen_rank_intervals() -> None:
    scores, deviations = np.linspace(0.0, 2.0, 6), drawn(6, 0.2)
    widths = [sum(high - low for low, high in places(scores, deviations, groups)) for groups in (2, 3, 5, 20, MANY)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]


@pytest.mark.slow
def test_each_of_many_equal_layers_is_tied_with_the_best() -> None:
    """Six groups and 30 layers of one population: with Student's t for one layer, it is so in 81% of sets."""
    rng, groups, tied = np.random.default_rng(1), 6, 0
    for _ in range(200):
        values = rng.normal(size=(30, groups))
        weights = rng.exponential(size=(groups, 500))
        resampled = values @ (weights / weights.sum(axis=0))
        deviations = (resampled - resampled.mean(axis=1, keepdims=True)) * np.sqrt((groups + 1) / (groups - 1))
        tied += places(values.mean(axis=1), deviations, groups)[0][0] == 1
    assert tied / 200 >= 0.88


def test_the_fewest_groups_of_any_layer_decide() -> None:
    """Scores 2.3 standard errors apart: more than the 1.7 of 49 degrees of freedom, less than the 2.9 of two."""
    deviations = torch.from_numpy(drawn(2, 1.0, resamples=4000))
    error = float((deviations[1] - deviations[0]).std())
    scores = torch.tensor([0.0, 2.3 * error], dtype=torch.float64)
    assert rank_intervals(scores, deviations, [49, 49], 0.95) == [(2, 2), (1, 1)]
    for freedom in ([2.0, 49.0], [49.0, 2.0], [2.0, 2.0]):
        assert rank_intervals(scores, deviations, freedom, 0.95) == [(1, 2), (1, 2)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_rank_intervals_equal_a_plain_loop(seed: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=7)
    deviations = rng.normal(size=(7, 7)) @ drawn(7, 0.15, resamples=150, seed=seed)  # layers move together
    assert places(scores, deviations, 12, confidence) == by_hand(scores, deviations, 12, confidence)


made_up = st.tuples(st.integers(1, 8), st.floats(0.01, 3.0), st.integers(2, 30), st.integers(0, 1000))


@given(made_up)
def test_the_rank_by_score_is_always_in_the_interval(made: tuple[int, float, int, int]) -> None:
    layers, spread, groups, seed = made
    scores = np.random.default_rng(seed).normal(size=layers)
    by_score = (-scores).argsort().argsort() + 1
    for place, (low, high) in zip(by_score, places(scores, drawn(layers, spread, 50, seed), groups), strict=True):
        assert 1 <= low <= place <= high <= layers


@given(made_up, st.floats(0.05, 0.99))
def test_smaller_deviations_never_widen_rank_intervals(made: tuple[int, float, int, int], factor: float) -> None:
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


def test_students_t_matches_published_tables() -> None:
    """Two-sided 95% for 1, 3 and 11 degrees of freedom, and the limit of the normal distribution."""
    assert [round(half_width(freedom, 0.95), 3) for freedom in (1, 3, 11)] == [12.706, 3.182, 2.201]
    assert half_width(10**7, 0.95) == pytest.approx(1.959964, abs=1e-5)
    assert as_students_t(3.0, 10**7) == pytest.approx(3.0, abs=1e-5)
    assert as_students_t(1.644854, 11) == pytest.approx(1.795885, abs=1e-5)
    assert as_students_t(3.090232, 11) == pytest.approx(4.024701, abs=1e-5)
