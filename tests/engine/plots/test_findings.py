"""Numbers within their column width, and sentences that match the record."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plots.findings import (
    describe_findings,
    describe_neighbours,
    layers_in_words,
    norm_in_words,
    p_in_words,
    score_in_words,
    significant_layers,
)
from engine.records.results import NeighbourAt, Ranking, SpecificityLayer, SpecificityReport, may_be_best
from tests.engine.plots.records import (
    confounds_of,
    contrast_record,
    contrast_rows,
    prompt_record,
    ranking_of,
    unranked_record,
)
from tests.engine.plots.results import sorted_pairs


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


def test_factors_with_too_few_groups_to_permute_are_not_part_of_the_claim() -> None:
    """Without an effect, 4 personas with 24 topics are found every time: what these 4 have in common is there."""
    ranking = ranking_of([0.4, 2.0, 1.7, -0.2], tested=["topic"], groups={"persona": 4, "topic": 24})
    untested = "It was not tested whether that holds for others than these 4 personas: they are too few."
    assert findings(ranking)[0].endswith(f"(labels permuted by topic). {untested}")
    assert about("not tested", ranking_of()) == []


BASELINES = "Baselines without the model (held-out AUROC; best layer 0.83): all at chance."
RAW_NORM = "The raw difference norm, which grows with depth, would have picked layer 3 (rank 4 here)."
LIMITS = (
    "Personas limit the result: 70% of the squared error at layer 1 comes from them, 30% from single pairs; more"
    " personas narrow the interval, more pairs of the same ones hardly do."
)


def findings(ranking: Ranking | None = None) -> list[str]:
    return describe_findings(contrast_record(ranking=ranking or ranking_of()))


def about(word: str, ranking: Ranking) -> list[str]:
    return [sentence for sentence in findings(ranking) if word in sentence]


def test_a_clear_winner() -> None:
    assert findings(ranking_of([0.4, 2.0, 1.7, -0.2], p_values=[0.3, 0.004, 0.004, 0.8])) == [
        "Layers 1-2 separate held-out prompts better than chance. Highest: layer 1, held-out d' 2.00 (95% interval 1.50"
        " to 2.50, leave-one-persona-out), AUROC 0.83, p = 0.004 (labels permuted by persona).",
        "Layer 1 is ahead of every other layer (95%).",
        "The concept is first found at layer 1; before that, it may be too weak for these pairs to show. The largest"
        " rise is from layer 0 (d' 0.40) to 1 (d' 2.00).",
        LIMITS,
        BASELINES,
        RAW_NORM,
    ]


def test_layers_that_cannot_be_ordered_are_not_said_to_lead() -> None:
    """`Layer 17 leads` followed by `no layer can be told apart from layer 17` misled readers."""
    first, order, *_ = findings(ranking_of([2.0, 1.9, 1.8, 0.1, 1.7, 0.0], tied=[0, 1, 2, 4]))
    assert "leads" not in first
    assert order == "Layers 0-2, 4 cannot be ordered: each may be the best (95%). The other 2 are behind."
    _, order, *_ = findings(ranking_of(tied=[0, 1, 2]))
    assert order == "Layers 0-2 cannot be ordered: each may be the best (95%). The other one is behind."
    first, order, *_ = findings(ranking_of(tied=range(4)))
    assert first.startswith("All 4 layers separate held-out prompts better than chance.")
    assert order == "They cannot be ordered: each of layers 0-3 may be the best (95%)."


def test_a_layer_is_ahead_only_of_layers_that_are_not_tied_with_it() -> None:
    """Layers without significance can be tied with the best, and can even score higher."""
    tied_noise = ranking_of([1.1, 2.0, 1.7, 0.2], tied=[0, 1], p_values=[0.06, 0.004, 0.02, 0.6])
    _, order, *_ = findings(tied_noise)
    assert order == "Of these, only layer 1 may be the best (95%). The other one is behind."
    higher = ranking_of([1.1, 2.0, 1.7, 0.2], tied=[1, 2], p_values=[0.02, 0.06, 0.02, 0.6])
    assert findings(higher)[1] == "Of these, only layer 2 may be the best (95%). The other one is behind."
    none = ranking_of([1.1, 2.0, 1.7, 0.2], tied=[1], p_values=[0.02, 0.06, 0.02, 0.6])
    assert not about("ordered", none) and not about("ahead", none) and not about("may be the best", none)


def test_where_a_concept_begins_takes_gaps_into_account() -> None:
    scores = [0.1, 0.9, 0.2, 1.5, 2.0]
    with_gap = ranking_of(scores, p_values=[0.5, 0.03, 0.5, 0.01, 0.001])
    assert about("is first found", with_gap) == [
        "The concept is first found at layer 1, and without a gap from layer 3 on; before that, it may be too weak for"
        " these pairs to show. The largest rise is from layer 2 (d' 0.20) to 3 (d' 1.50)."
    ]
    early = ranking_of(scores, p_values=[0.03, 0.5, 0.5, 0.5, 0.5])
    assert about("is first found", early)[0].startswith("The concept is first found at layer 0. The largest rise")
    throughout = ranking_of(scores, p_values=[0.03] * 5)
    assert about("is found", throughout) == ["The concept is found from the first captured layer, 0, on."]
    later = ranking_of(scores, p_values=[0.5, 0.03, 0.03, 0.03, 0.03])
    assert about("is found", later)[0].startswith("The concept is found from layer 1 on; before that")


def test_a_rise_within_the_margin_is_not_named() -> None:
    """On an even ramp every step is as large as any other, and chance makes one of them the largest."""
    ramp = ranking_of([0.1, 0.4, 0.7, 1.0, 1.3], p_values=[0.5, 0.2, 0.03, 0.01, 0.001])
    assert about("is found", ramp) == [
        "The concept is found from layer 2 on; before that, it may be too weak for these pairs to show."
    ]


def test_the_largest_of_many_rises_must_be_larger_than_one_of_few() -> None:
    """Of 29 rises that are none, one exceeds its own 95% interval in one set of eight."""
    steep = [0.1, 0.2, 0.7]  # 0.5 where the margin is 0.4
    few, many = (ranking_of([*steep, *[0.7] * more], p_values=[0.5] + [0.01] * (2 + more)) for more in (0, 9))
    assert about("is found", few)[0].endswith("The largest rise is from layer 1 (d' 0.20) to 2 (d' 0.70).")
    assert about("is found", many)[0].endswith("it may be too weak for these pairs to show.")


def test_a_layer_without_significance_is_not_tied_with_the_best() -> None:
    """Layer 0 with p = .89 was marked as tied: its rank interval reached 1 only because it was wide."""
    ranking = ranking_of([1.1, 2.0, 1.7, 0.2], tied=range(4), p_values=[0.89, 0.004, 0.02, 0.6])
    first, order, *_ = findings(ranking)
    assert first.startswith("Layers 1-2 separate")
    assert order == "They cannot be ordered: each of layers 1-2 may be the best (95%)."
    assert [row["layer"] for row in ranking["layers"] if may_be_best(row)] == [1, 2]


def test_without_a_significant_layer_none_is_best_and_nothing_begins() -> None:
    first, *others = findings(ranking_of(tied=range(4), p_values=[0.9, 0.21, 0.3, 1]))
    assert first == (
        "No layer separates the classes better than chance: the smallest p-value, at layer 1, is p = 0.210 (labels"
        " permuted by persona). The highest score, held-out d' 2.00 (95% interval 1.50 to 2.50, leave-one-persona-out),"
        " AUROC 0.83 at layer 1, may be noise."
    )
    assert others == [LIMITS, BASELINES, RAW_NORM]


def test_the_best_layer_may_lack_significance_where_others_have_it() -> None:
    """p-values and scores can come from different factors and differ in order."""
    first, *_ = findings(ranking_of(p_values=[1.0, 0.062, 0.008, 1.0]))
    assert first == (
        "Layer 2 separates held-out prompts better than chance, but not the layer with the highest score: layer 1,"
        " held-out d' 2.00 (95% interval 1.50 to 2.50, leave-one-persona-out), AUROC 0.83, p = 0.062 (labels permuted"
        " by persona)."
    )


@pytest.mark.parametrize(("p_value", "found"), [(0.05, True), (0.051, False)])
def test_five_percent_is_the_level(p_value: float, found: bool) -> None:
    ranking = ranking_of(p_values=[p_value] * 4)
    assert findings(ranking)[0].startswith("All 4 layers separate") == found
    assert significant_layers(ranking) == ([1, 2, 0, 3] if found else [])


def test_p_is_given_by_factor_and_for_all_at_once() -> None:
    ranking = ranking_of(p_values=[1.0, 0.0006, 0.3, 1.0], smallest_p=0.0001)
    ranking["layers"][0]["p_by_factor"] = {"persona": 0.0001, "template": 0.0006, "crossed": 0.0004}
    first, *_ = findings(ranking)
    assert first.endswith(", p < 0.001 (persona <0.001, template <0.001, all at once <0.001).")


def test_captures_from_before_p_was_given_by_factor_name_the_permuted_factors() -> None:
    for tested, words in ((["pairs"], "pair"), (["persona", "template", "topic"], "persona, template and topic")):
        ranking = ranking_of(tested=tested, p_values=[0.4] * 4, left_out="template")
        for row in ranking["layers"]:
            del row["p_by_factor"]
        del ranking["limits"]
        first, *_ = findings(ranking)
        assert f"p = 0.400 (labels permuted by {words})" in first
        assert not about("limit", ranking)


def test_the_smallest_possible_p_is_marked() -> None:
    first, *_ = findings(ranking_of(p_values=[0.7, 1 / 32, 0.5, 1.0], smallest_p=1 / 32))
    assert first.endswith(" p = 0.031 (labels permuted by persona), the smallest possible.")


def test_a_design_that_is_too_small_to_test_says_so() -> None:
    """It was called `not shown to separate` beside an AUROC of .99."""
    ranking = ranking_of(p_values=[1.0, 0.125, 0.25, 1.0], smallest_p=0.125)
    ranking["groups"] = {"persona": 4}
    first, *others = findings(ranking)
    assert first == (
        "This design is too small to test: with 4 personas, p cannot fall below 0.125. The highest score is held-out d'"
        " 2.00 (95% interval 1.50 to 2.50, leave-one-persona-out), AUROC 0.83, at layer 1."
    )
    assert not any("ordered" in sentence for sentence in others)


def test_in_a_design_that_is_too_small_to_test_groups_are_added_first() -> None:
    """With 5 personas the only advice was: more pairs narrow the interval."""
    ranking = ranking_of(p_values=[1.0] * 4, smallest_p=0.0625, limits={"pair": 0.9, "persona": 0.1})
    ranking["groups"] = {"persona": 5}
    said = findings(ranking)
    first = said.index("Add personas first: p can fall below 0.05 with 6 or more.")
    assert said[first + 1].startswith("Single pairs limit the result")
    assert not about("first:", ranking_of())


@pytest.mark.parametrize(
    ("changes", "said", "advice"),
    [
        ({"permutations": 10, "smallest_p": 1 / 11}, "Too few permutations to test: with 10, p cannot", "permutations"),
        ({"resamples": 12, "smallest_p": 1 / 13}, "Too few resamples to test: with 12, p cannot fall", "resamples"),
    ],
)
def test_draws_that_are_too_few_are_not_called_a_design_that_is_too_small(
    changes: dict[str, Any], said: str, advice: str
) -> None:
    ranking = ranking_of(p_values=[1.0] * 4, **changes)
    assert findings(ranking)[0].startswith(said)
    assert f"Rank with more {advice} first: the design itself allows smaller p-values." in findings(ranking)


def test_layers_found_with_an_interval_that_includes_zero_are_explained() -> None:
    """`Layers 1-29 separate`, and four of them had intervals such as -1.1 to 34, without a word."""
    (sentence,) = about("includes 0", ranking_of([0.4, 2.0, 1.7, -0.2], p_values=[0.03, 0.01, 0.01, 0.9]))
    assert sentence.startswith("At layer 0, the 95% interval of d' includes 0 although p is at most 0.05: the interval")
    assert not about("includes 0", ranking_of([0.4, 2.0, 1.7, -0.2], p_values=[0.3, 0.01, 0.01, 0.9]))


def test_saturated_captures_are_named_and_their_order_is_said_to_mean_nothing() -> None:
    ranking = ranking_of([40.0, 48.0, 44.0, 0.5], tied=[1])
    for row in ranking["layers"][:3]:
        row["auroc"] = 1.0
    _, order, *_ = findings(ranking)
    assert order == (
        "Saturated: AUROC is 0.995 or more at 3 of 4 layers, so their order means nothing. Prompts that differ less"
        " between the classes would tell the layers apart."
    )
    assert not about("begins", ranking)
    assert not about("ahead", ranking)


def test_saturation_is_named_with_two_layers_and_with_one() -> None:
    """`Layer 20 is ahead of every other layer` was said of two layers that sort every held-out prompt correctly."""
    two, one = ranking_of([150.0, 400.0]), ranking_of([150.0])
    assert findings(two)[1].startswith("Saturated: AUROC is 0.995 or more at 2 of 2 layers, so their order means")
    assert about("ahead", two) == []
    assert findings(one)[1] == "Saturated: AUROC is 0.995 or more at layer 0, the only captured layer."
    assert about("Saturated", ranking_of([2.0, 400.0])) == []


def test_layers_below_chance_are_named() -> None:
    (sentence,) = about("below chance", ranking_of([-2.0, 2.0, 1.7, -1.9], half=0.5))
    assert sentence.startswith("Layers 0, 3 are wholly below chance: held-out prompts are sorted the wrong way there.")
    assert not about("below chance", ranking_of([-0.2, 2.0, 1.7, 0.4], half=0.5))


def test_a_single_layer_has_no_order() -> None:
    first, order, *_ = findings(ranking_of([1.0]))
    assert first.startswith("Layer 0 separates held-out prompts better than chance. Highest: layer 0, held-out d' 1.00")
    assert order == "It is the only captured layer."


def test_pairs_without_factors_are_held_out_in_five_folds() -> None:
    ranking = ranking_of(left_out="pairs")
    ranking["limits"] = {"pair": 1.0}
    assert "d' 2.00 (95% interval 1.50 to 2.50, 5-fold over pairs)" in findings(ranking)[0]
    assert about("limit", ranking) == [
        "Single pairs limit the result: 100% of the squared error at layer 1 comes from them; more pairs narrow the"
        " interval."
    ]


def test_four_pairs_without_factors_are_held_out_in_four_folds() -> None:
    ranking = ranking_of(left_out="pairs")
    ranking["groups"] = {"pairs": 4}
    assert "4-fold over pairs" in findings(ranking)[0]


def test_agreement_with_the_raw_norm_is_reported() -> None:
    assert findings(ranking_of([0.1, 0.2, 0.3, 2.0]))[-1] == "The raw difference norm is also largest at layer 3."


def test_layers_are_named_by_number_and_not_by_index() -> None:
    rows, ranking = contrast_rows(), ranking_of(tied=[1, 2])
    for row, layer in zip(rows, (14, 15, 20, 29), strict=True):
        row["layer"] = layer
    for ranked in ranking["layers"]:
        ranked["layer"] = (14, 15, 20, 29)[ranked["layer"]]
    first, order, *_, raw = describe_findings(contrast_record(rows, ranking))
    assert "Highest: layer 15" in first
    assert order == "Layers 15, 20 cannot be ordered: each may be the best (95%). The other 2 are behind."
    assert "would have picked layer 29 (rank 4 here)" in raw


def test_baselines_are_reported_with_the_best_layer() -> None:
    confounds = confounds_of(0.93)
    *_, baselines, _ = describe_findings(contrast_record(confounds=confounds))
    assert baselines == BASELINES.replace("all at", "prompt length 0.93, the others at")
    confounds["checks"][0]["within_pairs"] = 0.98
    *_, baselines, _ = describe_findings(contrast_record(confounds=confounds))
    assert baselines == BASELINES.replace("all at", "prompt length 0.93 (98% of pairs in order), the others at")


def test_a_baseline_that_orders_pairs_only_is_reported() -> None:
    """Every positive prompt a little longer than its partner: an AUROC near chance hides it."""
    confounds = confounds_of(0.51)
    confounds["checks"][0]["within_pairs"] = 1.0
    *_, baselines, _ = describe_findings(contrast_record(confounds=confounds))
    assert "prompt length 0.51 (100% of pairs in order)" in baselines


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


def test_neighbours_are_not_compared_with_a_contrast_that_is_not_found() -> None:
    """`No neighbour sorts these pairs as well` misleads where nothing does, desirability at .55 beside .56."""
    report = SpecificityReport(
        layer=1,
        layers=[
            SpecificityLayer(
                layer=1,
                own=sorted_pairs(0.56),
                d_prime=0.2,
                d_prime_left=0.19,
                neighbours=[
                    NeighbourAt(
                        name="desirability",
                        transfer=sorted_pairs(0.5),
                        back=sorted_pairs(0.5),
                        own=None,
                        d_prime_left=0.19,
                    )
                ],
            )
        ],
        resampled="persona",
        reason="",
        warnings=[],
    )
    found, nothing = contrast_record(), contrast_record(ranking=ranking_of(p_values=[0.2] * 4))
    found["specificity"] = nothing["specificity"] = report
    assert describe_findings(found)[1].startswith("At layer 1, no neighbour's direction sorts these pairs as well")
    assert not any("neighbour" in sentence for sentence in describe_findings(nothing))
    assert describe_neighbours(nothing) == [
        "No layer separates these pairs better than chance, so no neighbour can be told from the contrast."
    ]
