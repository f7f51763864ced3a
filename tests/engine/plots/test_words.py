"""Numbers as text: as exact as there is room for, and never wider."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.plots.words import (
    describe_findings,
    describe_order,
    layers_in_words,
    margin_between,
    norm_in_words,
    p_in_words,
    score_in_words,
)
from engine.records.results import SideSummary, WrongPair
from tests.engine.plots.records import (
    confounds_of,
    contrast_record,
    contrast_rows,
    prompt_record,
    ranking_of,
    unranked_record,
)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((0.0, "0.00"), (0.1234, "0.12"), (-0.95, "-0.95"), (9.994, "9.99")),
        *((9.996, "10.0"), (-12.34, "-12.3"), (99.94, "99.9"), (99.96, "100"), (1234.5, "1234"), (99999.0, "99999")),
        *((100_000.0, "1e+05"), (-250_000.0, "-2e+05")),
    ],
)
def test_scores(value: float, words: str) -> None:
    assert score_in_words(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((0.0, "0.000"), (0.0421, "0.042"), (33.96, "33.960"), (999.9994, "999.999")),
        *((999.9996, "1000.0"), (12345.6, "12345.6"), (99999.94, "99999.9")),
        *((99999.96, "1.00e+05"), (1.5e9, "1.50e+09")),
    ],
)
def test_norms(value: float, words: str) -> None:
    assert norm_in_words(value) == words


@given(st.floats(-99999, 99999))
def test_a_score_takes_six_characters_at_most_and_says_what_it_is(value: float) -> None:
    words = score_in_words(value)
    assert len(words) <= 6
    assert float(words) == pytest.approx(value, rel=0.0051, abs=0.0051)


@given(st.floats(0, 1e99))
def test_a_norm_takes_eight_characters_at_most_and_says_what_it_is(value: float) -> None:
    words = norm_in_words(value)
    assert len(words) <= 8
    assert float(words) == pytest.approx(value, rel=0.0051, abs=0.00051)


CONFOUNDS = (
    "Told apart without the model (held-out AUROC; 0.5 is nothing; the best layer has 0.83): prompt length 0.50,"
    " all words 0.50."
)
RAW_NORM = "The raw difference norm, which grows with depth, would have led to layer 3: place 4 here."


def test_a_clear_winner() -> None:
    assert describe_findings(contrast_record()) == [
        "Layer 1 leads: d' 2.00 (1.50 to 2.50), a persona left out. Shuffling the labels of personas does as well with"
        " p = 0.004.",
        "Layer 1 is ahead of every other layer at 95%.",
        RAW_NORM,
        CONFOUNDS,
    ]


def test_ties_are_named_and_the_rest_is_counted() -> None:
    _, ties, *_ = describe_findings(contrast_record(ranking=ranking_of([2.0, 1.9, 1.8, 0.1, 1.7, 0.0], tied=[1, 2, 4])))
    assert ties == "Tied with layer 0 at 95%: 1-2, 4. Behind it: the other 2."
    _, ties, *_ = describe_findings(contrast_record(ranking=ranking_of(tied=[0, 2])))
    assert ties == "Tied with layer 1 at 95%: 0, 2. Behind it: the one other layer."


def test_where_all_are_tied_no_layer_is_singled_out() -> None:
    _, ties, *_ = describe_findings(contrast_record(ranking=ranking_of(tied=range(4))))
    assert ties == "No layer can be told apart from layer 1, the first by score."


def test_where_nothing_is_found_no_layer_leads() -> None:
    first, *others = describe_findings(contrast_record(ranking=ranking_of(tied=range(4), p_values=[0.9, 0.21, 0.3, 1])))
    assert first == (
        "No layer is shown to separate the sides on left-out prompts. Shuffling the labels of personas does as well"
        " with p = 0.210."
    )
    assert not any("leads" in sentence for sentence in others)


@pytest.mark.parametrize(("p_value", "leads"), [(0.05, True), (0.051, False)])
def test_a_layer_leads_where_p_is_at_most_five_in_a_hundred(p_value: float, leads: bool) -> None:
    (first, *_) = describe_findings(contrast_record(ranking=ranking_of(p_values=[p_value] * 4)))
    assert first.startswith("Layer 1 leads") == leads


def test_no_layer_is_not_said_where_one_is_shown() -> None:
    """The p-value is over factors with many groups, the score the worst of all: they need not have the same order."""
    ranking = ranking_of(p_values=[1.0, 0.062, 0.008, 1.0])
    (first, *_) = describe_findings(contrast_record(ranking=ranking))
    assert first == (
        "Layer 1 scores highest (d' 2.00 (1.50 to 2.50), a persona left out) but is not shown to separate the sides."
        " Shuffling the labels of personas does as well with p = 0.062. Shown to, with p of 0.05 at most: layers 2."
    )


def test_a_p_value_too_small_to_show_is_said_to_be_less() -> None:
    ranking = ranking_of(p_values=[1.0, 0.0006, 0.3, 1.0], smallest_p=0.0001)
    (first, *_) = describe_findings(contrast_record(ranking=ranking))
    assert first.endswith(" does as well with p < 0.001.")


@pytest.mark.parametrize(
    ("tested", "words"),
    [
        (["topic"], "topics"),
        (["pairs"], "pairs"),
        (["persona", "topic"], "personas and topics"),
        (["persona", "template", "topic"], "personas, templates and topics"),
    ],
)
def test_it_says_whose_labels_were_shuffled(tested: list[str], words: str) -> None:
    """What was left out for the score need not be what the p-value is about."""
    for p_value, leads in ((0.004, True), (0.4, False)):
        ranking = ranking_of(tested=tested, p_values=[p_value] * 4, left_out="template")
        (first, *_) = describe_findings(contrast_record(ranking=ranking))
        assert f" Shuffling the labels of {words} does as well with p = {p_value:.3f}." in first
        assert ("a template left out" in first) == leads


def test_the_least_p_that_the_groups_can_show_is_said_to_be_that() -> None:
    ranking = ranking_of(p_values=[0.7, 1 / 32, 0.5, 1.0], smallest_p=1 / 32)
    (first, *_) = describe_findings(contrast_record(ranking=ranking))
    assert first.endswith(" with p = 0.031, the least that so few groups can show.")


def test_groups_too_few_to_show_anything_are_said_to_be_that() -> None:
    ranking = ranking_of(p_values=[1.0, 0.125, 0.25, 1.0], smallest_p=0.125)
    (first, *_) = describe_findings(contrast_record(ranking=ranking))
    assert first.startswith("No layer is shown")
    assert first.endswith(" with p = 0.125. So few groups cannot show less than p = 0.125.")


def test_one_layer_alone_has_nothing_to_be_compared_with() -> None:
    leader, ties, *_ = describe_findings(contrast_record(ranking=ranking_of([1.0])))
    assert leader.startswith("Layer 0 leads: d' 1.00 (0.50 to 1.50)")
    assert ties == "It is the only layer captured."


def test_pairs_without_factors_are_left_out_by_the_fifth() -> None:
    (first, *_) = describe_findings(contrast_record(ranking=ranking_of(left_out="pairs")))
    assert "d' 2.00 (1.50 to 2.50), a fifth of the pairs left out." in first
    assert "labels of pairs does" in first


def test_where_the_raw_norm_agrees_it_says_so() -> None:
    sentences = describe_findings(contrast_record(ranking=ranking_of([0.1, 0.2, 0.3, 2.0])))
    assert sentences[2] == "The raw difference norm is largest at layer 3 as well."


def test_layers_are_called_by_their_numbers_and_not_by_their_places() -> None:
    rows, ranking = contrast_rows(), ranking_of(tied=[2])
    for row, layer in zip(rows, (14, 15, 20, 29), strict=True):
        row["layer"] = layer
    for ranked in ranking["layers"]:
        ranked["layer"] = (14, 15, 20, 29)[ranked["layer"]]
    leader, ties, raw, _ = describe_findings(contrast_record(rows, ranking))
    assert leader.startswith("Layer 15 leads")
    assert ties == "Tied with layer 15 at 95%: 20. Behind it: the other 2."
    assert "would have led to layer 29: place 4 here" in raw


def test_what_else_tells_the_sides_apart_is_told_beside_what_the_layer_does() -> None:
    *_, last = describe_findings(contrast_record(confounds=confounds_of(0.93)))
    assert last == CONFOUNDS.replace("length 0.50", "length 0.93")


def test_without_a_ranking_there_is_nothing_to_say() -> None:
    assert describe_findings(unranked_record()) == []
    assert describe_findings(prompt_record()) == []


@pytest.mark.parametrize(
    ("p_value", "words"),
    [(1.0, "1.000"), (0.03125, "0.031"), (0.001, "0.001"), (0.000999, "<0.001"), (1e-9, "<0.001")],
)
def test_p_is_never_shown_as_zero(p_value: float, words: str) -> None:
    assert p_in_words(p_value) == words


@pytest.mark.parametrize(
    ("layers", "words"),
    [([], ""), ([5], "5"), ([17, 15, 16, 21], "15-17, 21"), ([1, 3, 5], "1, 3, 5"), (range(30), "0-29")],
)
def test_runs_of_layers_are_drawn_together(layers: list[int], words: str) -> None:
    assert layers_in_words(layers) == words


def summary(layer: int, wrong: list[int], total: int | None = None) -> SideSummary:
    return SideSummary(
        layer=layer,
        left_out="persona",
        low=-3.0,
        high=3.0,
        positive=[1] * 48,
        negative=[1] * 48,
        wrong=[WrongPair(pair=pair, gap=-1.0) for pair in wrong],
        wrong_total=len(wrong) if total is None else total,
    )


def test_a_difference_within_its_margin_is_said_not_to_be_known() -> None:
    record = contrast_record(ranking=ranking_of([0.4, 2.0, 1.7, -0.2]))
    for layers in ((1, 2), (2, 1)):
        first, *_ = describe_order(record, *layers)
        assert first == (
            "Layer 1 is ranked 1 (d' 2.00) and layer 2 is ranked 2 (1.70): 0.30 apart, 95% interval -0.10 to 0.70, so"
            " the data cannot tell which of the two is better, only which scored higher."
        )


def test_a_difference_beyond_its_margin_is_said_to_hold() -> None:
    first = describe_order(contrast_record(ranking=ranking_of([0.4, 2.0, 1.7, -0.2])), 0, 1)[0]
    assert "1.60 apart, 95% interval 1.20 to 2.00, so layer 1 separates the sides better" in first


def test_the_margin_is_that_of_the_two_layers_by_number_and_not_by_place() -> None:
    ranking = ranking_of([0.4, 2.0, 1.7, -0.2], margins=[[0.01, 0.02, 0.03], [0.12, 0.13], [0.23]])
    assert margin_between(ranking, 1, 3) == margin_between(ranking, 3, 1) == 0.13
    assert margin_between(ranking, 0, 1) == 0.01
    assert margin_between(ranking, 2, 3) == 0.23


def test_what_was_left_out_is_told_apart() -> None:
    sentences = describe_order(contrast_record(ranking=ranking_of([0.4, 2.0, 1.7, -0.2])), 1, 3)
    assert sentences[1] == "d' at layers 1 and 3: a persona left out 2.00 and -0.20."


def test_pairs_that_point_the_wrong_way_are_counted_at_both_layers() -> None:
    record = contrast_record()
    record["sides"] = [summary(1, [4, 5, 6]), summary(2, [5, 6, 7, 8])]
    assert describe_order(record, 2, 1)[2] == (
        "3 of 72 left-out pairs point the wrong way at layer 1, 4 at layer 2: 2 at both, 1 only at layer 1, 2 only at"
        " layer 2."
    )


def test_where_not_all_of_them_are_named_they_are_only_counted() -> None:
    record = contrast_record()
    record["sides"] = [summary(1, [4, 5], total=30), summary(2, [5])]
    assert describe_order(record, 1, 2)[2] == "30 of 72 left-out pairs point the wrong way at layer 1, 1 at layer 2."


def test_what_the_raw_norm_would_have_said_is_said() -> None:
    record = contrast_record()  # norms grow with the layer
    assert "0.500 and 1.000" not in describe_order(record, 1, 2)[-1]
    assert "1.000 and 1.500, would have put layer 2 first" in describe_order(record, 1, 2)[-1]
    assert "1.500 and 0.500, would have put it first as well" in describe_order(record, 2, 0)[-1]


@pytest.mark.parametrize(("layer", "other"), [(1, 1), (0, 9), (-1, 0)])
def test_layers_that_cannot_be_compared_are_refused(layer: int, other: int) -> None:
    with pytest.raises(RequestError, match="0, 1, 2, 3"):
        describe_order(contrast_record(), layer, other)


def test_prompts_have_no_order() -> None:
    with pytest.raises(RequestError, match="there are none"):
        describe_order(prompt_record(), 0, 1)
