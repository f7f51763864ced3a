"""Scores: each orders layers its own way, and records without a score are refused."""

import numpy as np
import pytest

from engine.errors import RequestError
from engine.records.captures import Factors
from engine.records.files import CaptureRecord
from engine.stats.classes import project_sides
from engine.stats.ranking import rank_layers
from engine.stats.scores import (
    DEFAULT_SCORE,
    SCORES,
    count_tied,
    find_score,
    order_layers,
    pair_gaps,
    side_quartiles,
    wrong_pairs,
)
from tests.engine.plots.records import TOO_FEW, contrast_record, contrast_rows, prompt_record, unranked_record
from tests.engine.plots.results import sides_of
from tests.engine.stats.contrasts import all_factors, capture_of, only_personas, planted, summaries_of

HELD_OUT = ["d_prime", "auroc", "wrong_way"]
DESCRIBING = ["pair_cosine", "relative_norm", "cosine_sim", "diff_norm"]

# Expected order by each score, all different.
ORDERS = {
    "d_prime": [1, 2, 0, 3],
    "auroc": [2, 0, 3, 1],
    "wrong_way": [0, 3, 1, 2],
    "pair_cosine": [3, 0, 1, 2],
    "relative_norm": [1, 3, 2, 0],
    "cosine_sim": [0, 2, 3, 1],
    "diff_norm": [3, 2, 1, 0],
}


def a_record() -> CaptureRecord:
    """A contrast of four layers that every score orders differently."""
    record = contrast_record(contrast_rows())
    assert record["ranking"] is not None
    for ranked in record["ranking"]["layers"]:
        ranked["auroc"] = [0.8, 0.6, 0.9, 0.7][ranked["layer"]]
        ranked["wrong_way"] = [0.0, 0.2, 0.3, 0.1][ranked["layer"]]
    for row in record["statistics"]:
        row["pair_cosine"] = [0.3, 0.2, -0.1, 0.4][row["layer"]]
        row["cosine_sim"] = [0.990, 0.999, 0.992, 0.995][row["layer"]]
    return record


def test_the_default_is_held_out_and_the_raw_norm_comes_last() -> None:
    assert DEFAULT_SCORE == SCORES[0].key == "d_prime"
    assert [score.key for score in SCORES] == HELD_OUT + DESCRIBING
    assert [score.key for score in SCORES if score.held_out] == HELD_OUT
    assert "depth" in find_score("diff_norm").meaning


@pytest.mark.parametrize("key", ORDERS)
def test_every_score_puts_its_best_layer_first(key: str) -> None:
    layers = order_layers(a_record(), key)
    assert [layer.row["layer"] for layer in layers] == ORDERS[key]
    assert [layer.rank for layer in layers] == [1, 2, 3, 4]


@pytest.mark.parametrize("key", ORDERS)
def test_the_value_is_that_of_the_layer(key: str) -> None:
    for layer in order_layers(a_record(), key):
        assert layer.ranked is not None
        holder = dict(layer.ranked) if key in HELD_OUT else dict(layer.row)
        assert layer.value == holder[key]
        assert layer.ranked["layer"] == layer.row["layer"]


def test_lower_is_better_for_descending_scores() -> None:
    assert {score.key for score in SCORES if not score.descending} == {"wrong_way", "cosine_sim"}
    for score in SCORES:
        values = [layer.value for layer in order_layers(a_record(), score.key) if layer.value is not None]
        assert len(values) == 4
        assert values == sorted(values, reverse=score.descending)


def test_equal_layers_stay_in_order() -> None:
    record = contrast_record(contrast_rows([0.1, 0.3, 0.1, 0.3]))
    assert [layer.row["layer"] for layer in order_layers(record, "relative_norm")] == [1, 3, 0, 2]


def test_a_layer_without_a_score_comes_last() -> None:
    """If no two pairs differ, as before the first block, there is no cosine."""
    record = a_record()
    record["statistics"][0]["pair_cosine"] = None
    layers = order_layers(record, "pair_cosine")
    assert [layer.row["layer"] for layer in layers] == [3, 1, 2, 0]
    assert [layer.value for layer in layers] == [0.4, 0.2, -0.1, None]


@pytest.mark.parametrize("key", ["cosine_sim", "relative_norm"])
def test_a_layer_without_a_score_comes_last_also_if_lower_is_better(key: str) -> None:
    record = a_record()
    record["statistics"][0][key] = None  # type: ignore[literal-required]  # one of the two above
    assert order_layers(record, key)[-1].row["layer"] == 0


def test_a_mistyped_score_suggests_the_right_one() -> None:
    for find in (find_score, lambda key: order_layers(a_record(), key)):
        with pytest.raises(RequestError, match=r"no score 'aurok'.*one of d_prime, auroc.*did you mean 'auroc'\?"):
            find("aurok")


@pytest.mark.parametrize("key", HELD_OUT)
def test_without_a_ranking_there_is_no_held_out_score(key: str) -> None:
    with pytest.raises(RequestError, match=rf"'some_honesty' has no ranking: {TOO_FEW}.*Next: capture more") as caught:
        order_layers(unranked_record(), key)
    assert all(described in caught.value.expected for described in DESCRIBING)


@pytest.mark.parametrize(
    ("factors", "step"),
    [
        (None, "use each prompt in one pair only, and capture again"),
        (all_factors(), "use each prompt in one pair only, and capture again"),
        (only_personas(2, 30), "vary a factor, or omit the factors, and capture again"),
    ],
    ids=["one prompt", "one prompt, with factors", "two personas"],
)
def test_the_next_step_of_a_record_without_a_ranking_mends_its_reason(factors: list[Factors] | None, step: str) -> None:
    data = capture_of(planted(np.random.default_rng(3), [1.0], 60), factors)
    for prompt in data["negative"] if step.startswith("use") else []:
        prompt["prompt"] = "the same"
    with pytest.raises(RequestError) as refused:
        rank_layers(data)
    with pytest.raises(RequestError) as caught:
        order_layers(unranked_record(reason=refused.value.problem, num_pairs=60, concept=None), "d_prime")
    assert caught.value.next_step == step


@pytest.mark.parametrize("key", DESCRIBING)
def test_without_a_ranking_the_pairs_can_still_be_described(key: str) -> None:
    layers = order_layers(unranked_record(), key)
    assert len(layers) == 4
    assert all(layer.ranked is None for layer in layers)


def test_a_score_that_no_layer_has_is_not_offered() -> None:
    """If all pairs share a prompt, they have no pair cosine either."""
    record = unranked_record()
    for row in record["statistics"]:
        row["pair_cosine"] = None
    with pytest.raises(RequestError, match="has no ranking") as caught:
        order_layers(record)
    assert caught.value.expected == "one of the scores that need no ranking: relative_norm, cosine_sim, diff_norm"


@pytest.mark.parametrize("key", ["d_prime", "diff_norm"])
def test_prompts_have_no_classes_to_rank_by(key: str) -> None:
    with pytest.raises(RequestError, match=r"'some_prompt' is a capture of prompts.*capture_from_concept"):
        order_layers(prompt_record(), key)


@pytest.mark.parametrize("pairs", [12, 13, 40])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_quartiles_are_those_of_the_projections(pairs: int, side: str) -> None:
    data = capture_of(planted(np.random.default_rng(pairs), [0.5, 2.0], pairs), None)
    for summary in summaries_of(data):
        projections = np.sort(project_sides(data, summary["layer"])[side])  # type: ignore[literal-required]
        step = (summary["high"] - summary["low"]) / 48
        expected = np.quantile(projections, [0, 0.25, 0.5, 0.75, 1], method="nearest")
        found = side_quartiles(summary, side)  # type: ignore[arg-type]
        assert found == sorted(found)
        assert np.abs(np.array(found) - expected).max() <= step / 2 + 1e-9


def test_the_most_misordered_pairs_come_first() -> None:
    assert wrong_pairs(sides_of([0.0, 2.0, -1.0, 0.5], [0.25, -2.0, 2.0, 1.0])) == [2, 3, 0]
    assert wrong_pairs(sides_of([1.0, 0.0], [-1.0, 0.0])) == []  # ties are not misordered


def test_pairs_apart_by_no_more_than_rounding_are_tied() -> None:
    sides = sides_of([0.0, 2.0, -1.0, 0.5, 3.0], [1e-11, 2.0, 2.0, 0.5 + 1e-9, 1.0])
    assert count_tied(sides) == 2
    assert wrong_pairs(sides) == [2, 3]


def test_gaps_are_positive_minus_negative_in_the_order_of_the_pairs() -> None:
    assert pair_gaps(sides_of([0.0, 2.0], [0.25, -2.0])) == [-0.25, 4.0]
