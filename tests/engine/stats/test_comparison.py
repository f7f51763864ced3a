"""Comparisons: cosines against numpy, and the chance level and ceiling against planted directions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engine.errors import RequestError
from engine.records.captures import ContrastData, Factors
from engine.records.files import CaptureRecord
from engine.records.results import ComparedLayer
from engine.stats.comparison import compare_captures, compare_directions
from engine.stats.transfer import own_transfer
from tests.engine.plots.records import contrast_record, prompt_record, ranking_of, unranked_record
from tests.engine.stats.captures import contrast, provenance, random_states
from tests.engine.stats.contrasts import (
    Array,
    Sides,
    all_factors,
    auroc_by_hand,
    capture_of,
    noise,
    numbers_of,
    only_personas,
    planted,
    with_own_texts,
)

PERSONAS, EACH, WIDTH = 12, 6, 64


def directions(rng: np.random.Generator, count: int) -> Array:
    """Random unit vectors."""
    vectors = rng.normal(size=(count, WIDTH))
    units: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


def personas_apart(
    rng: np.random.Generator, vectors: Array, strength: float, sizes: Sequence[int] = (EACH,) * PERSONAS
) -> ContrastData:
    """One layer per vector: the positive class shifted along it, plus a random shift per persona.

    Args:
        rng: Random generator for noise and personas.
        vectors: Planted directions, `(layers, hidden)`.
        strength: Norm of the planted shift; the shift of a persona and the noise of a pair have norm 8 each.
        sizes: Number of pairs of each persona.
    """
    factors = [
        Factors(persona=f"p{i}", template="only", topic="only") for i, size in enumerate(sizes) for _ in range(size)
    ]
    layers = []
    for vector in vectors:
        own = np.repeat(rng.normal(size=(len(sizes), WIDTH)), sizes, axis=0)
        negative = rng.normal(size=(sum(sizes), WIDTH)) + 30
        positive = negative + rng.normal(size=negative.shape) + own + strength * vector
        layers.append((positive, negative))
    return capture_of(layers, factors)


def cosine(one: Array, other: Array) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def column(rows: list[ComparedLayer], name: str) -> Array:
    return np.array([dict(row)[name] for row in rows], dtype=np.float64)


def swapped_sides(layers: Sequence[Sides]) -> list[Sides]:
    return [(negative, positive) for positive, negative in layers]


def test_the_cosine_is_that_of_the_mean_differences() -> None:
    rng = np.random.default_rng(0)
    one, other = planted(rng, [0.0, 1.0, 3.0], 60), planted(rng, [1.0, 1.0, 3.0], 20)
    rows = compare_directions(capture_of(one, all_factors()), capture_of(other, None))
    assert [row["layer"] for row in rows] == [0, 1, 2]
    for row, first, second in zip(rows, one, other, strict=True):
        by_hand = cosine((first[0] - first[1]).mean(axis=0), (second[0] - second[1]).mean(axis=0))
        assert row["cosine"] == pytest.approx(by_hand, rel=1e-9)


def test_transfer_goes_both_ways_and_own_directions_are_held_out() -> None:
    rng = np.random.default_rng(0)
    one, other = planted(rng, [1.0], 60), planted(rng, [0.5], 60)
    first, second = capture_of(one, all_factors()), capture_of(other, all_factors())
    (row,) = compare_directions(first, second)
    (there, back) = ((sides[0] - sides[1]).mean(axis=0) for sides in (one[0], other[0]))
    assert row["transfer"]["auroc"] == pytest.approx(auroc_by_hand((other[0][0] @ there, other[0][1] @ there)))
    assert row["back"]["auroc"] == pytest.approx(auroc_by_hand((one[0][0] @ back, one[0][1] @ back)))
    assert row["own"] == (own_transfer(first, 0), own_transfer(second, 0))


def test_a_contrast_has_cosine_1_with_itself_and_minus_1_with_swapped_classes() -> None:
    layers = planted(np.random.default_rng(1), [0.0, 2.0], 60)
    data, turned = capture_of(layers, all_factors()), capture_of(swapped_sides(layers), all_factors())
    np.testing.assert_allclose(column(compare_directions(data, data), "cosine"), 1)
    np.testing.assert_allclose(column(compare_directions(data, turned), "cosine"), -1)


def test_the_cosine_is_symmetric() -> None:
    rng = np.random.default_rng(2)
    one, other = (capture_of(planted(rng, [2.0, 1.0], 60), all_factors()) for _ in range(2))
    there, back = compare_directions(one, other), compare_directions(other, one)
    np.testing.assert_allclose(column(there, "cosine"), column(back, "cosine"))
    np.testing.assert_allclose(column(there, "ceiling"), column(back, "ceiling"), atol=0.05)
    np.testing.assert_allclose(column(there, "chance"), column(back, "chance"), atol=0.05)


def test_the_same_seed_gives_the_same_comparison() -> None:
    rng = np.random.default_rng(3)
    one, other = (capture_of(planted(rng, [2.0], 60), all_factors()) for _ in range(2))
    assert compare_directions(one, other, seed=1) == compare_directions(one, other, seed=1)
    assert compare_directions(one, other, seed=1) != compare_directions(one, other, seed=2)


def test_the_scale_of_the_states_does_not_matter() -> None:
    layers = planted(np.random.default_rng(4), [2.0], 60)
    large = [(positive * 1000, negative * 1000) for positive, negative in layers]
    plain, scaled = capture_of(layers, all_factors()), capture_of(large, all_factors())
    other = capture_of(planted(np.random.default_rng(5), [2.0], 60), all_factors())
    (one,), (two,) = compare_directions(plain, other), compare_directions(scaled, other)
    for name in ("cosine", "chance", "ceiling"):
        assert dict(two)[name] == pytest.approx(dict(one)[name])
    for name in ("transfer", "back"):
        assert dict(two)[name] == pytest.approx(dict(one)[name])


def test_unrelated_directions_are_within_chance() -> None:
    rng = np.random.default_rng(5)
    axes = np.eye(WIDTH)
    one, other = (personas_apart(rng, axes[start : start + 30], 6.0) for start in (0, 30))
    rows = compare_directions(one, other)
    within = np.abs(column(rows, "cosine")) < column(rows, "chance")
    assert within.mean() > 0.8
    assert abs(column(rows, "cosine").mean()) < 0.1


def test_effects_of_templates_alone_are_within_chance() -> None:
    """They lie along few axes, so that two captures often agree by chance; halves of personas do not show that."""
    rng = np.random.default_rng(7)
    factors = all_factors(8, 8, 1)
    axes, templates = np.arange(1, 17) ** -1.0, numbers_of(factors, "template")
    beyond = 0
    for _ in range(60):
        captures = []
        for _ in range(2):
            middles, differences = 30 + rng.normal(size=(64, 16)), rng.normal(size=(64, 16))
            differences += 2 * (axes * rng.normal(size=(8, 16)))[templates]
            captures.append(capture_of([(middles + differences / 2, middles - differences / 2)], factors))
        (row,) = compare_directions(*captures)
        beyond += abs(row["cosine"]) > row["chance"]
    assert beyond <= 9


def test_noise_alone_is_within_chance() -> None:
    rng = np.random.default_rng(6)
    one, other = (personas_apart(rng, directions(rng, 40), 0.0) for _ in range(2))
    rows = compare_directions(one, other)
    assert (np.abs(column(rows, "cosine")) < column(rows, "chance")).mean() > 0.8
    assert column(rows, "ceiling").mean() < 0.2


def test_one_direction_measured_twice_exceeds_chance_and_comes_near_the_ceiling() -> None:
    """The ceiling uses half of the groups, so it is slightly lower."""
    rng = np.random.default_rng(7)
    true = directions(rng, 20)
    rows = compare_directions(*(personas_apart(rng, true, 12.0) for _ in range(2)))
    assert (column(rows, "cosine") > 2 * column(rows, "chance")).all()
    above = column(rows, "cosine") - column(rows, "ceiling")
    assert (np.abs(above) < 0.1).all()
    assert above.mean() > 0


def test_the_ceiling_rises_with_agreement_between_groups() -> None:
    (axis,) = np.eye(WIDTH)[:1]
    strengths = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    captures = [personas_apart(np.random.default_rng(8), axis[None], strength) for strength in strengths]
    ceilings = [compare_directions(data, data)[0]["ceiling"] for data in captures]
    assert ceilings == sorted(ceilings)
    assert 0 <= ceilings[0] < 0.2
    assert 0.95 < ceilings[-1] <= 1


def test_persona_specific_directions_are_not_in_the_ceiling() -> None:
    """Pairs of one persona agree. Halves of all pairs would agree too; halves of the personas do not."""
    rng = np.random.default_rng(9)
    data = personas_apart(rng, np.zeros((10, WIDTH)), 0.0)
    known = column(compare_directions(data, data), "ceiling")
    del data["factors"]
    unknown = column(compare_directions(data, data), "ceiling")
    assert unknown.mean() > known.mean() + 0.3


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([EACH] * 6, id="six"),
        pytest.param([EACH] * 12, id="twelve"),
        pytest.param([EACH] * 7, id="seven"),
        pytest.param([5] * 6 + [4] * 6, id="unequal"),
    ],
)
def test_the_common_difference_is_not_in_chance(sizes: list[int]) -> None:
    """For any strength of the concept: the chance level comes from the other differences between these pairs."""
    axis = np.eye(WIDTH)[:1]
    chances = []
    for strength in (0.0, 1000.0):
        data = [personas_apart(np.random.default_rng(seed), axis, strength, sizes) for seed in (10, 11)]
        chances.append(compare_directions(*data)[0]["chance"])
    assert chances[1] == pytest.approx(chances[0], abs=0.1)


def test_only_layers_that_both_have_are_compared() -> None:
    rng = np.random.default_rng(12)
    one, other = (capture_of(planted(rng, [1.0] * count, 20), None) for count in (4, 2))
    assert [row["layer"] for row in compare_directions(one, other)] == [0, 1]
    assert [row["layer"] for row in compare_directions(other, one)] == [0, 1]


def test_a_layer_with_equal_classes_causes_no_division_by_zero() -> None:
    same = np.ones((20, 24)), np.ones((20, 24))
    one, other = with_own_texts(capture_of([same], None)), capture_of([noise(np.random.default_rng(13), 20)], None)
    (row,) = compare_directions(one, other)
    assert (row["cosine"], row["chance"], row["ceiling"]) == (0, 0, 0)
    assert (row["transfer"]["auroc"], row["back"]["auroc"]) == (0.5, 0.5)


def test_captures_without_a_common_layer_are_refused() -> None:
    one = contrast([random_states(3, seed) for seed in range(6)], [random_states(3, 10 + seed) for seed in range(6)])
    other = capture_of([noise(np.random.default_rng(14), 6, width=16)], None)
    with pytest.raises(RequestError, match=r"share no layer: one has \[3, 7\], the other \[0\]"):
        compare_directions(one, other)


def test_states_of_different_widths_are_refused() -> None:
    rng = np.random.default_rng(15)
    one, other = (capture_of([noise(rng, 8, width)], None) for width in (24, 16))
    with pytest.raises(RequestError, match="different widths: 24 and 16"):
        compare_directions(one, other)


@pytest.mark.parametrize("few_first", [True, False])
def test_too_few_pairs_are_refused(few_first: bool) -> None:
    rng = np.random.default_rng(16)
    few, enough = (capture_of([noise(rng, pairs)], None) for pairs in (5, 6))
    assert compare_directions(enough, enough)
    with pytest.raises(RequestError, match=r"5 pairs are too few.*at least 6 pairs"):
        compare_directions(*((few, enough) if few_first else (enough, few)))


def test_pairs_that_share_prompts_are_not_told_to_be_more() -> None:
    """More pairs of the same prompts would be refused as well."""
    data = capture_of(planted(np.random.default_rng(0), [1.0], 20), None)
    for number, prompt in enumerate(data["negative"]):
        prompt["prompt"] = f"negative {number % 4}"
    with pytest.raises(RequestError, match="20 pairs share prompts, so that they count as 4") as error:
        compare_directions(data, capture_of(planted(np.random.default_rng(1), [1.0], 20), None))
    assert error.value.next_step == "use each prompt in one pair only"


def test_an_impossible_seed_is_refused() -> None:
    data = capture_of([noise(np.random.default_rng(16), 6)], None)
    for seed in (-1, 0.5, 2**70):
        with pytest.raises(RequestError, match="the seed cannot be"):
            compare_directions(data, data, seed=seed)  # type: ignore[arg-type]


def test_few_groups_are_halved_pair_by_pair() -> None:
    """Two personas can be halved in only two ways."""
    (row,) = compare_directions(*[capture_of(planted(np.random.default_rng(17), [2.0], 12), only_personas(2, 6))] * 2)
    assert 0 < row["ceiling"] < 1
    assert 0 < row["chance"] < 1


# Comparison of records.


def not_called(record: CaptureRecord) -> ContrastData:
    raise AssertionError(f"the tensors of {record['name']} were read")


def named(name: str, record: CaptureRecord | None = None, /, **changes: Any) -> CaptureRecord:
    """A record with that name and a changed provenance."""
    record = contrast_record() if record is None else record
    record["name"] = name
    record["provenance"] = provenance(**{"positions": "last"} | changes)
    return record


def test_two_concepts_on_one_model_are_compared_by_their_directions() -> None:
    rng = np.random.default_rng(18)
    one, other = named("a", contrast_record(concept="honesty")), named("b", contrast_record(concept="empathy"))
    data = {name: capture_of(planted(rng, [1.0, 2.0], 60), all_factors()) for name in "ab"}
    comparison = compare_captures(one, other, lambda record: data[record["name"]])
    assert comparison["kind"] == "directions"
    assert comparison["names"] == ("a", "b")
    assert comparison["titles"] == ("honesty", "empathy")
    assert comparison["directions"] == compare_directions(data["a"], data["b"])
    assert (comparison["depths"], comparison["warnings"]) == ([], [])


def test_custom_pairs_are_named_after_their_capture() -> None:
    rng = np.random.default_rng(19)
    data = capture_of(planted(rng, [1.0], 12), None)
    own, other = named("mine", contrast_record(concept=None)), named("b")
    assert compare_captures(own, other, lambda _: data)["titles"] == ("mine", "honesty")


@pytest.mark.parametrize(
    ("field", "value"),
    [("revision", "def"), ("dtype", "bfloat16"), ("attention", "eager"), ("chat_template", "0" * 64)],
)
def test_different_run_settings_cause_a_warning(field: str, value: str) -> None:
    rng = np.random.default_rng(20)
    data = {name: capture_of(planted(rng, [1.0], 12), None) for name in "ab"}
    comparison = compare_captures(named("a"), named("b", **{field: value}), lambda record: data[record["name"]])
    was = dict(provenance())[field]
    assert comparison["warnings"] == [f"they differ in {field}: {was} and {value}"]
    assert comparison["directions"]


def test_one_concept_on_two_models_is_compared_by_depth_without_reading_tensors() -> None:
    ranking = ranking_of([0.4, 2.0, 1.7], tied=[2])
    one, other = named("a", contrast_record(ranking=ranking)), named("b", model="someone/other-model", dtype="bfloat16")
    one["num_layers"], other["num_layers"] = 3, 8
    comparison = compare_captures(one, other, not_called)
    assert comparison["kind"] == "depth"
    assert comparison["names"] == ("a", "b")
    assert comparison["titles"] == ("someone/some-model", "someone/other-model")
    assert (comparison["directions"], comparison["warnings"]) == ([], [])
    assert [row["capture"] for row in comparison["depths"]] == ["a"] * 3 + ["b"] * 4
    assert [row["layer"] for row in comparison["depths"]] == [0, 1, 2, 0, 1, 2, 3]
    assert [row["depth"] for row in comparison["depths"]] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1 / 8, 2 / 8, 3 / 8, 4 / 8]
    )
    assert [row["d_prime"] for row in comparison["depths"]] == [0.4, 2.0, 1.7, 0.4, 2.0, 1.7, -0.2]
    assert [row["tied"] for row in comparison["depths"]] == [False, True, True, False, True, False, False]
    for row in comparison["depths"]:
        assert (row["low"], row["high"]) == (row["d_prime"] - 0.5, row["d_prime"] + 0.5)


def test_missing_layers_do_not_change_relative_depth() -> None:
    ranking = ranking_of([0.4, 2.0])
    for row, layer in zip(ranking["layers"], (9, 4), strict=True):
        row["layer"] = layer
    one = named("a", contrast_record(ranking=ranking))
    one["num_layers"] = 10
    rows = compare_captures(one, named("b", model="other"), not_called)["depths"][:2]
    assert [(row["layer"], row["depth"]) for row in rows] == [(4, 0.5), (9, 1.0)]


def test_two_models_with_different_pairs_cause_a_warning() -> None:
    one, other = named("a"), named("b", model="other")
    one["factors"], other["factors"] = all_factors()[:6], all_factors()[1:7]
    (warning,) = compare_captures(one, other, not_called)["warnings"]
    assert "not made from the same pairs" in warning
    other["factors"] = [Factors(**pair) for pair in one["factors"]]
    assert compare_captures(one, other, not_called)["warnings"] == []


def test_truncated_records_are_distinguished_by_the_number_of_pairs() -> None:
    """Like the records of captures saved as shards."""
    one, other = named("a"), named("b", model="other")
    one["num_pairs"] = other["num_pairs"] = 50
    one["factors"], other["factors"] = all_factors()[:50], all_factors()[:20]
    assert compare_captures(one, other, not_called)["warnings"] == []
    other["num_pairs"] = 51
    assert "not made from the same pairs" in compare_captures(one, other, not_called)["warnings"][0]
    other["num_pairs"], other["factors"] = 50, []
    assert "not made from the same pairs" in compare_captures(one, other, not_called)["warnings"][0]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("positions", "all", "positions last.*positions all"), ("site", "attn_out", "resid_post.*attn_out")],
)
@pytest.mark.parametrize("model", ["someone/some-model", "other"])
def test_captures_of_different_sites_or_positions_are_refused(field: str, value: str, said: str, model: str) -> None:
    with pytest.raises(RequestError, match=rf"a and b differ in site or positions: .*{said}.*the same site"):
        compare_captures(named("a"), named("b", **{"model": model, field: value}), not_called)


@pytest.mark.parametrize("concepts", [("honesty", "empathy"), ("honesty", None), (None, None)])
def test_captures_that_differ_in_model_and_concept_are_refused(concepts: tuple[str | None, str | None]) -> None:
    one, other = (contrast_record(concept=concept) for concept in concepts)
    with pytest.raises(
        RequestError, match=r"differ in model \(someone/some-model and other\) and in concept"
    ) as caught:
        compare_captures(named("a", one), named("b", other, model="other"), not_called)
    assert ("your own pairs" in str(caught.value)) == (None in concepts)


@pytest.mark.parametrize("first", [True, False])
def test_prompts_cannot_be_compared(first: bool) -> None:
    prompts, pairs = named("p", prompt_record()), named("a")
    with pytest.raises(RequestError, match="p is a capture of prompts"):
        compare_captures(*((prompts, pairs) if first else (pairs, prompts)), not_called)


@pytest.mark.parametrize("first", [True, False])
def test_captures_of_unknown_origin_cannot_be_compared(first: bool) -> None:
    unknown, known = named("u"), named("a")
    unknown["provenance"] = None
    with pytest.raises(RequestError, match="u has no provenance"):
        compare_captures(*((unknown, known) if first else (known, unknown)), not_called)


def test_depths_need_a_ranking_and_directions_do_not() -> None:
    one, other = named("a"), named("b", unranked_record(reason="2 pairs are too few"))
    data = capture_of(planted(np.random.default_rng(21), [1.0], 12), None)
    assert compare_captures(one, other, lambda _: data)["directions"]
    with pytest.raises(RequestError, match=r"b has no ranking: 2 pairs are too few.*more pairs"):
        compare_captures(one, named("b", other, model="other"), not_called)
