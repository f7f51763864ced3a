"""The text of both classes: histograms, and the misordered pairs by name."""

import pytest
from rich.cells import cell_len

from engine.plots.classes_text import pair_label, sides_as_text
from engine.plots.layers_text import render_text
from engine.records.results import ClassProjections
from tests.engine.plots.records import contrast_record
from tests.engine.plots.results import sides_of

COLUMNS = 72
POSITIVE = [2.0, 1.0, 1.0, 0.5, -0.5, 0.25]
NEGATIVE = [-2.0, -1.0, -1.0, 0.75, 1.5, -0.25]  # pairs 3 and 4 are misordered
PROMPTS = [f"Prompt {number}" for number in range(6)]


def lines_of(sides: ClassProjections, prompts: list[str] | None = None, title: str = "honesty") -> list[str]:
    return [
        line.rstrip()
        for line in render_text(sides_as_text(sides, prompts.__getitem__ if prompts else None, title)).splitlines()
    ]


def histograms(sides: ClassProjections) -> tuple[str, str]:
    """Histogram lines of the positive and the negative class, padded to full width."""
    lines = lines_of(sides)
    positive = next(line for line in lines if line.startswith("+ "))
    negative = next(line for line in lines if line.startswith("- "))
    return positive[2:].ljust(COLUMNS), negative[2:].ljust(COLUMNS)


def test_the_full_text() -> None:
    assert lines_of(sides_of(POSITIVE, NEGATIVE), PROMPTS) == [
        "honesty, layer 7",
        "leave-one-persona-out: d' 1.50, AUROC 0.875",
        "+ " + " " * 27 + "▄" + " " * 12 + "▄" + " " * 4 + "▄" + " " * 8 + "█" + " " * 16 + "▄",
        "- ▄" + " " * 17 + "█" + " " * 12 + "▄" + " " * 17 + "▄" + " " * 13 + "▄",
        "  -2.0" + " " * 21 + "pooled within-class SD" + " " * 21 + "+2.0",
        "2 of 6 held-out pairs are misordered.",
        "  pair 4 (-2.0): Prompt 4",
        "  pair 3 (-0.2): Prompt 3",
    ]


def test_every_value_is_in_its_column() -> None:
    positive, negative = histograms(sides_of([0.0, 1.0, 0.5], [0.0, 0.25, 1.0]))
    assert [column for column, mark in enumerate(positive) if mark != " "] == [0, 36, 71]
    assert [column for column, mark in enumerate(negative) if mark != " "] == [0, 18, 71]


def test_the_height_is_the_number_of_prompts() -> None:
    positive, negative = histograms(sides_of([1.0] * 8 + [0.5] * 4 + [0.0], [0.0] * 12 + [1.0]))
    assert (positive[71], positive[36], positive[0]) == ("█", "▄", "▁")
    assert (negative[0], negative[71]) == ("█", "▁")


def test_a_single_prompt_among_many_is_visible() -> None:
    positive, _ = histograms(sides_of([1.0] * 500 + [0.0], [0.0] * 501))
    assert positive[0] != " "


@pytest.mark.parametrize("value", [0.0, 3.5, -1e9])
def test_equal_values_are_drawn(value: float) -> None:
    positive, negative = histograms(sides_of([value] * 4, [value] * 4))
    assert positive == negative == "█" + " " * 71
    assert "0 of 4 held-out pairs are misordered and 4 are tied." in lines_of(sides_of([value] * 4, [value] * 4))


def test_a_single_pair_is_drawn() -> None:
    positive, negative = histograms(sides_of([1.0], [-1.0]))
    assert (positive.index("█"), negative.index("█")) == (71, 0)


def test_five_pairs_are_listed_and_all_are_counted() -> None:
    sides = sides_of([0.0] * 8, [float(pair) for pair in range(8)])
    lines = lines_of(sides, [f"Prompt {pair}" for pair in range(8)])
    assert "7 of 8 held-out pairs are misordered and 1 is tied." in lines
    listed = [line for line in lines if line.startswith("  pair")]
    assert listed == [f"  pair {pair} (-{pair}.0): Prompt {pair}" for pair in (7, 6, 5, 4, 3)]


def test_without_labels_no_pair_is_listed() -> None:
    assert lines_of(sides_of(POSITIVE, NEGATIVE))[-1] == "2 of 6 held-out pairs are misordered."


def test_a_multiline_prompt_takes_one_line() -> None:
    prompts = ["<|im_start|>user\nAre you\n\n\thonest?<|im_end|>\n"] * 6
    *_, last = lines_of(sides_of(POSITIVE, NEGATIVE), prompts)
    assert last == "  pair 3 (-0.2): <|im_start|>user Are you honest?<|im_end|>"


@pytest.mark.parametrize("prompt", ["a long prompt " * 30, "x" * 300, "正直さ" * 60, "😀" * 100])
def test_nothing_is_wider_than_80_columns(prompt: str) -> None:
    lines = lines_of(sides_of([0.0] * 100, [float(pair) for pair in range(100)]), [prompt] * 100, title=prompt)
    assert max(cell_len(line) for line in lines) <= 80
    assert len([line for line in lines if line.startswith("  pair")]) == 5
    assert all(line.endswith("…") for line in lines[-5:])


def test_markup_in_a_prompt_is_literal() -> None:
    lines = lines_of(sides_of(POSITIVE, NEGATIVE), ["[bold]hush[/bold] [/]"] * 6, title="[red]honesty")
    assert lines[0] == "[red]honesty, layer 7"
    assert lines[-1].endswith(": [bold]hush[/bold] [/]")


def test_without_a_title_the_layer_is_the_heading() -> None:
    assert lines_of(sides_of(POSITIVE, NEGATIVE), title="")[0] == "layer 7"


def test_pairs_without_factors_are_held_out_in_five_folds() -> None:
    lines = lines_of(sides_of(POSITIVE, NEGATIVE, left_out="pairs"))
    assert lines[1] == "5-fold over pairs: d' 1.50, AUROC 0.875"


def test_the_label_of_a_pair_missing_from_the_record_points_to_the_shards() -> None:
    """Records of sharded captures hold only the first and the misordered pairs."""
    record = contrast_record()
    record["prompts"], record["negative_prompts"], record["factors"] = ["Be honest."], ["Lie."], []
    assert pair_label(record, 0) == "Be honest."
    assert pair_label(record, 1) == "text in the shards (see open_shards)"
