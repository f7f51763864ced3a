"""The text of a chart: intervals, findings and warnings within 80 columns."""

import re

import pytest
from rich.cells import cell_len

from engine.plots.layers_chart import layers_chart
from engine.plots.layers_text import layers_as_text, render_text
from engine.records.files import CaptureRecord
from tests.engine.plots.records import (
    confounds_of,
    contrast_record,
    contrast_rows,
    prompt_record,
    prompt_rows,
    ranking_of,
    unranked_record,
)

# Distinct relative norms of 80 layers, the largest at layer 40.
EIGHTY = [0.5 - abs(layer - 40) / 100 - layer / 10000 for layer in range(80)]

RANKED = """\
honesty
someone/some-model, 72 pairs, positions: last
layer rank ranks    d'  95% interval     p AUROC raw norm cosine d' (95%)
    0    4   3-5  0.40 -0.35 to 1.15 0.500 0.643    0.500 1.0000   ━━━●━━
    1   1=   1-2  2.00  1.25 to 2.75 0.004 0.833    1.000 0.9990   ░░░   ━━●━━━
    2   2=   1-2  1.70  0.95 to 2.45 0.004 0.815    1.500 0.9980   ░░░  ━━●━━━
    3    5   3-5 -0.20 -0.95 to 0.55 1.000 0.417    2.000 0.9970 ━━━●━━
    4    3   3-5  1.00  0.25 to 1.75 0.031 0.750    2.500 0.9960   ░░━━━●━━
● d'  ━ 95% interval  ░ permutation null, 95%  p: permutation p-value
ranks: 95% rank interval  =: tied with the best
Layers 1-2, 4 separate held-out prompts better than chance. Highest: layer 1,
held-out d' 2.00 (95% interval 1.25 to 2.75, leave-one-persona-out), AUROC 0.83,
p = 0.004 (labels permuted by persona).
Layers 1-2 cannot be ordered: each may be the best (95%). The other one is
behind.
The concept is first found at layer 1, and without a gap from layer 4 on; before
that, it may be too weak for these pairs to show. The largest rise is from layer
0 (d' 0.40) to 1 (d' 2.00).
Personas limit the result: 70% of the squared error at layer 1 comes from them,
30% from single pairs; more personas narrow the interval, more pairs of the same
ones hardly do.
Baselines without the model (held-out AUROC; best layer 0.83): prompt length
0.90, the others at chance.
The raw difference norm, which grows with depth, would have picked layer 4 (rank
3 here).
warning: 3 templates are few
warning: prompt length alone separates held-out prompts (AUROC 0.90)
"""

UNRANKED = """\
honesty
someone/some-model, 2 pairs, positions: last
layer raw norm relative  cosine relative norm
    0    0.500   0.0200 1.00000 ████████▌
    1    1.000   0.1100 0.99900 ███████████████████████████████████████████████
    2    1.500   0.0500 0.99800 █████████████████████▎
    3    2.000   0.0800 0.99700 ██████████████████████████████████▏
warning: not ranked: 2 pairs are too few to rank layers by
"""

PROMPT = """\
some_prompt
someone/some-model, 1 prompt, positions: last
layer    mean    std  norm mean norm of a state
    0 +0.0000 1.5000 20.00 █████████████
    1 +0.0100 1.5000 40.00 ██████████████████████████
    2 +0.0200 1.5000 60.00 ███████████████████████████████████████
    3 +0.0300 1.5000 80.00 ████████████████████████████████████████████████████
"""


def text_of(record: CaptureRecord, width: int = 80) -> str:
    return render_text(layers_as_text(layers_chart(record)), width)


def table_lines(text: str) -> list[str]:
    """Table lines of the layers, without heading, findings and warnings."""
    return [line.rstrip() for line in text.splitlines() if re.match(r" *\d+ +[-+\d]", line)]


def some_ranked() -> CaptureRecord:
    ranking = ranking_of(
        [0.4, 2.0, 1.7, -0.2, 1.0],
        tied=[2],
        p_values=[0.5, 0.004, 0.004, 1.0, 0.031],
        half=0.75,
        warnings=["3 templates are few"],
    )
    confounds = confounds_of(0.9, ["prompt length alone separates held-out prompts (AUROC 0.90)"])
    return contrast_record(ranking=ranking, confounds=confounds)


@pytest.mark.parametrize(
    ("record", "expected"),
    [(some_ranked(), RANKED), (unranked_record(), UNRANKED), (prompt_record(), PROMPT)],
    ids=["ranked", "unranked", "prompt"],
)
def test_the_full_text(record: CaptureRecord, expected: str) -> None:
    assert [line.rstrip() for line in text_of(record).splitlines()] == expected.splitlines()


def assert_fits(text: str, width: int = 80, layers: int = 80) -> None:
    """No line exceeds the width or is truncated, and every layer has a line."""
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert [int(line.split()[0]) for line in table_lines(text)] == list(range(layers))


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("d_prime", [0.5, 15.0, 150.0, -15.0])
def test_eighty_ranked_layers_fit_eighty_columns(scale: float, d_prime: float) -> None:
    d_primes = [d_prime - layer / 1000 for layer in range(80)]
    ranking = ranking_of(d_primes, tied=range(70), p_values=[1e-4] * 80, half=abs(d_prime) / 2)
    text = text_of(contrast_record(contrast_rows(EIGHTY, scale), ranking))
    assert_fits(text)
    for layer, line in enumerate(table_lines(text)):
        cells = line.split()
        scores = [d_primes[layer], d_primes[layer] - abs(d_prime) / 2, d_primes[layer] + abs(d_prime) / 2]
        assert [float(cells[column]) for column in (3, 4, 6)] == pytest.approx(scores, rel=0.005, abs=0.0051)
        assert float(cells[9]) == pytest.approx(0.5 * (layer + 1) * scale, rel=0.01)
        assert line.count("●") == 1


@pytest.mark.parametrize("half", [0.2, 0.5])
def test_negative_scores_are_not_truncated(half: float) -> None:
    ranking = ranking_of([0.1 * layer - 0.3 for layer in range(30)], p_values=[1.0] + [1e-4] * 29, half=half)
    text = text_of(contrast_record(ranking=ranking))
    assert_fits(text, layers=30)
    assert [line.count("●") for line in table_lines(text)] == [1] * 30
    assert len({line.count("━") for line in table_lines(text)}) <= 3  # intervals differ only by rounding


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e12])
def test_eighty_layers_without_a_ranking_fit_eighty_columns(scale: float) -> None:
    text = text_of(unranked_record(contrast_rows(EIGHTY, scale)))
    assert_fits(text)
    assert [float(line.split()[1]) for line in table_lines(text)] == [0.5 * (layer + 1) * scale for layer in range(80)]


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e9])
def test_eighty_layers_of_a_prompt_fit_eighty_columns(scale: float) -> None:
    text = text_of(prompt_record(prompt_rows(80, scale)))
    assert_fits(text)
    assert [float(line.split()[3]) for line in table_lines(text)] == [20.0 * (layer + 1) * scale for layer in range(80)]


@pytest.mark.parametrize("title", ["a very long name of a concept " * 5, "x" * 200, "正直さ" * 40])
def test_a_long_name_fits(title: str) -> None:
    for record in (contrast_record(concept=title), unranked_record(concept=title)):
        assert_fits(text_of(record), layers=4)


@pytest.mark.parametrize(
    ("record", "width"),
    [(contrast_record(), 120), (unranked_record(), 60), (unranked_record(), 120), (prompt_record(), 60)],
)
def test_a_given_width_is_kept(record: CaptureRecord, width: int) -> None:
    assert_fits(text_of(record, width), width, layers=4)


def test_layers_are_in_order_and_ties_are_marked() -> None:
    d_primes = [float((layer * 7) % 80) / 20 for layer in range(80)]
    text = text_of(contrast_record(ranking=ranking_of(d_primes, tied=[3, 40])))
    ranks = [line.split()[1] for line in table_lines(text)]
    best = max(range(80), key=lambda layer: d_primes[layer])
    assert {layer for layer, rank in enumerate(ranks) if rank.endswith("=")} == {best, 3, 40}
    assert ranks[best] == "1="
    assert sorted(int(rank.rstrip("=")) for rank in ranks) == list(range(1, 81))
    assert table_lines(text)[best].split()[2] == "1-3"


def test_bar_lengths_are_proportional() -> None:
    lines = table_lines(text_of(unranked_record(contrast_rows([0.1, 0.2, 0.4]))))
    full = [line.count("█") for line in lines]
    assert full[2] == pytest.approx(2 * full[1], abs=2)
    assert full[2] == pytest.approx(4 * full[0], abs=4)


def test_layers_without_a_difference_are_drawn() -> None:
    text = text_of(unranked_record(contrast_rows([0.0, 0.0])))
    assert len(table_lines(text)) == 2
    assert "█" not in text


def test_layers_that_all_score_zero_are_drawn() -> None:
    ranking = ranking_of([0.0, 0.0], tied=[0, 1], p_values=[1.0, 1.0], half=0.0)
    for layer in ranking["layers"]:
        layer["null_low"] = layer["null_high"] = 0.0
    assert [line.count("●") for line in table_lines(text_of(contrast_record(ranking=ranking)))] == [1, 1]


def test_markup_in_a_name_is_literal() -> None:
    text = text_of(contrast_record(concept="[bold]honesty[/bold] [/]"))
    assert text.splitlines()[0].rstrip() == "[bold]honesty[/bold] [/]"


def test_plain_text_has_no_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in text_of(contrast_record())
