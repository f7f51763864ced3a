"""Sentences on the order of two layers match the record."""

import pytest

from engine.errors import RequestError
from engine.plots.layer_order import describe_order, margin_between
from engine.records.results import ClassSummary, WrongPair
from tests.engine.plots.records import contrast_record, prompt_record, ranking_of


def summary(layer: int, wrong: list[int], total: int | None = None) -> ClassSummary:
    return ClassSummary(
        layer=layer,
        left_out="persona",
        low=-3.0,
        high=3.0,
        positive=[1] * 48,
        negative=[1] * 48,
        wrong=[WrongPair(pair=pair, gap=-1.0) for pair in wrong],
        wrong_total=len(wrong) if total is None else total,
    )


def test_a_difference_within_its_margin_is_not_significant() -> None:
    record = contrast_record(ranking=ranking_of([0.4, 2.0, 1.7, -0.2]))
    for layers in ((1, 2), (2, 1)):
        first, *_ = describe_order(record, *layers)
        assert first == (
            "Layer 1 has rank 1 (d' 2.00) and layer 2 has rank 2 (d' 1.70). The difference is 0.30 (95% interval -0.10"
            " to 0.70): the data do not show which layer is better."
        )


def test_a_difference_beyond_its_margin_is_significant() -> None:
    first = describe_order(contrast_record(ranking=ranking_of([0.4, 2.0, 1.7, -0.2])), 0, 1)[0]
    assert "1.60 (95% interval 1.20 to 2.00): layer 1 separates the classes significantly better." in first


def test_the_margin_is_indexed_by_layer_and_not_by_rank() -> None:
    ranking = ranking_of([0.4, 2.0, 1.7, -0.2], margins=[[0.01, 0.02, 0.03], [0.12, 0.13], [0.23]])
    assert margin_between(ranking, 1, 3) == margin_between(ranking, 3, 1) == 0.13
    assert margin_between(ranking, 0, 1) == 0.01
    assert margin_between(ranking, 2, 3) == 0.23


def test_scores_are_given_by_held_out_factor() -> None:
    sentences = describe_order(contrast_record(ranking=ranking_of([0.4, 2.0, 1.7, -0.2])), 1, 3)
    assert sentences[1] == "Held-out d' at layers 1 and 3: leave-one-persona-out 2.00 and -0.20."


def test_misordered_pairs_are_counted_at_both_layers() -> None:
    record = contrast_record()
    record["sides"] = [summary(1, [4, 5, 6]), summary(2, [5, 6, 7, 8])]
    assert describe_order(record, 2, 1)[2] == (
        "3 of 72 held-out pairs are misordered at layer 1, 4 at layer 2: 2 at both, 1 only at layer 1, 2 only at layer"
        " 2."
    )


def test_tied_pairs_are_counted_separately() -> None:
    record = contrast_record()
    record["sides"] = [summary(1, [4, 5, 6]), summary(2, [5, 6, 7, 8])]
    record["sides"][0]["tied_total"], record["sides"][1]["tied_total"] = 1, 12
    assert describe_order(record, 2, 1)[2].startswith(
        "3 of 72 held-out pairs are misordered and 1 is tied at layer 1, 4 (and 12 tied) at layer 2: 2 at both"
    )


def test_a_truncated_list_of_misordered_pairs_is_only_counted() -> None:
    record = contrast_record()
    record["sides"] = [summary(1, [4, 5], total=30), summary(2, [5])]
    assert describe_order(record, 1, 2)[2] == "30 of 72 held-out pairs are misordered at layer 1, 1 at layer 2."


def test_the_order_by_raw_norm_is_reported() -> None:
    record = contrast_record()  # norms grow with the layer
    assert "(1.000 and 1.500) would rank layer 2 first" in describe_order(record, 1, 2)[-1]
    assert "(1.500 and 0.500) would also rank layer 2 first" in describe_order(record, 2, 0)[-1]


@pytest.mark.parametrize(("layer", "other"), [(1, 1), (0, 9), (-1, 0)])
def test_unranked_or_equal_layers_are_refused(layer: int, other: int) -> None:
    with pytest.raises(RequestError, match="0, 1, 2, 3"):
        describe_order(contrast_record(), layer, other)


def test_prompt_captures_are_refused() -> None:
    with pytest.raises(RequestError, match="there are none"):
        describe_order(prompt_record(), 0, 1)
