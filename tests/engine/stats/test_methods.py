"""Methods compared on held-out pairs: by hand, in folds, and the choice among them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

import engine
from engine.errors import RequestError
from engine.records.captures import Factors
from engine.records.files import METHODS, Method, MethodScore
from engine.stats.direction import extract_direction, extract_directions
from engine.stats.methods import best_method, compare_methods
from tests.engine.stats.captures import one_prompt, random_states
from tests.engine.stats.contrasts import (
    Sides,
    all_factors,
    auroc_by_hand,
    capture_of,
    d_prime_by_hand,
    noise,
    only_personas,
    planted,
)


def correlated(seed: int, pairs: int) -> Sides:
    """Noise that hides the shift from the mean difference, but not from a discriminant."""
    rng = np.random.default_rng(seed)
    mix = np.eye(10)
    mix[0, 0], mix[1, 0] = 10.0, 9.0
    positive, negative = (rng.normal(size=(pairs, 10)) @ mix.T for _ in range(2))
    positive[:, 0] += 3.0
    return positive, negative


def held_out_by_hand(sides: Sides, folds: Sequence[object], method: str) -> tuple[float, float]:
    """AUROC and d' of a method, with a loop over the folds and `extract_direction` for each."""
    positive, negative = sides
    projected = np.zeros(len(positive)), np.zeros(len(positive))
    for fold in set(folds):
        out = np.array([one == fold for one in folds])
        direction = extract_direction(capture_of([(positive[~out], negative[~out])], None), 0, method)
        middle = (direction["positive_mean"] + direction["negative_mean"]) / 2
        for side, states in zip(projected, sides, strict=True):
            side[out] = states[out] @ direction["vector"].double().numpy() - middle
    return auroc_by_hand(projected), d_prime_by_hand(projected)


def by_method(scores: list[MethodScore]) -> dict[Method, MethodScore]:
    return {score["method"]: score for score in scores}


@pytest.mark.parametrize("method", METHODS)
def test_each_persona_is_scored_by_the_direction_of_the_others(method: Method) -> None:
    factors = all_factors(personas=5)
    sides = planted(np.random.default_rng(3), [0.8], len(factors))[0]
    found = compare_methods(capture_of([sides], factors), 0)
    auroc, d_prime = held_out_by_hand(sides, [pair["persona"] for pair in factors], method)
    assert (found["layer"], found["held_out"]) == (0, "persona")
    score = by_method(found["scores"])[method]
    assert score["auroc"] == pytest.approx(auroc, abs=1e-9)
    assert score["d_prime"] == pytest.approx(d_prime, rel=1e-4)


def test_the_mean_difference_scores_as_in_the_ranking() -> None:
    factors = all_factors(personas=12)
    data = capture_of(planted(np.random.default_rng(4), [0.0, 0.5], len(factors)), factors)
    for layer in (0, 1):
        score = by_method(compare_methods(data, layer)["scores"])["mean_diff"]
        ranked = engine.compute_separation(data)[layer]["by_factor"]["persona"]
        assert score["auroc"] == pytest.approx(ranked["auroc"], abs=1e-9)
        assert score["d_prime"] == pytest.approx(ranked["d_prime"], rel=1e-9)


def test_many_personas_are_held_out_in_twelve_folds() -> None:
    factors = only_personas(30, 2)
    sides = planted(np.random.default_rng(5), [0.7], len(factors))[0]
    numbers = {name: place for place, name in enumerate(sorted({pair["persona"] for pair in factors}))}
    folds = [numbers[pair["persona"]] % 12 for pair in factors]
    found = by_method(compare_methods(capture_of([sides], factors), 0)["scores"])
    for method in ("mean_diff", "lda"):
        auroc, _ = held_out_by_hand(sides, folds, method)
        assert dict(found)[method]["auroc"] == pytest.approx(auroc, abs=1e-9)


def test_pairs_without_factors_are_held_out_in_five_folds() -> None:
    sides = planted(np.random.default_rng(6), [0.7], 43)[0]
    found = compare_methods(capture_of([sides], None), 0)
    auroc, _ = held_out_by_hand(sides, [pair % 5 for pair in range(43)], "lda")
    assert found["held_out"] == "pairs"
    assert by_method(found["scores"])["lda"]["auroc"] == pytest.approx(auroc, abs=1e-9)


def test_where_personas_do_not_vary_templates_are_held_out() -> None:
    factors = all_factors(personas=1, templates=4, topics=3)
    found = compare_methods(capture_of([noise(np.random.default_rng(7), 12)], factors), 0)
    assert found["held_out"] == "template"


def test_a_discriminant_is_chosen_where_it_separates_held_out_pairs_better() -> None:
    factors = only_personas(10, 12)
    data = capture_of([correlated(0, 120)], factors)
    found = compare_methods(data, 0)
    scores = by_method(found["scores"])
    assert scores["lda"]["auroc"] > scores["mean_diff"]["auroc"] + 0.1
    assert found["best"] in {"lda", "logistic"}
    assert [score["auroc"] for score in found["scores"]] == sorted((s["auroc"] for s in scores.values()), reverse=True)
    chosen = extract_direction(data, 0, "auto")
    assert chosen["method"] == found["best"]
    assert chosen["methods"] == found
    assert torch.equal(chosen["vector"], extract_direction(data, 0, found["best"])["vector"])


def scores_of(**aurocs: float) -> list[MethodScore]:
    made = [MethodScore(method=method, auroc=aurocs[method], d_prime=0.0) for method in METHODS if method in aurocs]
    return sorted(made, key=lambda score: -score["auroc"])


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        (scores_of(mean_diff=0.90, pca=0.7, logistic=0.95, lda=0.97), "lda"),
        (scores_of(mean_diff=0.97, pca=0.7, logistic=0.95, lda=0.97), "mean_diff"),
        (scores_of(mean_diff=0.9651, lda=0.97), "mean_diff"),
        (scores_of(mean_diff=0.9649, lda=0.97), "lda"),
        (scores_of(mean_diff=0.9649, lda=0.97, logistic=0.971), "logistic"),
        (scores_of(lda=0.97), "lda"),
        ([], "mean_diff"),
    ],
)
def test_the_mean_difference_wins_ties(scores: list[MethodScore], best: str) -> None:
    assert best_method(scores) == best


@pytest.mark.parametrize("factors", [None, only_personas(2, 1)])
def test_too_few_pairs_give_no_scores_and_the_mean_difference(factors: list[Factors] | None) -> None:
    data = capture_of([noise(np.random.default_rng(8), 2)], factors)
    assert compare_methods(data, 0) == {"layer": 0, "held_out": "", "scores": [], "best": "mean_diff"}
    assert extract_direction(data, 0, "auto")["method"] == "mean_diff"


def test_equal_classes_give_no_scores() -> None:
    same = np.ones((8, 4)), np.ones((8, 4))
    assert compare_methods(capture_of([same], None), 0)["scores"] == []


def test_the_methods_are_compared_at_the_given_layer_or_the_middle_one() -> None:
    """Only the last layer needs a discriminant."""
    factors = only_personas(10, 12)
    easy = planted(np.random.default_rng(9), [4.0], 120, width=10)[0]
    data = capture_of([easy, easy, correlated(1, 120)], factors)
    assert {direction["method"] for direction in extract_directions(data, "auto").values()} == {"mean_diff"}
    found = extract_directions(data, "auto", leading=2)
    assert {direction["method"] for direction in found.values()} == {compare_methods(data, 2)["best"]} != {"mean_diff"}
    assert all(direction["methods"]["layer"] == 2 for direction in found.values())
    assert "methods" not in extract_directions(data, "lda")[0]


def test_six_hundred_of_many_pairs_are_used() -> None:
    """The result differs from that of all pairs, and is the same every time."""
    rng = np.random.default_rng(10)
    sides = planted(rng, [0.3], 900, width=6)[0]
    data = capture_of([sides], only_personas(30, 30))
    once, again = compare_methods(data, 0), compare_methods(data, 0)
    assert once == again
    every = engine.compute_separation(data)[0]["by_factor"]["persona"]
    assert by_method(once["scores"])["mean_diff"]["auroc"] == pytest.approx(every["auroc"], abs=0.03)
    share = by_method(once["scores"])["mean_diff"]["auroc"] * 600**2 * 2
    assert share == pytest.approx(round(share), abs=1e-6)


def test_states_that_are_not_finite_and_prompts_are_refused() -> None:
    sides = planted(np.random.default_rng(11), [1.0], 12)[0]
    sides[0][3, 2] = np.inf
    with pytest.raises(RequestError, match="layer 0 has non-finite values"):
        compare_methods(capture_of([sides], None), 0)
    with pytest.raises(RequestError, match=r"layer 4 was not captured"):
        compare_methods(capture_of([sides], None), 4)
    with pytest.raises(RequestError, match="this is a capture of prompts"):
        compare_methods(one_prompt(random_states(4, 0)), 3)  # type: ignore[arg-type]  # wrong type on purpose
