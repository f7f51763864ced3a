"""The text of a comparison: marks at the right columns, correct sentences."""

import pytest
from rich.cells import cell_len
from rich.console import Console

from engine.plots.comparison_text import comparison_as_text, describe_comparison
from engine.plots.layers_text import render_text
from engine.records.results import Comparison
from tests.engine.plots.results import (
    FEW,
    MANY,
    compared_depths,
    compared_directions,
    depth_rows,
    sorted_pairs,
)

MARKS = 23  # columns from cosine -1 to cosine 1

DIRECTIONS = """\
honesty and empathy
layer cosine random 95% split-half 1 on 2 2 on 1 -1         0         +1
    0  +1.00      ±0.10       0.90   1.00   0.75           ░│░         ●
    1  -1.00      ±0.50       0.80   0.00   0.25 ●    ░░░░░░│░░░░░░
    2  +0.05      ±0.20       0.95   0.53   0.51          ░░│●░
    3  -0.30      ±0.25       0.70   0.35   0.42         ●░░│░░░
At layer 0, where their own directions separate best, the honesty and empathy
directions point the same way (cosine +1.00, random directions from the same
captures ±0.10; two halves of one capture agree by 0.90).
The cosine is outside the 95% range of random directions at 3 of 4 layers (each
layer tested separately).
There (1 on 2), the honesty direction sorts the empathy pairs with AUROC 1.00
(95% interval 0.95 to 1.00), their own held-out direction with 0.80; back (2 on
1), the empathy direction sorts the honesty pairs with AUROC 0.75 (95% interval
0.70 to 0.80), their own held-out direction with 0.90.
warning: they differ in dtype: float32 and bfloat16
"""

DEPTHS = """\
someone/small and someone/large
depth layer    d'  95% interval layer   d'  95% interval
  33%    0=  0.50  0.00 to 1.50     1 0.50  0.00 to 1.50
  67%    1=  1.25  0.75 to 2.25    3= 2.00  1.50 to 3.00
 100%     2 -0.50 -1.00 to 0.50     5 0.25 -0.25 to 1.25
someone/small: layer 1 leads at 67% depth (d' 1.25); tied layers range from 33%
to 67% depth.
someone/large: layer 3 leads at 67% depth (d' 2.00); tied layers range from 67%
to 83% depth.
warning: they were not made from the same pairs
"""


def lines_of(comparison: Comparison) -> list[str]:
    return [line.rstrip() for line in render_text(comparison_as_text(comparison)).splitlines()]


def marks_of(comparison: Comparison) -> list[str]:
    """Drawn part of each layer, without the numbers."""
    lines = render_text(comparison_as_text(comparison)).splitlines()
    start = lines[1].index("-1 ")
    return [line[start : start + MARKS] for line in lines[2 : 2 + len(comparison["directions"])]]


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (compared_directions(warnings=["they differ in dtype: float32 and bfloat16"]), DIRECTIONS),
        (compared_depths(warnings=["they were not made from the same pairs"]), DEPTHS),
    ],
    ids=["directions", "depths"],
)
def test_the_full_text(comparison: Comparison, expected: str) -> None:
    assert lines_of(comparison) == expected.splitlines()


@pytest.mark.parametrize(
    ("cosine", "column"), [(-1.0, 0), (-0.5, 5), (0.0, 11), (0.5, 17), (1.0, 22), (1.0000001, 22), (-1.0000001, 0)]
)
def test_a_cosine_is_drawn_at_its_column(cosine: float, column: int) -> None:
    (marks,) = marks_of(compared_directions([(4, cosine, 0.0, 1.0)]))
    assert marks.index("●") == column
    assert marks.count("●") == 1


@pytest.mark.parametrize(("chance", "first", "last"), [(0.5, 5, 17), (1.0, 0, 22), (1.3, 0, 22), (0.1, 10, 12)])
def test_the_band_spans_the_range_of_random_directions(chance: float, first: int, last: int) -> None:
    (marks,) = marks_of(compared_directions([(4, 0.0, chance, 1.0)]))
    assert (marks.index("░"), marks.rindex("░")) == (first, last)
    assert set(marks[first : last + 1]) == {"░", "●"}


def test_zero_is_under_its_heading() -> None:
    heading = lines_of(compared_directions())[1]
    assert heading[heading.index("-1 ") :].index("0") == marks_of(compared_directions())[0].index("│") == 11


def test_cosines_beyond_chance_have_another_color() -> None:
    console = Console(width=80, color_system="truecolor", force_terminal=True, force_interactive=False)
    colors = [
        segment.style.color.name
        for segment in console.render(comparison_as_text(compared_directions()))
        if segment.text == "●" and segment.style and segment.style.color
    ]
    assert colors == ["yellow", "yellow", "blue", "yellow"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((14, 0.4, 0.1, 0.7), "point the same way (cosine +0.40, random directions from the same captures ±0.10; two"),
        ((14, -0.72, 0.1, 0.7), "point opposite ways (cosine -0.72,"),
        ((14, -0.4, 0.5, 0.6), "are no more alike than random ones (cosine -0.40,"),
        ((14, 0.4, 0.1, 0.0), "are not measured well enough to compare: two halves of one capture agree by 0.00, no"),
    ],
    ids=["same", "opposite", "within chance", "not measured"],
)
def test_what_two_directions_have_in_common(row: tuple[int, float, float, float], words: str) -> None:
    """Opposite directions were called `closer than random`, and halves of 0.00 what one same direction would show."""
    first, *_ = describe_comparison(compared_directions([row]))
    assert first.startswith(
        "At layer 14, where their own directions separate best, the honesty and empathy directions " + words
    )
    assert len(marks_of(compared_directions([row]))) == 1


def test_the_headline_is_not_about_a_layer_where_neither_concept_shows() -> None:
    """The strongest cosine can be at a layer inside the noise."""
    comparison = compared_directions([(3, 0.4, 0.1, 0.7), (9, -0.6, 0.2, 0.8)])
    comparison["directions"][1]["own"] = (sorted_pairs(0.5), sorted_pairs(0.55))
    assert describe_comparison(comparison)[0].startswith("At layer 3, ")


def with_own(*scores: tuple[float, float]) -> Comparison:
    """Comparison at layers 3, 4, ... with the AUROC of both own directions, and d' of the second one."""
    comparison = compared_directions([(3 + place, 0.4, 0.1, 0.7) for place in range(len(scores))])
    for row, (auroc, d_prime) in zip(comparison["directions"], scores, strict=True):
        row["own"] = sorted_pairs(auroc) | {"d_prime": 5.0}, sorted_pairs(auroc) | {"d_prime": d_prime}
    return comparison


def test_of_saturated_layers_the_one_with_the_highest_d_prime_is_reported() -> None:
    """The first of 29 layers with an AUROC of 1.00 was said to be the one where they separate best."""
    first, *_ = describe_comparison(with_own((0.9, 2.0), (1.0, 6.0), (0.997, 9.0), (1.0, 7.0)))
    assert first.startswith(
        "At layer 5, where the sum of d' is highest (3 of 4 layers are saturated, with an own AUROC of 0.995 or more),"
        " the honesty and empathy directions point"
    )


def test_layers_with_the_same_auroc_are_said_to_be_tied() -> None:
    first, *_ = describe_comparison(with_own((0.7, 3.0), (0.75, 1.0), (0.75, 2.0)))
    assert first.startswith(
        "At layer 5, where the sum of d' is highest (the AUROC of their own directions is tied at 2 layers), the"
    )


def test_without_own_directions_no_layer_is_said_to_separate_best() -> None:
    comparison = compared_directions([(3, 0.4, 0.1, 0.7), (4, 0.4, 0.1, 0.7)])
    for row in comparison["directions"]:
        row["own"] = (None, None)
    assert describe_comparison(comparison)[0].startswith("At layer 3, the first layer that both have, the honesty")


def test_negative_cosines_beyond_chance_are_counted() -> None:
    rows = [(0, 0.3, 0.3, 0.9), (1, 0.31, 0.3, 0.9), (2, -0.31, 0.3, 0.9), (3, -0.2, 0.3, 0.9)]
    assert "at 2 of 4 layers" in describe_comparison(compared_directions(rows))[1]


def test_transfer_both_ways_is_given_where_the_own_directions_separate_best() -> None:
    comparison = compared_directions([(3, 0.4, 0.1, 0.7), (9, -0.6, 0.2, 0.8)])
    comparison["directions"][0]["own"] = (sorted_pairs(0.95), sorted_pairs(0.8))
    assert describe_comparison(comparison)[2] == (
        "There (1 on 2), the honesty direction sorts the empathy pairs with AUROC 0.70 (95% interval 0.65 to 0.75),"
        " their own held-out direction with 0.80; back (2 on 1), the empathy direction sorts the honesty pairs with"
        " AUROC 0.60 (95% interval 0.55 to 0.65), their own held-out direction with 0.95."
    )
    comparison["directions"][0]["back"]["shared"] = 24
    assert "sorts the honesty pairs with in-sample AUROC 0.60 (95%" in describe_comparison(comparison)[2]
    assert "sorts the empathy pairs with AUROC 0.70 (95%" in describe_comparison(comparison)[2]
    comparison["directions"][0]["own"] = (None, None)
    comparison["directions"][1]["own"] = (None, None)
    assert "their own" not in describe_comparison(comparison)[2]


def test_each_model_has_its_own_sentence() -> None:
    assert describe_comparison(compared_depths()) == [
        "someone/small: layer 1 leads at 67% depth (d' 1.25); tied layers range from 33% to 67% depth.",
        "someone/large: layer 3 leads at 67% depth (d' 2.00); tied layers range from 67% to 83% depth.",
    ]


def test_without_ties_the_sentence_says_so() -> None:
    comparison = compared_depths(depths=[*depth_rows(FEW, [0.5, 2.0, 0.1], [1]), *depth_rows(MANY, [1.0, 0.0], [0])])
    assert all("; no other layer is tied with it." in sentence for sentence in describe_comparison(comparison))


def test_layers_of_nearest_depth_share_a_line() -> None:
    """Four layers against eighty: they pair with the twentieth, fortieth, ..."""
    lines = lines_of(compared_depths([1.0, 2.0, 0.5, 0.2], [layer / 100 for layer in range(80)]))
    assert [line.split()[:2] for line in lines[2:6]] == [["25%", "0="], ["50%", "1="], ["75%", "2"], ["100%", "3"]]
    assert [line.split()[6] for line in lines[2:6]] == ["19", "39", "59", "79"]


@pytest.mark.parametrize(
    "comparison",
    [
        compared_directions([(layer, -0.01 * layer, 0.9, 0.99) for layer in range(80)]),
        compared_depths([-15.0 - layer for layer in range(80)], [120.0 + layer for layer in range(80)]),
        compared_directions(titles=("a concept of a long name " * 4, "正直さ" * 30)),
        compared_depths(titles=("x" * 100, "someone/" + "y" * 100), warnings=["w" * 200]),
    ],
    ids=["80 layers", "80 layers of large scores", "long names", "longer names"],
)
def test_nothing_is_wider_than_80_columns_or_cut(comparison: Comparison) -> None:
    lines = lines_of(comparison)
    assert max(cell_len(line) for line in lines) <= 80
    assert not any("…" in line for line in lines)


def test_markup_in_a_name_is_literal() -> None:
    titles = ("[bold]honesty[/bold]", "[/] empathy")
    assert lines_of(compared_directions(titles=titles))[0] == "[bold]honesty[/bold] and [/] empathy"
