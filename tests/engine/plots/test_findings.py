"""What a ranking comes to in words: to the letter, and never more than the numbers say."""

import pytest

from engine.plots.findings import describe_findings, layers_in_words, p_in_words
from tests.engine.plots.records import (
    confounds_of,
    contrast_record,
    contrast_rows,
    prompt_record,
    ranking_of,
    unranked_record,
)

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
