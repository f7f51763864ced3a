"""A chart as text: every layer, the right ranks, never more than 80 columns."""

import re

import pytest
from rich.cells import cell_len

from engine.plots.chart import layer_chart
from engine.plots.text import render_text
from engine.records.files import CaptureRecord
from tests.engine.plots.records import contrast_record, contrast_rows, prompt_record, prompt_rows, separated_rows

# Relative norms of 80 layers, all different, the largest at layer 40.
EIGHTY = [0.5 - abs(layer - 40) / 100 - layer / 10000 for layer in range(80)]

CONTRAST = """\
honesty
someone/some-model, 8 pairs, positions: last
layer diff norm relative  cosine relative norm                             rank
    0     0.500   0.0200 1.00000 ███████▍                                     4
    1     1.000   0.1100 0.99900 █████████████████████████████████████████    1
    2     1.500   0.0500 0.99800 ██████████████████▋                          3
    3     2.000   0.0800 0.99700 █████████████████████████████▊               2
Layers by relative norm: 1, 3, 2, 0
Relative norm is the distance between the two sides over the size of the states.
It describes these prompts; it does not say whether the difference holds on
others. The raw difference norm grows with depth whatever the concept, and a
cosine near 1 is normal.
"""

SEPARATED = """\
honesty
someone/some-model, 8 pairs, positions: last
layer    d' AUROC diff norm relative  cosine held-out d'                   rank
    0  0.50 0.550     0.500   0.1000 1.00000 █████████▋                       2
    1  1.50 0.650     1.000   0.1000 0.99900 █████████████████████████████    1
    2 -1.00 0.400     1.500   0.1000 0.99800                                  3
Layers by held-out d': 1, 0, 2
"""

PROMPT = """\
some_prompt
someone/some-model, 1 prompt, positions: last
layer    mean    std  norm norm of a token's state
    0 +0.0000 1.5000 20.00 █████████████
    1 +0.0100 1.5000 40.00 ██████████████████████████
    2 +0.0200 1.5000 60.00 ███████████████████████████████████████
    3 +0.0300 1.5000 80.00 ████████████████████████████████████████████████████
"""


@pytest.mark.parametrize(("record", "expected"), [(contrast_record(), CONTRAST), (prompt_record(), PROMPT)])
def test_the_text_to_the_letter(record: CaptureRecord, expected: str) -> None:
    lines = [line.rstrip() for line in render_text(layer_chart(record)).splitlines()]
    assert lines == expected.splitlines()


def test_the_text_of_a_separation_to_the_letter() -> None:
    record = contrast_record(separated_rows([(2.0, 0.5), (1.5, 2.0), (-1.0, 2.0)]))
    lines = [line.rstrip() for line in render_text(layer_chart(record)).splitlines()]
    assert lines[: len(SEPARATED.splitlines())] == SEPARATED.splitlines()
    assert "It has no interval yet" in " ".join(lines)


def table_lines(text: str) -> list[str]:
    """The lines of layers, without heading and notes."""
    return [line.rstrip() for line in text.splitlines() if re.match(r" *\d+ +[-+\d]", line)]


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e12])
@pytest.mark.parametrize("title", ["honesty", "a very long name of a concept " * 5, "x" * 200, "正直さ" * 40])
def test_eighty_layers_fit_eighty_columns(scale: float, title: str) -> None:
    text = render_text(layer_chart(contrast_record(contrast_rows(EIGHTY, scale), concept=title)))
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert [int(line.split()[0]) for line in table_lines(text)] == list(range(80))
    assert [float(line.split()[1]) for line in table_lines(text)] == [0.5 * (layer + 1) * scale for layer in range(80)]


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e9])
def test_eighty_layers_of_a_prompt_fit_eighty_columns(scale: float) -> None:
    text = render_text(layer_chart(prompt_record(prompt_rows(80, scale))))
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert [int(line.split()[0]) for line in table_lines(text)] == list(range(80))
    assert [float(line.split()[3]) for line in table_lines(text)] == [20.0 * (layer + 1) * scale for layer in range(80)]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_given_width_is_kept(width: int) -> None:
    text = render_text(layer_chart(contrast_record()), width=width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert [int(line.split()[0]) for line in table_lines(text)] == [0, 1, 2, 3]


def test_the_five_first_ranks_are_marked_at_their_layers() -> None:
    text = render_text(layer_chart(contrast_record(contrast_rows(EIGHTY))))
    marked = {
        int(match[2]): int(match[1])
        for line in table_lines(text)
        if (match := re.match(r" *(\d+) .*█\S* +(\d+)$", line))
    }
    assert marked == {1: 40, 2: 39, 3: 41, 4: 38, 5: 42}
    assert "Layers by relative norm: 40, 39, 41, 38, 42 and 75 more" in text


def test_bars_are_as_long_as_their_values_say() -> None:
    lines = table_lines(render_text(layer_chart(contrast_record(contrast_rows([0.1, 0.2, 0.4])))))
    full = [line.count("█") for line in lines]
    assert full[2] == pytest.approx(2 * full[1], abs=2)
    assert full[2] == pytest.approx(4 * full[0], abs=4)


def test_layers_without_any_difference_are_drawn() -> None:
    text = render_text(layer_chart(contrast_record(contrast_rows([0.0, 0.0]))))
    assert len(table_lines(text)) == 2
    assert "█" not in text


def test_markup_in_a_name_is_text() -> None:
    text = render_text(layer_chart(contrast_record(concept="[bold]honesty[/bold] [/]")))
    assert text.splitlines()[0].rstrip() == "[bold]honesty[/bold] [/]"


def test_there_are_no_colours_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in render_text(layer_chart(contrast_record()))
