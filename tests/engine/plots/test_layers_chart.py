"""The chart of a record: heading, rows, ranked layers, warnings, whiskers."""

import pytest

from engine.plots.findings import describe_findings
from engine.plots.layers_chart import Scale, layers_chart, whiskers
from engine.records.files import CaptureRecord
from engine.records.results import RankedLayer, SpecificityReport
from tests.engine.plots.records import (
    TOO_FEW,
    confounds_of,
    contrast_record,
    prompt_record,
    ranking_of,
    unranked_record,
)
from tests.engine.stats.captures import provenance


def test_the_chart_of_a_contrast_holds_its_ranking() -> None:
    record = contrast_record()
    chart = layers_chart(record)
    assert record["ranking"] is not None
    assert [row["layer"] for row in chart.ranked] == [1, 2, 0, 3]
    assert list(chart.ranked) == record["ranking"]["layers"]
    assert list(chart.rows) == record["statistics"]
    assert chart.chance == record["ranking"]["chance"]
    assert list(chart.findings) == describe_findings(record)
    assert chart.warnings == ()


def test_warnings_on_ranking_and_confounds_are_passed_on() -> None:
    ranking = ranking_of(warnings=["3 templates are few"])
    record = contrast_record(ranking=ranking, confounds=confounds_of(0.9, ["prompt length alone tells them apart"]))
    assert layers_chart(record).warnings == ("3 templates are few", "prompt length alone tells them apart")


def test_warnings_on_neighbours_and_why_there_are_none_are_passed_on() -> None:
    record = contrast_record()
    for reason, warnings, said in (
        ("", ["warmth: they differ in dtype"], ("warmth: they differ in dtype",)),
        ("no space left", [], ("not compared with neighbours: no space left",)),
    ):
        report = SpecificityReport(layer=None, layers=[], resampled="", reason=reason, warnings=warnings)
        assert layers_chart({**record, "specificity": report}).warnings == said


def test_an_unranked_contrast_says_why_and_has_no_findings() -> None:
    chart = layers_chart(unranked_record())
    assert chart.contrast
    assert (chart.ranked, chart.chance, chart.findings) == ((), None, ())
    assert chart.warnings == (f"not ranked: {TOO_FEW}",)


def test_a_prompt_has_no_ranking_and_no_warnings() -> None:
    chart = layers_chart(prompt_record())
    assert not chart.contrast
    assert (chart.ranked, chart.chance, chart.findings, chart.warnings) == ((), None, (), ())
    assert len(chart.rows) == 4


def test_the_heading_of_a_contrast() -> None:
    chart = layers_chart(contrast_record())
    assert (chart.title, chart.subtitle) == ("honesty", "someone/some-model, 72 pairs, positions: last")


def test_a_site_other_than_resid_post_is_in_the_heading() -> None:
    record = contrast_record()
    record["provenance"] = provenance(positions="last", site="attn_out")
    chart = layers_chart(record)
    assert chart.subtitle == "someone/some-model, 72 pairs, positions: last, site: attn_out"
    assert chart.axis == "layer (attn_out of block)"


def test_without_a_concept_the_heading_is_the_capture_name() -> None:
    assert layers_chart(contrast_record(concept=None)).title == "some_honesty"
    assert layers_chart(prompt_record()).title == "some_prompt"


@pytest.mark.parametrize(
    ("record", "counted"),
    [
        (prompt_record(num_prompts=1), "1 prompt,"),
        (prompt_record(num_prompts=2), "2 prompts,"),
        (unranked_record(num_pairs=1), "1 pair,"),
        (unranked_record(num_pairs=2), "2 pairs,"),
    ],
)
def test_prompts_and_pairs_are_counted(record: CaptureRecord, counted: str) -> None:
    assert f" {counted}" in layers_chart(record).subtitle


def test_a_record_without_provenance_has_a_heading() -> None:
    record = contrast_record()
    record["provenance"] = None
    chart = layers_chart(record)
    assert (chart.subtitle, chart.axis) == ("72 pairs", "layer (output of block)")


# Scores and columns coincide: a score of 3 is at column 3.
SCALE = Scale(0.0, 16.0, 17)


def layer_with(
    score: float, interval: tuple[float, float], null: tuple[float, float], tied: bool = False
) -> RankedLayer:
    (layer,) = ranking_of([score])["layers"]
    layer["low"], layer["high"] = interval
    layer["null_low"], layer["null_high"] = null
    layer["tied"] = tied
    return layer


@pytest.mark.parametrize(
    ("layer", "drawn"),
    [
        (layer_with(12.0, (9.0, 15.0), (0.0, 4.0)), "░░░░░    ━━━●━━━ "),
        (layer_with(4.0, (2.0, 6.0), (0.0, 8.0)), "░░━━●━━░░        "),
        (layer_with(0.0, (0.0, 3.0), (5.0, 5.0)), "●━━━ ░           "),
        (layer_with(16.0, (16.0, 16.0), (14.0, 16.0)), "              ░░●"),
        (layer_with(3.4, (2.6, 3.6), (8.4, 8.6)), "   ●━   ░░       "),
    ],
    ids=["apart", "inside", "left edge", "right edge", "rounded"],
)
def test_every_mark_is_at_the_column_of_its_score(layer: RankedLayer, drawn: str) -> None:
    assert whiskers(layer, SCALE).plain == drawn


def test_tied_layers_have_another_color_than_layers_behind() -> None:
    styles = [
        {str(span.style) for span in whiskers(layer_with(8.0, (7.0, 9.0), (8.0, 8.0), tied=tied), SCALE).spans}
        for tied in (True, False)
    ]
    assert [len(of_one) for of_one in styles] == [1, 1]
    assert styles[0] != styles[1]


def test_the_scale_fits_every_interval() -> None:
    layers = [
        layer_with(-3.0, (-4.0, -2.0), (-0.5, 0.5)),
        layer_with(11.0, (9.0, 13.0), (-0.5, 0.5)),
        layer_with(0.0, (-0.1, 0.1), (-6.0, 1.0)),
    ]
    scale = Scale.of(layers, 20)
    assert (scale.low, scale.high, scale.width) == (-6.0, 13.0, 20)
    assert (scale.column(-6.0), scale.column(13.0)) == (0, 19)
    assert {len(whiskers(layer, scale).plain) for layer in layers} == {20}


def test_equal_scores_have_a_scale() -> None:
    layer = layer_with(0.0, (0.0, 0.0), (0.0, 0.0))
    assert whiskers(layer, Scale.of([layer], 5)).plain == "●    "
