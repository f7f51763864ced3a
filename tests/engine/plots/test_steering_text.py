"""Steered texts as text: measurements, and as many texts side by side as the width has room for."""

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from engine.plots.steering_text import steered_as_text, sweep_as_text
from engine.plots.visible_text import VisibleConsole
from engine.records.steering import SteeredText, SteeredTexts
from tests.engine.plots.results import overflowed_text

SHOWN = """\
honesty, layer 7, mean_diff
strength in units of the mean norm of the states, added to all tokens; greedy
perplexity, projection: of the new tokens, as the unsteered model reads them
projection 0: mean of the negative class, 1: mean of the positive class; shift:
from the baseline
random: a random direction of the same length, drawn from the covariance of the
captured states (cosine -0.03)

text          tokens  perplexity  projection  shift
baseline           3        2.00        0.50
honesty +0.2       3        2.50        1.00  +0.50
random +0.2        3        3.50        0.25  -0.25

baseline                   honesty +0.2               random +0.2
I took it. Then I told     I did take it …            Nobody did.
everyone about it, twice.
warning: no luck
"""


def text(kind: Any, words: str, numbers: tuple[float, float], *, ended: bool = True, **more: Any) -> SteeredText:
    return SteeredText(
        kind=kind,
        strength=more.get("strength"),
        text=words,
        tokens=3,
        ended=ended,
        perplexity=numbers[0],
        projection=numbers[1],
        shift=numbers[1] - 0.5,
    )


def texts_of(**changes: Any) -> SteeredTexts:
    made = SteeredTexts(
        prompt="Who took it?",
        rendered="Who took it?",
        layer=7,
        concept="honesty",
        method="mean_diff",
        unit="norm",
        steered_tokens="all",
        sampled=False,
        seed=3,
        max_new_tokens=3,
        baseline=text("baseline", "I took it. Then I told everyone about it, twice.", (2, 0.5)),
        steered=[text("steered", "I did take it", (2.5, 1), ended=False, strength=0.2)],
        controls=[text("control", "Nobody did.", (3.5, 0.25), strength=0.2)],
        control_cosine=-0.03,
        warnings=["no luck"],
    )
    return made | changes  # type: ignore[return-value]  # merging with a plain dict loses the TypedDict


def lines_of(texts: SteeredTexts, width: int = 80) -> list[str]:
    out = io.StringIO()
    VisibleConsole(file=out, width=width, highlight=False, markup=False, emoji=False).print(steered_as_text(texts))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_whole_text() -> None:
    assert "\n".join(lines_of(texts_of())) + "\n" == SHOWN


@pytest.mark.parametrize(("width", "rows"), [(40, 4), (60, 4), (80, 2), (150, 1)])
def test_each_row_has_the_baseline_and_what_fits(width: int, rows: int) -> None:
    steered = [text("steered", "Yes.", (1, 1), strength=amount) for amount in (-0.2, 0.2)]
    controls = [text("control", "No.", (1, 1), strength=amount) for amount in (-0.2, 0.2)]
    lines = lines_of(texts_of(steered=steered, controls=controls), width)
    assert max(map(cell_len, lines)) <= width
    heads = [line for line in lines if line.startswith("baseline") and any(f" {sign}0.2" in line for sign in "+-")]
    assert len(heads) == rows
    assert "honesty -0.2" in heads[0]


def test_ablation_and_sampling_are_said() -> None:
    lines = lines_of(
        texts_of(steered=[text("ablated", "Yes.", (1, 1))], controls=[text("control", "No.", (1, 1))], sampled=True)
    )
    assert "the direction is projected out of all tokens; sampled with seed 3" in lines
    assert any(line.split()[:2] == ["random", "ablated"] for line in lines)


def test_texts_cannot_steer_a_terminal() -> None:
    hostile = text("steered", "a\x1b[31mb [bold]c", (1, 1), strength=0.2)
    shown = "\n".join(lines_of(texts_of(steered=[hostile], controls=[])))
    assert "\x1b" not in shown
    assert "a\\x1b[31mb [bold]c" in shown


def test_it_is_plain_text_on_any_console() -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(steered_as_text(texts_of()))
    assert "I did take it" in out.getvalue()


SWEPT = """\
honesty, mean_diff
strength in units of the mean norm of the states, added to all tokens; greedy
perplexity, projection: of the new tokens, as the unsteered model reads them
projection 0: mean of the negative class, 1: mean of the positive class; shift:
from the baseline
random: a random direction of the same length, drawn from the covariance of the
captured states
in each cell: shift, then perplexity (baseline 2.00)

layer  honesty +0.2
    7  +0.50   2.50
   12  +2.50   2.50

layer   random +0.2
    7  -0.25   3.50
   12  -0.25   3.50
warning: no luck
"""


def test_a_sweep_has_a_row_for_each_layer() -> None:
    later = texts_of(layer=12, steered=[text("steered", "I did.", (2.5, 3), strength=0.2)])
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(sweep_as_text([texts_of(), later]))
    assert [line.rstrip() for line in out.getvalue().splitlines()] == SWEPT.splitlines()
    alone = io.StringIO()
    Console(file=alone, width=80, highlight=False).print(sweep_as_text([texts_of(controls=[])]))
    assert "random +0.2" not in alone.getvalue()


def test_a_strength_that_overflows_is_marked_in_its_place() -> None:
    both = [text("steered", "I did.", (2.5, 1), strength=0.2), overflowed_text("steered", 9)]
    lines = lines_of(texts_of(steered=both, controls=[]))
    assert ["honesty", "+9", "overflow"] in [line.split() for line in lines]
    assert any(line.startswith("I took it.") and "the predictions are" in line for line in lines)
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(sweep_as_text([texts_of(steered=both, controls=[])]))
    assert "    7  +0.50   2.50    overflow" in out.getvalue()
    assert "nan" not in f"{lines} {out.getvalue()}"
