"""Numbers within their column width, and sentences that match the record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.plots.findings import (
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
def test_a_score_takes_at_most_six_characters(value: float) -> None:
    words = score_in_words(value)
    assert len(words) <= 6
    assert float(words) == pytest.approx(value, rel=0.0051, abs=0.0051)


@given(st.floats(0, 1e99))
def test_a_norm_takes_at_most_eight_characters(value: float) -> None:
    words = norm_in_words(value)
    assert len(words) <= 8
    assert float(words) == pytest.approx(value, rel=0.0051, abs=0.00051)


BASELINES = (
    "Baselines without the model (held-out AUROC; chance 0.50, best layer 0.83): prompt length 0.50, all words 0.50."
)
RAW_NORM = "The raw difference norm, which grows with depth, would have picked layer 3 (rank 4 here)."


def test_a_clear_winner() -> None:
    assert describe_findings(contrast_record()) == [
        "Layer 1 leads with held-out d' 2.00 (95% interval 1.50 to 2.50, leave-one-persona-out). Permutation p = 0.004"
        " (labels permuted by persona).",
        "Layer 1 is ahead of every other layer at 95%.",
        RAW_NORM,
        BASELINES,
    ]


def test_ties_are_listed_and_the_rest_is_counted() -> None:
    _, ties, *_ = describe_findings(contrast_record(ranking=ranking_of([2.0, 1.9, 1.8, 0.1, 1.7, 0.0], tied=[1, 2, 4])))
    assert ties == "Tied with layer 0 at 95%: 1-2, 4. The remaining 2 layers score lower."
    _, ties, *_ = describe_findings(contrast_record(ranking=ranking_of(tied=[0, 2])))
    assert ties == "Tied with layer 1 at 95%: 0, 2. The remaining layer scores lower."


def test_a_tie_of_all_layers_is_reported() -> None:
    _, ties, *_ = describe_findings(contrast_record(ranking=ranking_of(tied=range(4))))
    assert ties == "All 3 other layers are tied with layer 1 at 95%."
    _, ties, *_ = describe_findings(contrast_record(ranking=ranking_of([1.0, 2.0], tied=[0])))
    assert ties == "The other layer is tied with layer 1 at 95%."


def test_without_a_significant_layer_none_leads() -> None:
    first, *others = describe_findings(contrast_record(ranking=ranking_of(tied=range(4), p_values=[0.9, 0.21, 0.3, 1])))
    assert first == (
        "No layer separates the classes significantly on held-out prompts: smallest permutation p = 0.210 (labels"
        " permuted by persona)."
    )
    assert not any("leads" in sentence for sentence in others)


@pytest.mark.parametrize(("p_value", "leads"), [(0.05, True), (0.051, False)])
def test_the_best_layer_leads_if_p_is_at_most_0_05(p_value: float, leads: bool) -> None:
    (first, *_) = describe_findings(contrast_record(ranking=ranking_of(p_values=[p_value] * 4)))
    assert first.startswith("Layer 1 leads") == leads


def test_significant_layers_are_listed_if_the_best_layer_is_not_one() -> None:
    """p-values and scores can come from different factors and differ in order."""
    ranking = ranking_of(p_values=[1.0, 0.062, 0.008, 1.0])
    (first, *_) = describe_findings(contrast_record(ranking=ranking))
    assert first == (
        "Layer 1 scores highest with held-out d' 2.00 (95% interval 1.50 to 2.50, leave-one-persona-out), but does not"
        " separate the classes significantly: permutation p = 0.062 (labels permuted by persona). Layers with"
        " p <= 0.05: 2."
    )


def test_a_small_p_value_is_given_as_a_bound() -> None:
    ranking = ranking_of(p_values=[1.0, 0.0006, 0.3, 1.0], smallest_p=0.0001)
    (first, *_) = describe_findings(contrast_record(ranking=ranking))
    assert first.endswith(" Permutation p < 0.001 (labels permuted by persona).")


@pytest.mark.parametrize(
    ("tested", "words"),
    [
        (["topic"], "topic"),
        (["pairs"], "pair"),
        (["persona", "topic"], "persona and topic"),
        (["persona", "template", "topic"], "persona, template and topic"),
    ],
)
def test_the_permuted_factors_are_named(tested: list[str], words: str) -> None:
    """The permuted factors can differ from the held-out factor of the score."""
    for p_value, leads in ((0.004, True), (0.4, False)):
        ranking = ranking_of(tested=tested, p_values=[p_value] * 4, left_out="template")
        (first, *_) = describe_findings(contrast_record(ranking=ranking))
        assert f" permutation p = {p_value:.3f} (labels permuted by {words})." in first.lower()
        assert ("leave-one-template-out" in first) == leads


def test_the_smallest_possible_p_is_marked() -> None:
    ranking = ranking_of(p_values=[0.7, 1 / 32, 0.5, 1.0], smallest_p=1 / 32)
    (first, *_) = describe_findings(contrast_record(ranking=ranking))
    assert first.endswith(" p = 0.031 (labels permuted by persona), the smallest possible with so few groups.")
    sampled = ranking_of(p_values=[0.7, 1 / 10_001, 0.5, 1.0], smallest_p=1 / 10_001) | {"permutations": 10_000}
    (first, *_) = describe_findings(contrast_record(ranking=sampled))
    assert first.endswith("(labels permuted by persona), the smallest possible with 10,000 permutations.")


def test_too_few_groups_for_significance_are_reported() -> None:
    ranking = ranking_of(p_values=[1.0, 0.125, 0.25, 1.0], smallest_p=0.125)
    (first, *_) = describe_findings(contrast_record(ranking=ranking))
    assert first.startswith("No layer separates the classes significantly")
    assert first.endswith(" (labels permuted by persona). With so few groups, p cannot fall below 0.125.")


def test_a_single_layer_has_no_ties() -> None:
    leader, ties, *_ = describe_findings(contrast_record(ranking=ranking_of([1.0])))
    assert leader.startswith("Layer 0 leads with held-out d' 1.00 (95% interval 0.50 to 1.50")
    assert ties == "It is the only captured layer."


def test_pairs_without_factors_are_held_out_in_five_folds() -> None:
    (first, *_) = describe_findings(contrast_record(ranking=ranking_of(left_out="pairs")))
    assert "d' 2.00 (95% interval 1.50 to 2.50, 5-fold over pairs)." in first


def test_agreement_with_the_raw_norm_is_reported() -> None:
    sentences = describe_findings(contrast_record(ranking=ranking_of([0.1, 0.2, 0.3, 2.0])))
    assert sentences[2] == "The raw difference norm is also largest at layer 3."


def test_layers_are_named_by_number_and_not_by_index() -> None:
    rows, ranking = contrast_rows(), ranking_of(tied=[2])
    for row, layer in zip(rows, (14, 15, 20, 29), strict=True):
        row["layer"] = layer
    for ranked in ranking["layers"]:
        ranked["layer"] = (14, 15, 20, 29)[ranked["layer"]]
    leader, ties, raw, _ = describe_findings(contrast_record(rows, ranking))
    assert leader.startswith("Layer 15 leads")
    assert ties == "Tied with layer 15 at 95%: 20. The remaining 2 layers score lower."
    assert "would have picked layer 29 (rank 4 here)" in raw


def test_baselines_are_reported_with_the_best_layer() -> None:
    *_, last = describe_findings(contrast_record(confounds=confounds_of(0.93)))
    assert last == BASELINES.replace("length 0.50", "length 0.93")


def test_without_a_ranking_there_are_no_findings() -> None:
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
def test_consecutive_layers_become_ranges(layers: list[int], words: str) -> None:
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
