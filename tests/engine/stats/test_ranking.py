"""Ranking: equal to a plain computation, finds planted layers, and reports its uncertainty."""

import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from scipy.stats import t as student

from engine.errors import RequestError
from engine.records.captures import ContrastData, Factors, ResponseText
from engine.records.results import RankedLayer, Ranking
from engine.remedies import Remedy
from engine.stats.groups import group_by_factors
from engine.stats.ranking import _measure, rank_layers
from engine.stats.separation import compute_separation
from engine.store.write import save_activations
from tests.engine.stats.contrasts import (
    FACTORS,
    PERSONAS,
    Sides,
    all_factors,
    capture_of,
    noise,
    numbers_of,
    only_personas,
    planted,
    swapped,
    with_own_texts,
)


def quick(data: ContrastData, seed: int = 0) -> Ranking:
    return rank_layers(data, resamples=200, permutations=200, seed=seed)


def by_layer(ranking: Ranking) -> dict[int, RankedLayer]:
    return {row["layer"]: row for row in ranking["layers"]}


def deep(rng: np.random.Generator, factors: list[Factors], strengths: Sequence[float]) -> list[Sides]:
    """Imitate a model: noise carries over from layer to layer, and states double with depth."""
    pairs, width = len(factors), 24
    carried = [rng.normal(size=(pairs, width)) for _ in range(3)]
    layers = []
    for depth, strength in enumerate(strengths):
        carried = [0.8 * part + 0.6 * rng.normal(size=(pairs, width)) for part in carried]
        shared, one, other = carried
        positive, negative = 30 + shared + one, 30 + shared + other
        positive[:, :3] += strength
        layers.append((positive * 2.0**depth, negative * 2.0**depth))
    return layers


def test_planted_layers_lead_where_the_raw_norm_misses_them() -> None:
    factors = all_factors(8, 2, 6)
    strengths = [0.0, 0.3, 0.6, 2.5, 2.5, 0.6, 0.3, 0.3]
    layers = deep(np.random.default_rng(0), factors, strengths)
    raw = [np.linalg.norm((positive - negative).mean(axis=0)) for positive, negative in layers]
    ranking = rank_layers(capture_of(layers, factors))
    rows = by_layer(ranking)
    assert int(np.argmax(raw)) == 7
    assert {row["layer"] for row in ranking["layers"][:2]} == {3, 4}
    assert {layer for layer, row in rows.items() if row["tied"]} == {3, 4}
    assert all(rows[layer]["rank_high"] <= 2 for layer in (3, 4))
    assert rows[3]["p_value"] <= 0.05
    assert rows[3]["d_prime"] > ranking["chance"] > 0
    assert rows[3]["low"] > rows[3]["null_high"] > rows[3]["null_low"]


def test_persona_specific_directions_are_not_significant() -> None:
    """Every persona shifts its prompts far in its own direction, which says nothing about a new persona."""
    rng = np.random.default_rng(1)
    factors = all_factors(8, 2, 4)
    persona = numbers_of(factors, "persona")
    layers = []
    for _ in range(6):
        positive, negative = noise(rng, len(factors), width=64)
        positive += 9.0 * np.linalg.qr(rng.normal(size=(64, 64)))[0][persona]
        layers.append((positive, negative))
    ranking = rank_layers(capture_of(layers, factors))
    for row in ranking["layers"]:
        assert row["left_out"] == "persona"
        assert row["by_factor"]["topic"]["d_prime"] > 1.0 > row["d_prime"]
        assert row["p_value"] > 0.1
        assert row["tied"]
        assert row["low"] < 0


def test_scores_equal_compute_separation_and_determine_the_ranks() -> None:
    factors = all_factors()
    data = capture_of(planted(np.random.default_rng(2), [0.5, 2.0, 0.0, 1.0], len(factors)), factors)
    separations = compute_separation(data)
    ranking = quick(data)
    scores = [row["d_prime"] for row in ranking["layers"]]
    assert scores == sorted(scores, reverse=True)
    assert [row["rank"] for row in ranking["layers"]] == [1, 2, 3, 4]
    assert sorted(row["layer"] for row in ranking["layers"]) == data["layers"]
    for row in ranking["layers"]:
        separation = separations[row["layer"]]
        assert row["by_factor"] == separation["by_factor"]
        assert row["left_out"] == separation["worst"]
        worst = separation["by_factor"][separation["worst"]]
        assert (row["d_prime"], row["auroc"], row["wrong_way"]) == tuple(worst.values())
        assert row["d_prime"] == min(by["d_prime"] for by in row["by_factor"].values())


def test_rows_are_consistent() -> None:
    factors = all_factors(7, 2, 3)
    ranking = quick(capture_of(planted(np.random.default_rng(3), [0.0, 0.5, 1.0, 1.5, 3.0], len(factors)), factors))
    rows = ranking["layers"]
    for row in rows:
        assert row["low"] <= row["d_prime"] <= row["high"]
        assert row["null_low"] <= row["null_high"]
        assert 1 <= row["rank_low"] <= row["rank"] <= row["rank_high"] <= len(rows)
        assert row["tied"] == (row["rank_low"] == 1)
        assert ranking["smallest_p"] <= row["p_value"] <= 1
        assert 0 <= row["wrong_way"] <= 1
    assert rows[0]["tied"]
    p_values = [row["p_value"] for row in rows]
    assert p_values[0] == min(p_values)


def plain_p_values(layers: Sequence[Sides], factors: list[Factors], factor: str) -> list[float]:
    """Enumerate all swaps of whole groups, score all layers again, and count."""
    groups = numbers_of(factors, factor)

    def scores(signs: Sequence[float]) -> list[float]:
        by_pair = np.array(signs)[groups]
        separations = compute_separation(capture_of([swapped(sides, by_pair) for sides in layers], factors))
        return [layer["by_factor"][factor]["d_prime"] for layer in separations.values()]

    count = groups.max() + 1
    best = [max(scores(signs)) for signs in itertools.product([1.0, -1.0], repeat=count)]
    return [sum(value > score - 1e-9 for value in best) / len(best) for score in scores([1.0] * count)]


def test_p_values_are_exact_if_all_permutations_are_enumerated() -> None:
    factors = only_personas(6, 3)
    layers = planted(np.random.default_rng(4), [0.0, 0.7, 2.0], len(factors))
    ranking = rank_layers(capture_of(layers, factors))
    expected = plain_p_values(layers, factors, "persona")
    assert [row["p_value"] for _, row in sorted(by_layer(ranking).items())] == pytest.approx(expected, abs=1e-12)
    assert (ranking["smallest_p"], ranking["permutations"]) == (1 / 32, 32)
    assert min(expected) == 1 / 32
    assert max(expected) > 0.2


def test_the_p_value_is_the_largest_over_tested_factors_and_the_crossed_test() -> None:
    """Seven topics and six personas are tested; two templates are too few."""
    factors = all_factors(6, 2, 7)
    rng = np.random.default_rng(5)
    layers = planted(rng, [0.0, 0.4, 3.0], len(factors))
    ranking = rank_layers(capture_of(layers, factors))
    each = [plain_p_values(layers, factors, factor) for factor in ("persona", "topic")]
    rows = [row for _, row in sorted(by_layer(ranking).items())]
    for row, persona, topic in zip(rows, *each, strict=True):
        assert row["p_by_factor"] == pytest.approx(
            {"persona": persona, "topic": topic, "crossed": row["p_by_factor"]["crossed"]}, abs=1e-12
        )
        assert row["p_value"] == max(row["p_by_factor"].values())
    assert rows[1]["p_value"] == rows[1]["p_by_factor"]["crossed"] > 0.6
    assert (ranking["smallest_p"], ranking["permutations"]) == (1 / 32, 64)
    assert ranking["tested"] == ["persona", "topic"]


def test_random_permutations_approximate_all_of_them() -> None:
    """2000 of the 8192 swaps of 14 groups: four binomial standard errors of p near 0.3 are 0.04."""
    factors = only_personas(14, 2)
    data = capture_of(planted(np.random.default_rng(6), [0.1, 0.4, 0.6], len(factors)), factors)
    exact, random = (by_layer(rank_layers(data, resamples=50, permutations=number)) for number in (10_000, 2000))
    for layer, row in exact.items():
        assert random[layer]["p_value"] == pytest.approx(row["p_value"], abs=0.04)
        assert random[layer]["null_high"] == pytest.approx(row["null_high"], rel=0.15)


def test_random_permutations_never_give_a_p_value_of_zero() -> None:
    """The true labels count as one permutation: 1 of 201 if no other scores as high."""
    ranking = quick(capture_of(planted(np.random.default_rng(29), [9.0], 40), None))
    assert (ranking["permutations"], ranking["smallest_p"]) == (200, 1 / 201)
    assert [row["p_value"] for row in ranking["layers"]] == [1 / 201]


def test_chance_is_the_95_percent_quantile_of_the_best_permuted_score() -> None:
    factors = only_personas(8, 4)
    layers = planted(np.random.default_rng(7), [0.0] * 5, len(factors))
    ranking = rank_layers(capture_of(layers, factors))
    rows = ranking["layers"]
    assert ranking["chance"] >= max(row["null_high"] for row in rows) * 0.8
    assert all((row["p_value"] > 0.05) == (row["d_prime"] < ranking["chance"]) for row in rows)


def test_the_ranking_is_complete_and_survives_json() -> None:
    factors = all_factors()
    ranking = quick(capture_of(planted(np.random.default_rng(8), [0.0, 2.0], len(factors)), factors))
    assert msgspec.json.decode(msgspec.json.encode(ranking), type=Ranking) == ranking
    assert set(ranking) == Ranking.__required_keys__
    assert all(set(row) == RankedLayer.__required_keys__ for row in ranking["layers"])
    assert ranking["groups"] == {"persona": 4, "template": 3, "topic": 5}
    assert (ranking["confidence"], ranking["resamples"], ranking["seed"]) == (0.95, 200, 0)


def test_the_same_seed_gives_the_same_ranking() -> None:
    data = capture_of(planted(np.random.default_rng(9), [0.0, 1.0, 1.2], 30), None)
    assert quick(data, seed=5) == quick(data, seed=5)
    one, other = by_layer(quick(data, seed=5)), by_layer(quick(data, seed=6))
    for layer, row in one.items():
        assert row["low"] != other[layer]["low"]
        assert row["d_prime"] == other[layer]["d_prime"]


def renamed(factors: list[Factors], seed: int) -> list[Factors]:
    """The same pairs with the names of the personas permuted."""
    names = sorted({pair["persona"] for pair in factors})
    dealt = dict(zip(names, np.random.default_rng(seed).permutation(names).tolist(), strict=True))
    return [Factors(persona=dealt[p["persona"]], template=p["template"], topic=p["topic"]) for p in factors]


def test_persona_names_do_not_change_the_intervals() -> None:
    """One layer is worst for new personas, one for new templates; their deviations use different samples.

    With 4000 resamples the error of their difference is known to within 1%.
    """
    rng = np.random.default_rng(30)
    factors = all_factors(6, 6, 2)
    layers = []
    for factor in ("persona", "template"):
        positive, negative = noise(rng, len(factors))
        positive[:, 0] += 2.0
        positive += 1.2 * rng.normal(size=(6, 24))[numbers_of(factors, factor)]
        layers.append((positive, negative))
    errors = []
    for seed in range(4):
        called = renamed(factors, seed)
        data = capture_of(layers, called)
        work = _measure(data, group_by_factors(called), 4000, 1, seed=0)
        assert work.worst == ["persona", "template"]
        errors.append(float((work.deviations[0] - work.deviations[1]).std()))
    assert max(errors) < 1.08 * min(errors)


def test_pairs_that_are_given_twice_count_once() -> None:
    """As independent pairs, they would shrink the intervals of noise by a factor of 1.4 and its p-values too."""
    layers = deep(np.random.default_rng(3), all_factors(), [0.3, 0.0])
    once = quick(capture_of(layers, None))
    twice = quick(capture_of([repeated_whole(sides) for sides in layers], None))
    assert twice["groups"] == once["groups"] == {"pairs": 60}
    assert not any("share prompts" in warning for warning in once["warnings"])
    assert "the 120 pairs share prompts, so that they count as 60" in twice["warnings"]
    for one, two in zip(once["layers"], twice["layers"], strict=True):
        assert two["layer"] == one["layer"]
        assert two["p_value"] == one["p_value"]
        assert two["d_prime"] == pytest.approx(one["d_prime"], rel=0.01)
        assert two["high"] - two["low"] == pytest.approx(one["high"] - one["low"], rel=0.02)


def repeated_whole(sides: Sides) -> Sides:
    return np.concatenate([sides[0]] * 2), np.concatenate([sides[1]] * 2)


def test_responses_to_few_prompts_are_a_warning() -> None:
    data = capture_of(planted(np.random.default_rng(3), [1.0], 40), None)
    for pair, both in enumerate(zip(data["positive"], data["negative"], strict=True)):
        for side, prompt in enumerate(both):
            prompt["response"] = ResponseText(text=str(prompt["prompt"]), tokens=1 + side, ended=True)
            prompt["prompt"] = f"prompt {pair % 3}"
    ranking = quick(data)
    assert ranking["groups"] == {"pairs": 40}
    said = "the pairs are responses to 3 prompts: the ranking says nothing about responses to others"
    assert said in ranking["warnings"]


def test_pairs_that_all_share_a_prompt_are_refused() -> None:
    data = capture_of(planted(np.random.default_rng(3), [1.0], 40), None)
    for prompt in data["negative"]:
        prompt["prompt"] = "the same"
    refused = re.escape("the 40 pairs share prompts, so that they count as 1: too few to rank layers")
    with pytest.raises(RequestError, match=refused) as error:
        quick(data)
    assert error.value.next_step == "use each prompt in one pair only"


@pytest.mark.parametrize(
    ("negatives", "problem"),
    [
        (1, "the 216 pairs share prompts, so that they count as 1: too few to rank layers"),
        (5, "no persona, template or topic can be held out: they share prompts with the others"),
    ],
)
def test_prompts_that_all_personas_templates_and_topics_share_are_refused(negatives: int, problem: str) -> None:
    factors = all_factors(6, 6, 6)
    data = capture_of(planted(np.random.default_rng(3), [1.0], len(factors)), factors)
    for pair, prompt in enumerate(data["negative"]):
        prompt["prompt"] = str(pair % negatives)
    with pytest.raises(RequestError, match=re.escape(problem)):
        quick(data)


def test_prompts_that_two_personas_share_are_a_warning() -> None:
    """Those that two topics or templates share are not, if they are of one persona."""
    factors = all_factors(6, 6, 6)
    data = capture_of(planted(np.random.default_rng(3), [1.0], len(factors)), factors)
    assert not any("share prompts" in warning for warning in quick(data)["warnings"])
    data["negative"][0]["prompt"] = data["negative"][-6]["prompt"]  # another persona and template, the same topic
    (one, other) = (warning for warning in quick(data)["warnings"] if "share prompts" in warning)
    assert one.startswith("2 of 216 pairs share prompts with pairs of another persona: over personas, intervals")
    assert other.startswith("2 of 216 pairs share prompts with pairs of another template")


def test_layer_numbers_are_kept() -> None:
    factors = all_factors()
    data = capture_of(planted(np.random.default_rng(10), [0.0, 3.0, 1.0], len(factors)), factors)
    names = {0: 4, 1: 9, 2: 20}
    for prompt in (*data["positive"], *data["negative"]):
        prompt["activations"] = {names[layer]: states for layer, states in prompt["activations"].items()}
        prompt["captured_layers"] = list(names.values())
    data["layers"] = list(names.values())
    assert [row["layer"] for row in quick(data)["layers"]] == [9, 20, 4]


def test_the_capture_is_not_modified() -> None:
    layers = planted(np.random.default_rng(11), [1.0], 12)
    before = [side.copy() for side in layers[0]]
    quick(capture_of(layers, None))
    assert all((side == was).all() for side, was in zip(layers[0], before, strict=True))


def test_a_layer_and_its_copy_are_tied() -> None:
    factors = all_factors(8, 2, 3)
    layers = planted(np.random.default_rng(12), [3.0, 0.0], len(factors))
    rows = by_layer(quick(capture_of([layers[0], layers[1], layers[0]], factors)))
    assert (rows[0]["rank_low"], rows[0]["rank_high"]) == (rows[2]["rank_low"], rows[2]["rank_high"]) == (1, 2)
    assert rows[0]["low"] == rows[2]["low"]


@pytest.mark.parametrize("scale", [3.0, 0.1, 1e3])
def test_a_layer_and_its_rescaled_copy_are_tied(scale: float) -> None:
    """They differ by rounding error, which is no evidence."""
    factors = all_factors(8, 2, 3)
    layers = planted(np.random.default_rng(13), [3.0, 3.0], len(factors))
    turn, _ = np.linalg.qr(np.random.default_rng(14).normal(size=(24, 24)))
    positive, negative = layers[0]
    rows = by_layer(quick(capture_of([*layers, (scale * positive @ turn, scale * negative @ turn)], factors)))
    assert rows[0]["d_prime"] == pytest.approx(rows[2]["d_prime"], rel=1e-9)
    assert (rows[0]["rank_low"], rows[0]["rank_high"]) == (rows[2]["rank_low"], rows[2]["rank_high"])
    assert rows[0]["rank_high"] > 1


def test_a_single_layer_ranks_first() -> None:
    (row,) = quick(capture_of(planted(np.random.default_rng(15), [1.0], 12), None))["layers"]
    assert (row["rank"], row["rank_low"], row["rank_high"], row["tied"]) == (1, 1, 1, True)


def median_width(personas: int) -> float:
    factors = only_personas(personas, 60 // personas)
    rng = np.random.default_rng(16)
    persona = numbers_of(factors, "persona")
    layers = []
    for _ in range(12):
        positive, negative = noise(rng, len(factors))
        positive += 0.3 * rng.normal(size=(personas, 24))[persona]
        positive[:, 0] += 2.0
        layers.append((positive, negative))
    rows = quick(capture_of(layers, factors))["layers"]
    return float(np.median([row["high"] - row["low"] for row in rows]))


def test_few_groups_make_wide_intervals() -> None:
    """With the same number of pairs, three personas say little and twenty say far more than four."""
    three, four, twenty = (median_width(personas) for personas in (3, 4, 20))
    assert three > four > 1.3 * twenty
    assert three > 2 * twenty


@pytest.mark.parametrize("personas", [3, 5])
def test_too_few_groups_for_a_test_get_no_small_p_value(personas: int) -> None:
    factors = only_personas(personas, 30 // personas)
    ranking = quick(capture_of(planted(np.random.default_rng(17), [9.0, 9.0], len(factors)), factors))
    assert ranking["smallest_p"] == 1 / 2 ** (personas - 1) > 0.05
    assert [row["p_value"] for row in ranking["layers"]] == [ranking["smallest_p"]] * 2
    assert all(row["d_prime"] > 5 for row in ranking["layers"])
    assert f"{personas} personas are few" in " ".join(ranking["warnings"])


def test_more_layers_make_the_same_score_less_significant() -> None:
    factors = only_personas(10, 3)
    layers = planted(np.random.default_rng(18), [0.8] + [0.0] * 29, len(factors))
    alone, among = (by_layer(quick(capture_of(layers[:number], factors)))[0] for number in (1, 30))
    assert alone["d_prime"] == among["d_prime"]
    assert alone["p_value"] < among["p_value"]


def test_layers_with_equal_classes_score_zero() -> None:
    """Like the first layers of a model, before it has read the words that differ."""
    factors = all_factors(6, 2, 3)
    layers = planted(np.random.default_rng(19), [0.0, 0.0, 3.0], len(factors))
    for layer in (0, 1):
        layers[layer] = (layers[layer][0], layers[layer][0].copy())
    rows = by_layer(quick(capture_of(layers, factors)))
    for layer in (0, 1):
        row = rows[layer]
        assert (row["d_prime"], row["low"], row["high"], row["auroc"], row["wrong_way"]) == (0, 0, 0, 0.5, 0.5)
        assert row["p_value"] == 1
        assert not row["tied"]
        assert (row["null_low"], row["null_high"]) == (0, 0)
    assert rows[2]["rank"] == 1


def test_layers_with_equal_classes_are_all_tied() -> None:
    positive, _ = noise(np.random.default_rng(20), 12)
    ranking = quick(capture_of([(positive, positive), (positive, positive)], None))
    assert [(row["rank_low"], row["rank_high"], row["p_value"]) for row in ranking["layers"]] == [(1, 2, 1.0)] * 2
    assert ranking["chance"] == 0


def refusal(data: ContrastData) -> RequestError:
    with pytest.raises(RequestError) as caught:
        quick(data)
    return caught.value


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_too_few_pairs_are_refused_with_how_to_get_more(pairs: int) -> None:
    data = capture_of([noise(np.random.default_rng(21), pairs)], None)
    for concept, remedy in (("honesty", Remedy.CAPTURE_MORE_PAIRS), (None, Remedy.ADD_PAIRS)):
        data["concept"] = concept
        error = refusal(data)
        assert str(pairs) in error.problem
        assert "at least 4 pairs" in error.expected
        assert error.next_step is remedy


@pytest.mark.parametrize("personas", [1, 2])
def test_pairs_of_one_or_two_groups_of_every_factor_are_refused(personas: int) -> None:
    factors = only_personas(personas, 12)
    error = refusal(capture_of([noise(np.random.default_rng(22), len(factors))], factors))
    assert "too few personas, templates and topics to hold any out" in error.problem
    assert "at least 3" in error.expected
    assert "folds" in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_states_that_are_not_finite_are_refused_and_the_layer_is_named(value: float, side: int) -> None:
    layers = planted(np.random.default_rng(23), [1.0, 1.0, 1.0], 12)
    layers[1][side][7, 3] = value
    error = refusal(capture_of(layers, None))
    assert "layer 1 " in error.problem
    assert "float32" in str(error)


@pytest.mark.parametrize("size", [1.0, 0.1, 1e4])
@pytest.mark.parametrize("pairs", [6, 7, 30])
def test_classes_without_any_spread_are_refused_and_the_layer_is_named(pairs: int, size: float) -> None:
    """All prompts of a class are equal, so d' would be infinite."""
    rng = np.random.default_rng(24)
    sides = planted(rng, [1.0], pairs)[0]
    rigid = (np.tile(size * rng.normal(size=24), (pairs, 1)), np.tile(size * rng.normal(size=24), (pairs, 1)))
    error = refusal(with_own_texts(capture_of([sides, rigid], None)))
    assert "layer 1 " in error.problem
    assert error.expected
    assert error.next_step


def test_a_small_difference_of_large_rigid_states_is_refused_too() -> None:
    """Rounding is not spread: float32 states of norm 700 differ by 0.01 between, but not within, the classes."""
    rng = np.random.default_rng(25)
    one = 140 * rng.normal(size=24)
    rigid = [np.tile(state, (7, 1)).astype(np.float32).astype(np.float64) for state in (one + 0.01, one)]
    assert "layer 0 " in refusal(with_own_texts(capture_of([(rigid[0], rigid[1])], None))).problem


def test_prompts_that_differ_in_one_class_only_are_ranked() -> None:
    rng = np.random.default_rng(26)
    positive, _ = noise(rng, 12)
    negative = np.tile(rng.normal(size=24), (12, 1))
    (row,) = quick(with_own_texts(capture_of([(positive, negative)], None)))["layers"]
    assert np.isfinite([row["d_prime"], row["low"], row["high"]]).all()
    assert row["d_prime"] > 1


def warnings_of(factors: list[Factors] | None, pairs: int) -> str:
    return " / ".join(quick(capture_of([noise(np.random.default_rng(27), pairs)], factors))["warnings"])


def test_enough_groups_and_pairs_give_no_warning() -> None:
    factors = all_factors(6, 6, 6)[::7]
    assert warnings_of(factors, len(factors)) == ""


def test_pairs_without_factors_cause_a_warning() -> None:
    assert "the pairs carry no factors" in warnings_of(None, 40)
    assert "5-fold cross-validation" in warnings_of(None, 40)
    assert "4-fold cross-validation" in warnings_of(None, 4)
    assert "few" not in warnings_of(None, 40)


@pytest.mark.parametrize(("templates", "those"), [(1, "one template"), (2, "two templates")])
def test_a_factor_that_is_not_held_out_causes_a_warning(templates: int, those: str) -> None:
    factors = all_factors(6, templates, 6)
    expected = f"the pairs have {those}, too few to hold any out: the ranking says nothing about other templates"
    assert warnings_of(factors, len(factors)) == expected


def test_missing_labels_cause_a_warning() -> None:
    factors = all_factors(6, 6, 6)
    for number, known in enumerate(factors):
        known["template"], known["topic"] = "", known["topic"] if number else ""
    assert warnings_of(factors, len(factors)).split(" / ") == [
        "the pairs name no template: the ranking says nothing about other templates",
        "1 of 216 pairs have no topic, so that none is held out: the ranking says nothing about other topics",
    ]


def test_prompts_that_personas_share_are_not_taken_for_an_effect() -> None:
    """24 personas against 6 negative prompts: permuting personas finds something in nearly all of these sets."""
    finds, alone = 0, 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        positive, partners = rng.normal(size=(72, 24)), np.arange(72) % 24 % 6
        negative = rng.normal(size=(6, 24))[partners]
        data = with_own_texts(capture_of([(positive, negative)], only_personas(24, 3)))
        data["factors"] = [Factors(persona=f"p{pair % 24}", template="only", topic="only") for pair in range(72)]
        for prompt, partner in zip(data["negative"], partners, strict=True):
            prompt["prompt"] = f"negative {partner}"
        (row,) = rank_layers(data, resamples=199, permutations=199)["layers"]
        finds += row["p_value"] <= 0.05
        alone += row["p_by_factor"]["persona"] <= 0.05
    assert finds <= 6 < 20 <= alone


def test_few_groups_cause_a_warning_with_their_factor() -> None:
    factors = all_factors()
    warned = warnings_of(factors, len(factors))
    assert PERSONAS == 4
    for text in ("4 personas are few", "3 templates are few", "5 topics are few"):
        assert text in warned
    assert "a small p-value says nothing about other personas" in warned


def test_few_pairs_cause_a_warning() -> None:
    assert "12 pairs are few" in warnings_of(None, 12)
    assert "pairs are few" not in warnings_of(None, 20)


def test_all_factors_are_reported_by_name() -> None:
    factors = all_factors()
    rows = quick(capture_of([noise(np.random.default_rng(28), len(factors))], factors))["layers"]
    assert tuple(rows[0]["by_factor"]) == FACTORS
    assert rows[0]["left_out"] in cast("dict[str, object]", rows[0]["by_factor"])


def test_margins_are_intervals_of_score_differences() -> None:
    """Copies of a layer have a margin of 0. For independent layers the errors add in squares."""
    layers = planted(np.random.default_rng(8), [1.0, 1.0, 1.0], 96)
    ranking = rank_layers(capture_of([layers[0], layers[0], layers[2]], only_personas(12, 8)))
    half = {layer: (row["high"] - row["low"]) / 2 for layer, row in by_layer(ranking).items()}
    assert [len(row) for row in ranking["margins"]] == [2, 1]
    assert ranking["margins"][0][0] == 0.0
    assert ranking["margins"][0][1] == ranking["margins"][1][0]
    assert ranking["margins"][1][0] == pytest.approx(np.hypot(half[1], half[2]), rel=0.3)


def test_the_margin_of_two_layers_has_the_fewer_degrees_of_freedom_whichever_comes_first() -> None:
    """Personas limit one layer, with about 2 degrees of freedom, and topics the other."""
    rng, factors = np.random.default_rng(9), all_factors(3, 1, 24)
    layers = []
    for factor in ("persona", "topic"):
        effects = rng.normal(size=(24, 12))[numbers_of(factors, factor)]
        positive, negative = noise(rng, len(factors), 12)
        layers.append((positive + 1 + 2 * effects, negative))
    for order in (layers, layers[::-1]):
        data = capture_of(order, factors)
        work = _measure(data, group_by_factors(factors), 200, 200, 0)
        assert min(work.freedom) < 5 < 10 < max(work.freedom)
        error = float((work.deviations[0] - work.deviations[1]).std())
        assert quick(data)["margins"] == [[pytest.approx(error * student.ppf(0.975, min(work.freedom)), abs=1e-4)]]


def test_few_resamples_limit_the_p_value_of_the_crossed_test() -> None:
    """Permutations of twelve groups could reach 1/2048."""
    factors = all_factors(12, 1, 12)
    data = capture_of(planted(np.random.default_rng(10), [6.0], len(factors)), factors)
    for resamples, smallest in ((99, 0.01), (9999, 1 / 2048)):
        ranking = rank_layers(data, resamples=resamples)
        assert ranking["smallest_p"] == smallest
        assert ranking["layers"][0]["p_value"] == smallest


def test_merged_groups_cause_a_warning() -> None:
    assert "70 topics were held out and resampled in 65 groups" in warnings_of(all_factors(3, 1, 70), 210)
    assert "in 65 groups" not in warnings_of(all_factors(3, 1, 65), 195)
    assert "66 pairs were resampled in 65 groups" in warnings_of(None, 66)
    assert "in 65 groups" not in warnings_of(None, 65)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resamples": 1}, "the number of resamples cannot be 1.*at least 2"),  # a spread needs two
        ({"resamples": 2.5}, "the number of resamples cannot be 2.5"),
        ({"permutations": 0}, "the number of permutations cannot be 0.*at least 1"),
        ({"permutations": True}, "the number of permutations cannot be True"),
        ({"seed": 0.5}, "the seed cannot be 0.5"),
        ({"seed": 2**70}, "the seed cannot be .*0 to 4294967295"),
    ],
)
def test_counts_that_leave_nothing_to_compute_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        rank_layers(capture_of(planted(np.random.default_rng(0), [1.0], 12), None), **options)


def test_the_fewest_resamples_and_permutations_give_finite_numbers() -> None:
    data = capture_of(planted(np.random.default_rng(0), [1.0, 2.0], 60), all_factors(6, 2, 5))
    for row in rank_layers(data, resamples=2, permutations=1)["layers"]:
        assert np.isfinite([row["low"], row["high"], row["p_value"], row["null_low"]]).all()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "this is not a capture but dict"),
        ("smollm2_honesty", "this is not a capture but str"),
        ({"activations": {}}, "this is a capture of prompts"),
    ],
)
def test_what_is_no_contrast_is_refused(data: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        rank_layers(data)


def without_template(data: Any) -> None:
    data["factors"] = [{"persona": "p", "topic": "x"} for _ in data["positive"]]


def with_one_set_of_factors(data: Any) -> None:
    data["factors"] = data["factors"][:1]


def with_no_list_of_factors(data: Any) -> None:
    data["factors"] = iter(data["factors"])


def without_a_negative(data: Any) -> None:
    data["negative"] = data["negative"][1:]


def with_a_wider_prompt(data: Any) -> None:
    data["positive"][3]["activations"][0] = torch.ones(1, 1, 99)


def without_a_layer(data: Any) -> None:
    del data["positive"][3]["activations"][0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_template, r"the factors of pair 0 are .*Expected: a dictionary with template, persona, topic"),
        (with_one_set_of_factors, "there are 60 pairs and 1 sets of factors"),
        (with_no_list_of_factors, "the factors are a list_iterator"),
        (without_a_negative, "the contrast has 60 positive and 59 negative prompts"),
        (with_a_wider_prompt, r"the prompts have states of the widths \[24, 99\] at layer 0"),
        (without_a_layer, "a prompt of the contrast has no states of layer 0"),
    ],
)
def test_a_contrast_whose_parts_do_not_match_is_refused(
    change: Callable[[ContrastData], None], said: str, tmp_path: Path
) -> None:
    data = capture_of(planted(np.random.default_rng(0), [1.0], 60), all_factors())
    change(data)
    for call in (rank_layers, compute_separation, partial(save_activations, name=tmp_path / "mine")):
        with pytest.raises(RequestError, match=said):
            call(data)
    assert not [*tmp_path.iterdir()]
