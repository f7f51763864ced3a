"""A text read along a direction, as text: every token readable, coloured by its value, with a mark on a scale."""

import io

import pytest
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.style import Style

from engine.plots.layers_text import render_text
from engine.plots.tokens_text import readable_token, tokens_as_text
from engine.records.files import TokenReading
from tests.engine.plots.results import reading_of

TOKENS = ["I", "Ġswear", "Ċ", "▁it", "Ġis", "Ġtrue"]
VALUES = [-4.0, 0.0, 1.0, 0.5, 2.0, 2.25]

READ = """\
honesty, layer 7, mean_diff
0: mean of the negative prompts, 1: mean of the positive prompts
I swear⏎ it is true
token  value           0         1
I      -4.00 ◀         │         │
 swear  0.00           ●         │
⏎       1.00           │         ●
 it     0.50           │    ●    │
 is     2.00           │         │         ●
 true   2.25           │         │         ▶
warning: most tokens lie far from both sides
"""


def lines_of(reading: TokenReading, layer: int | None = None, most: int = 60) -> list[str]:
    return [line.rstrip() for line in render_text(tokens_as_text(reading, layer=layer, most=most)).splitlines()]


def listed(lines: list[str]) -> list[str]:
    """The lines of tokens: those with a scale."""
    return [line for line in lines if "│" in line or "●" in line]


def styles_of(reading: TokenReading) -> dict[str, Style]:
    """How each token is shown in the running text, on a terminal with all colours."""
    console = Console(file=io.StringIO(), width=80, color_system="truecolor", force_terminal=True)
    segments = console.render(tokens_as_text(reading))
    return {segment.text: segment.style for segment in segments if segment.style and segment.style.bgcolor}


def test_the_text_to_the_letter() -> None:
    reading = reading_of(TOKENS, [0.0] * 6, VALUES, warnings=["most tokens lie far from both sides"])
    assert lines_of(reading) == READ.splitlines()


@pytest.mark.parametrize(
    ("token", "shown"),
    [("Ġtrue", " true"), ("▁true", " true"), ("Ċ", "⏎"), ("\n", "⏎"), ("true", "true"), ("ĠĠ", "  "), ("正直", "正直")],
)
def test_tokens_are_shown_as_people_write_them(token: str, shown: str) -> None:
    assert readable_token(token) == shown


@pytest.mark.parametrize("layer", [None, 3, 7, 11])
def test_the_leading_layer_is_shown_unless_another_is_asked_for(layer: int | None) -> None:
    lines = lines_of(reading_of(["a", "b"], [0.25, 0.5], [0.75, 1.0], [1.25, 1.5]), layer)
    assert lines[0] == f"honesty, layer {layer or 7}, mean_diff"
    first = {3: "0.25", 7: "0.75", 11: "1.25"}[layer or 7]
    assert listed(lines)[0].split()[1] == first


@pytest.mark.parametrize(
    ("value", "mark", "column"),
    [
        *((-1.0, "●", 0), (-0.5, "●", 5), (0.0, "●", 10), (0.5, "●", 15), (1.0, "●", 20), (2.0, "●", 30)),
        *((-1.01, "◀", 0), (-900.0, "◀", 0), (2.01, "▶", 30), (900.0, "▶", 30), (float("inf"), "▶", 30)),
    ],
)
def test_a_value_is_marked_where_it_lies_and_beyond_the_scale_by_an_arrow(value: float, mark: str, column: int) -> None:
    lines = lines_of(reading_of(["a"], [value]))
    heading = next(line for line in lines if line.startswith("token"))
    zero, one = heading.index("0"), heading.index("1")
    assert one - zero == 10
    (line,) = listed(lines)
    bar = line[zero - 10 :]
    assert bar.index(mark) == column
    assert sum(bar.count(sign) for sign in "●◀▶") == 1
    assert all(bar[end] == "│" for end in (10, 20) if end != column)


def test_the_list_is_cut_where_told_and_the_rest_is_counted() -> None:
    reading = reading_of([f"t{place}" for place in range(100)], [place / 100 for place in range(100)])
    for most, left in ((60, 40), (3, 97), (99, 1)):
        lines = lines_of(reading, most=most)
        assert [line.split()[0] for line in listed(lines)] == [f"t{place}" for place in range(most)]
        assert f"and {left} more tokens (all of them with --json)" in lines
    assert "".join(lines_of(reading, most=3)).count("t99") == 1  # the running text is whole
    for most in (100, 101):
        lines = lines_of(reading, most=most)
        assert len(listed(lines)) == 100
        assert not any("more tokens" in line for line in lines)


def test_markup_in_a_token_is_text() -> None:
    tokens = ["[bold]", "Ġ[/]", "[red]x", "[link=a]"]
    lines = lines_of(reading_of(tokens, [0.5] * 4, concept="[i]honesty[/i]"))
    assert lines[0] == "[i]honesty[/i], layer 3, mean_diff"
    assert lines[2] == "[bold] [/][red]x[link=a]"
    assert [line.split()[0] for line in listed(lines)] == ["[bold]", "[/]", "[red]x", "[link=a]"]


def test_wide_tokens_do_not_move_the_scale() -> None:
    lines = listed(lines_of(reading_of(["正直さ", "😀", "▁é", "a"], [0.5, 0.5, 0.5, 0.5])))
    assert len({cell_len(line[: line.index("│")]) for line in lines}) == 1
    assert lines[0].startswith("正直さ ")
    assert lines[1].startswith("😀 ")


@pytest.mark.parametrize("token", ["a" * 200, "正" * 100, "Ġ" * 100, "😀" * 60, "a b " * 40])
def test_long_tokens_and_texts_fit_80_columns(token: str) -> None:
    lines = lines_of(reading_of([token] * 3, [-1234567.891, 0.5, 1e12]))
    assert max(cell_len(line) for line in lines) <= 80
    assert not any("…" in line for line in lines)
    assert sum(line.count("◀") + line.count("●") + line.count("▶") for line in lines) == 3


def test_pairs_of_ones_own_have_no_name() -> None:
    assert lines_of(reading_of(["a"], [0.5], concept=None, method="pca"))[0] == "pairs of your own, layer 3, pca"


def test_low_and_high_values_lie_on_other_colours() -> None:
    values = [-5.0, -1.0, 0.5, 2.0, 5.0]
    styles = styles_of(reading_of(["lowest", "low", "middle", "high", "highest"], values))
    backgrounds = {text: style.bgcolor for text, style in styles.items()}
    assert backgrounds.keys() == {"lowest", "low", "middle", "high", "highest"}
    assert backgrounds["lowest"] == backgrounds["low"]
    assert backgrounds["highest"] == backgrounds["high"]
    assert len({str(colour) for colour in backgrounds.values()}) == 3


def test_values_of_both_sides_are_told_apart() -> None:
    styles = styles_of(reading_of(["negative", "positive"], [0.0, 1.0]))
    assert styles["negative"].bgcolor != styles["positive"].bgcolor


def test_the_ink_can_be_read_on_every_colour() -> None:
    """A contrast of 4.5 at least, as the Web Content Accessibility Guidelines ask for."""
    styles = styles_of(reading_of([f"t{place}" for place in range(31)], [place / 10 - 1 for place in range(31)]))
    assert len(styles) == 31
    for style in styles.values():
        assert style.color is not None
        assert style.bgcolor is not None
        lighter, darker = sorted((luminance(style.color), luminance(style.bgcolor)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def luminance(color: Color) -> float:
    """Relative luminance of an sRGB colour."""
    parts = [part / 255 for part in color.get_truecolor()]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_there_are_no_colours_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in render_text(tokens_as_text(reading_of(TOKENS, VALUES)))


@pytest.mark.parametrize("token", ["\x1b[31mred", "\x1b]0;title\x07"])
def test_a_token_cannot_steer_the_terminal(token: str) -> None:
    assert "\x1b" not in render_text(tokens_as_text(reading_of([token], [0.5])))
