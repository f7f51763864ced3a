"""What is drawn of a record: its heading, its rows, and its layers in order of rank."""

import pytest

from engine.plots.chart import HELD_OUT, RELATIVE_NORM, layer_chart
from tests.engine.plots.records import contrast_record, contrast_rows, prompt_record, separated_rows


def test_a_contrast_with_nothing_held_out_is_ranked_by_relative_norm() -> None:
    record = contrast_record()
    chart = layer_chart(record)
    assert chart.score is RELATIVE_NORM
    assert chart.ranked == (1, 3, 2, 0)
    assert list(chart.rows) == record["statistics"]


def test_a_contrast_is_ranked_by_the_worst_of_what_was_left_out() -> None:
    chart = layer_chart(contrast_record(separated_rows([(2.0, 0.5), (1.0, 1.5), (0.7, 3.0), (-1.0, 2.0)])))
    assert chart.score is HELD_OUT
    assert chart.ranked == (1, 2, 0, 3)


def test_layers_of_equal_rank_stay_in_order() -> None:
    assert layer_chart(contrast_record(contrast_rows([0.1, 0.3, 0.1, 0.3]))).ranked == (1, 3, 0, 2)


def test_ranks_are_layer_numbers_not_places() -> None:
    rows = contrast_rows()
    for row, layer in zip(rows, (14, 15, 20, 29), strict=True):
        row["layer"] = layer
    assert layer_chart(contrast_record(rows)).ranked == (15, 29, 20, 14)


def test_a_prompt_has_nothing_to_rank_by() -> None:
    chart = layer_chart(prompt_record())
    assert chart.score is None
    assert chart.ranked == ()
    assert len(chart.rows) == 4


def test_the_heading_of_a_contrast() -> None:
    chart = layer_chart(contrast_record())
    assert (chart.title, chart.subtitle) == ("honesty", "someone/some-model, 8 pairs, positions: last")


def test_the_heading_of_prompts_of_ones_own_is_the_captures_name() -> None:
    assert layer_chart(contrast_record(concept=None)).title == "some_honesty"
    assert layer_chart(prompt_record()).title == "some_prompt"


@pytest.mark.parametrize(("number", "counted"), [(1, "1 prompt,"), (2, "2 prompts,")])
def test_prompts_are_counted(number: int, counted: str) -> None:
    assert counted in layer_chart(prompt_record(num_prompts=number)).subtitle


@pytest.mark.parametrize(("number", "counted"), [(1, "1 pair,"), (2, "2 pairs,")])
def test_pairs_are_counted(number: int, counted: str) -> None:
    assert counted in layer_chart(contrast_record(num_pairs=number)).subtitle


def test_data_of_unknown_origin_has_a_heading_too() -> None:
    record = contrast_record()
    record["provenance"] = None
    assert layer_chart(record).subtitle == "8 pairs"
