"""Held-out projections: equal to a plain loop and consistent with the held-out separation."""

from collections.abc import Sequence

import numpy as np
import pytest

from engine.errors import RequestError
from engine.records.captures import Factors
from engine.stats.classes import project_sides
from engine.stats.ranking import rank_layers
from engine.stats.separation import compute_separation
from tests.engine.stats.captures import one_prompt, random_states
from tests.engine.stats.contrasts import (
    all_factors,
    auroc_by_hand,
    capture_of,
    noise,
    planted,
    projected_by_hand,
    summaries_of,
    values_of,
)

STRENGTHS = [0.0, 1.0, 3.0]


def root_mean_variance(sides: Sequence[list[float]]) -> float:
    return float(np.sqrt(np.mean([np.var(side, ddof=1) for side in sides])))


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("factors", [all_factors(), None], ids=["factors", "no factors"])
def test_the_class_means_are_d_prime_apart_in_units_of_spread(factors: list[Factors] | None, layer: int) -> None:
    data = capture_of(planted(np.random.default_rng(0), STRENGTHS, 60), factors)
    sides = project_sides(data, layer)
    separation = compute_separation(data)[layer]
    assert sides["layer"] == layer
    assert sides["left_out"] == separation["worst"]
    worst = separation["by_factor"][separation["worst"]]
    assert {key: dict(sides)[key] for key in worst} == worst
    assert np.mean(sides["positive"]) - np.mean(sides["negative"]) == pytest.approx(worst["d_prime"], abs=1e-9)
    assert np.mean(sides["positive"]) + np.mean(sides["negative"]) == pytest.approx(0, abs=1e-9)
    assert root_mean_variance([sides["positive"], sides["negative"]]) == pytest.approx(1)


@pytest.mark.parametrize("layer", range(3))
def test_projections_equal_a_loop_over_the_groups(layer: int) -> None:
    factors = all_factors()
    layers = planted(np.random.default_rng(1), STRENGTHS, 60)
    sides = project_sides(capture_of(layers, factors), layer)
    by_hand = projected_by_hand(layers[layer], values_of(factors, sides["left_out"]))
    middle = (by_hand[0].mean() + by_hand[1].mean()) / 2
    spread = np.sqrt((by_hand[0].var(ddof=1) + by_hand[1].var(ddof=1)) / 2)
    np.testing.assert_allclose(sides["positive"], (by_hand[0] - middle) / spread, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(sides["negative"], (by_hand[1] - middle) / spread, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("layer", range(3))
def test_auroc_and_misordered_share_match_the_projections(layer: int) -> None:
    data = capture_of(planted(np.random.default_rng(2), STRENGTHS, 60), all_factors())
    sides = project_sides(data, layer)
    positive, negative = np.array(sides["positive"]), np.array(sides["negative"])
    assert sides["wrong_way"] == pytest.approx((positive < negative).mean())
    assert sides["auroc"] == pytest.approx(auroc_by_hand((positive, negative)))


def test_pairs_with_nothing_in_common_do_not_look_separated() -> None:
    """Without holding out, 20 pairs of noise in 200 dimensions would look far apart."""
    sides = project_sides(capture_of([noise(np.random.default_rng(3), 20, width=200)], None), 0)
    assert abs(sides["d_prime"]) < 1.5
    assert 0.2 < sides["wrong_way"] < 0.8


def test_the_scale_of_the_states_does_not_matter() -> None:
    positive, negative = planted(np.random.default_rng(4), [2.0], 30)[0]
    one, other = (project_sides(capture_of([(positive * by, negative * by)], None), 0) for by in (1.0, 1000.0))
    np.testing.assert_allclose(one["positive"], other["positive"], rtol=1e-6)


def test_a_layer_that_was_not_captured_is_refused_with_those_that_were() -> None:
    data = capture_of(planted(np.random.default_rng(5), [1.0, 1.0], 10), None)
    with pytest.raises(RequestError, match=r"layer 7 was not captured\. Expected: one of \[0, 1\]"):
        project_sides(data, 7)


def test_the_number_of_folds_is_that_of_four_pairs() -> None:
    data = capture_of(planted(np.random.default_rng(5), [1.0, 1.0], 4), None)
    assert project_sides(data, 0)["folds"] == 4


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        (None, r"3 pairs are too few.*Next: capture more"),
        ([Factors(persona="p", template="t", topic="one")] * 6, r"too few personas.*Next: vary a factor"),
    ],
)
def test_without_groups_to_hold_out_nothing_is_projected(factors: list[Factors] | None, said: str) -> None:
    """Three pairs, or six pairs with a single persona, template and topic."""
    pairs = len(factors) if factors else 3
    with pytest.raises(RequestError, match=said):
        project_sides(capture_of([noise(np.random.default_rng(6), pairs)], factors), 0)


def test_pairs_that_share_a_prompt_are_told_so_and_not_to_capture_more() -> None:
    data = capture_of([noise(np.random.default_rng(6), 6)], None)
    for prompt in data["negative"]:
        prompt["prompt"] = "the same"
    with pytest.raises(RequestError, match=r"the 6 pairs share prompts.*Next: use each prompt in one pair only"):
        project_sides(data, 0)


@pytest.mark.parametrize("apart", [0.0, 4.0])
def test_classes_without_spread_are_refused(apart: float) -> None:
    """Equal classes, or a difference that is the same in every pair."""
    with pytest.raises(RequestError):
        project_sides(capture_of([(np.full((6, 4), apart), np.zeros((6, 4)))], None), 0)


def test_classes_with_only_rounding_spread_are_refused() -> None:
    same = np.tile(np.random.default_rng(7).normal(size=(1, 24)), (6, 1))
    with pytest.raises(RequestError):
        project_sides(capture_of([(same + 0.1, same)], None), 0)


def test_states_that_are_not_finite_are_refused() -> None:
    positive, negative = noise(np.random.default_rng(8), 8)
    positive[2, 3] = np.nan
    with pytest.raises(RequestError):
        project_sides(capture_of([(positive, negative)], None), 0)


def test_prompts_have_no_classes() -> None:
    with pytest.raises(RequestError):
        project_sides(one_prompt(random_states(4, 0)), 3)  # type: ignore[arg-type]  # wrong type on purpose


def test_a_summary_counts_projections_and_names_the_most_misordered_pairs() -> None:
    data = capture_of(planted(np.random.default_rng(5), STRENGTHS, 60), all_factors())
    for summary in summaries_of(data):
        sides = project_sides(data, summary["layer"])
        both = [*sides["positive"], *sides["negative"]]
        assert summary["left_out"] == sides["left_out"]
        assert (summary["low"], summary["high"]) == (min(both), max(both))
        edges = np.linspace(min(both), max(both), len(summary["positive"]) + 1)
        assert summary["positive"] == np.histogram(sides["positive"], edges)[0].tolist()
        assert summary["negative"] == np.histogram(sides["negative"], edges)[0].tolist()
        gaps = np.subtract(sides["positive"], sides["negative"])
        assert summary["wrong_total"] == (gaps < 0).sum()
        assert "tied_total" not in summary
        assert [pair["pair"] for pair in summary["wrong"]] == np.argsort(gaps)[: min((gaps < 0).sum(), 20)].tolist()
        assert [pair["gap"] for pair in summary["wrong"]] == pytest.approx(np.sort(gaps)[: len(summary["wrong"])])


def test_the_misordered_share_is_that_of_the_counts_with_half_of_the_ties() -> None:
    """The share said 58% where the count said 8 of 24."""
    rng = np.random.default_rng(11)
    positive, negative = noise(rng, 24)
    positive[1::2] = negative[1::2]
    data = capture_of([(positive, negative)], all_factors(4, 1, 6))
    ((summary,), sides) = summaries_of(data), project_sides(data, 0)
    assert summary["tied_total"] == 12
    assert 0 < summary["wrong_total"] == len(summary["wrong"]) < 12
    assert sides["wrong_way"] == pytest.approx((summary["wrong_total"] + summary["tied_total"] / 2) / 24)
    ranking = rank_layers(data, resamples=99, permutations=99)
    assert ranking["layers"][0]["wrong_way"] == sides["wrong_way"]


def test_a_layer_at_which_the_prompts_do_not_differ_has_no_summary() -> None:
    layers = planted(np.random.default_rng(6), STRENGTHS, 60)
    layers[1] = (np.zeros_like(layers[1][0]), np.zeros_like(layers[1][1]))
    assert [summary["layer"] for summary in summaries_of(capture_of(layers, all_factors()))] == [0, 2]
