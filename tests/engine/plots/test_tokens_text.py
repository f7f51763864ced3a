"""The text of a reading: readable, colored tokens with marks on a scale."""

import io

import pytest
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.style import Style

from engine.plots.layers_text import render_text
from engine.plots.tokens_text import (
    compared_methods,
    describe_token,
    readable_token,
    shown_token,
    tokens_as_text,
    tokens_aside,
)
from engine.records.files import METHODS, Method, MethodComparison, MethodScore, TokenReading
from tests.engine.plots.results import reading_of

TOKENS = ["I", "Ġswear", "Ċ", "▁it", "Ġis", "Ġtrue"]
VALUES = [-4.0, 0.0, 1.0, 0.5, 2.0, 2.25]

READ = """\
honesty, layer 7, mean_diff
0: mean of the negative class, 1: mean of the positive class
○: first token, not colored
I swear⏎ it is true
token  value           0         1
I      -4.00 ◁         │         │
 swear  0.00           ●         │
⏎       1.00           │         ●
 it     0.50           │    ●    │
 is     2.00           │         │         ●
 true   2.25           │         │         ▶
warning: most tokens are far from both classes
"""


def lines_of(reading: TokenReading, layer: int | None = None, most: int = 60) -> list[str]:
    return [line.rstrip() for line in render_text(tokens_as_text(reading, layer=layer, most=most)).splitlines()]


def listed(lines: list[str]) -> list[str]:
    """Lines that list a token, recognized by their scale."""
    return [line for line in lines if "│" in line or line.rstrip().endswith(("●", "○"))]


def styles_of(reading: TokenReading) -> dict[str, Style]:
    """Style of each token in the running text on a truecolor terminal."""
    console = Console(file=io.StringIO(), width=80, color_system="truecolor", force_terminal=True)
    segments = console.render(tokens_as_text(reading))
    return {segment.text: segment.style for segment in segments if segment.style and segment.style.bgcolor}


def test_the_full_text() -> None:
    reading = reading_of(TOKENS, [0.0] * 6, VALUES, warnings=["most tokens are far from both classes"])
    assert lines_of(reading) == READ.splitlines()


@pytest.mark.parametrize(
    ("token", "shown"),
    [("Ġtrue", " true"), ("▁true", " true"), ("Ċ", "⏎"), ("\n", "⏎"), ("true", "true"), ("ĠĠ", "  "), ("正直", "正直")],
)
def test_space_and_newline_markers_are_replaced(token: str, shown: str) -> None:
    assert readable_token(token) == shown


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("joy 日本 grief", ["joy", r" \xe6\x97", r"\xa5本", " grief"]),
        (r"a \xe6 日", ["a", r" \xe6", r" \xe6\x97", r"\xa5"]),
        ("two words", [" two", " words"]),
    ],
)
def test_the_text_reads_as_it_was_typed(prompt: str, texts: list[str]) -> None:
    reading = reading_of(texts, [0.0] * len(texts), [1.0] * len(texts))
    reading["prompt"], reading["texts"] = prompt, texts
    assert prompt in lines_of(reading)
    reading = reading_of(["<s>", *texts], [0.0] * (len(texts) + 1), [1.0] * (len(texts) + 1))
    reading["prompt"], reading["texts"] = prompt, ["<s>", *texts]
    assert f"<s>{prompt}" in lines_of(reading)


@pytest.mark.parametrize("layer", [None, 3, 7, 11])
def test_the_leading_layer_is_the_default(layer: int | None) -> None:
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
def test_a_value_is_marked_at_its_column_or_by_an_arrow(value: float, mark: str, column: int) -> None:
    lines = lines_of(reading_of(["a"], [value]))
    heading = next(line for line in lines if line.startswith("token"))
    zero, one = heading.index("0"), heading.index("1")
    assert one - zero == 10
    (line,) = listed(lines)
    bar = line[zero - 10 :]
    assert bar.index(mark) == column
    assert sum(bar.count(sign) for sign in "●◀▶") == 1
    assert all(bar[end] == "│" for end in (10, 20) if end != column)


def test_the_list_is_truncated_and_the_rest_is_counted() -> None:
    reading = reading_of([f"t{place}" for place in range(100)], [place / 100 for place in range(100)])
    for most, rest in ((60, 40), (3, 97), (99, 1)):
        lines = lines_of(reading, most=most)
        assert [line.split()[0] for line in listed(lines)] == [f"t{place}" for place in range(most)]
        assert f"and {rest} more tokens (--json lists all)" in lines
    assert "".join(lines_of(reading, most=3)).count("t99") == 1  # the running text is not truncated
    for most in (100, 101):
        lines = lines_of(reading, most=most)
        assert len(listed(lines)) == 100
        assert not any("more tokens" in line for line in lines)


def test_markup_in_a_token_is_literal() -> None:
    tokens = ["[bold]", "Ġ[/]", "[red]x", "[link=a]"]
    lines = lines_of(reading_of(tokens, [0.5] * 4, concept="[i]honesty[/i]"))
    assert lines[0] == "[i]honesty[/i], layer 3, mean_diff"
    assert lines[3] == "[bold] [/][red]x[link=a]"
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
    assert [sum(line.count(mark) for line in listed(lines)) for mark in "◁●▶"] == [1, 1, 1]


def test_pairs_without_a_concept_are_called_custom() -> None:
    assert lines_of(reading_of(["a"], [0.5], concept=None, method="pca"))[0] == "custom pairs, layer 3, pca"


def test_low_and_high_values_have_different_backgrounds() -> None:
    values = [-5.0, -1.0, 0.5, 2.0, 5.0]
    styles = styles_of(reading_of(["lowest", "low", "middle", "high", "highest"], values, set_aside=[]))
    backgrounds = {text: style.bgcolor for text, style in styles.items()}
    assert backgrounds.keys() == {"lowest", "low", "middle", "high", "highest"}
    assert backgrounds["lowest"] == backgrounds["low"]
    assert backgrounds["highest"] == backgrounds["high"]
    assert len({str(color) for color in backgrounds.values()}) == 3


def test_the_class_means_have_different_backgrounds() -> None:
    styles = styles_of(reading_of(["negative", "positive"], [0.0, 1.0], set_aside=[]))
    assert styles["negative"].bgcolor != styles["positive"].bgcolor


def test_text_is_readable_on_every_background() -> None:
    """The contrast ratio is at least 4.5, as WCAG requires."""
    values = [place / 10 - 1 for place in range(31)]
    styles = styles_of(reading_of([f"t{place}" for place in range(31)], values, set_aside=[]))
    assert len(styles) == 31
    for style in styles.values():
        assert style.color is not None
        assert style.bgcolor is not None
        lighter, darker = sorted((luminance(style.color), luminance(style.bgcolor)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def luminance(color: Color) -> float:
    """Relative luminance of an sRGB color."""
    parts = [part / 255 for part in color.get_truecolor()]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_plain_text_has_no_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in render_text(tokens_as_text(reading_of(TOKENS, VALUES)))


@pytest.mark.parametrize("token", ["\x1b[31mred", "\x1b]0;title\x07"])
def test_a_token_cannot_send_escape_codes(token: str) -> None:
    assert "\x1b" not in render_text(tokens_as_text(reading_of([token], [0.5])))


def test_a_token_in_words() -> None:
    reading = reading_of(["<s>", "Ġswear", "Ġ", "Ġtrue"], [900.0, 1.0, 2.0, 3.5])
    scale = "(0: negative class mean, 1: positive class mean)"
    assert (
        describe_token(reading, 3, 3)
        == f"token 3 ' true' at layer 3: +3.50 {scale}, robust z-score +1.0 within the layer"
    )
    assert describe_token(reading, 2, 3).endswith("robust z-score +0.0 within the layer")
    first = describe_token(reading, 0, 3)
    assert (
        first == f"token 0 '<s>' at layer 3: +900.00 {scale}; the first token is an outlier in many models, ignore it"
    )


TEMPLATED = reading_of(
    ["<s>", "user", "Ġbe", "Ġkind", "Ġnow", "</s>"], [900.0, -70.0, 1.0, 2.0, 4.0, 60.0], set_aside=[0, 1, 5]
)


def test_tokens_that_are_set_aside_are_marked_and_not_colored() -> None:
    lines = lines_of(TEMPLATED)
    assert lines[2] == "○: first token, special tokens and chat template, not colored"
    assert ["".join(mark for mark in line if mark in "◁○▷◀●▶") for line in listed(lines)] == [*"▷◁●●▶▷"]
    assert styles_of(TEMPLATED).keys() == {" be", " kind", " now"}


def test_tokens_that_are_set_aside_do_not_count_in_z_scores() -> None:
    scale = "(0: negative class mean, 1: positive class mean)"
    z_score = (4.0 - 2.0) / 1.4826  # of 1, 2 and 4
    assert describe_token(TEMPLATED, 4, 3).endswith(f"robust z-score {z_score:+.1f} within the layer")
    said = describe_token(TEMPLATED, 1, 3)
    assert said == f"token 1 'user' at layer 3: -70.00 {scale}; special token or chat template, not colored"


def test_if_every_token_is_set_aside_none_is() -> None:
    reading = reading_of(["<s>", "user"], [0.0, 1.0], set_aside=[0, 1])
    assert tokens_aside(reading) == set()
    assert [line[-31:].count("●") for line in listed(lines_of(reading))] == [1, 1]


def test_readings_of_older_versions_set_the_first_token_aside() -> None:
    assert tokens_aside(reading_of(["a", "b", "c"], [0.0] * 3)) == {0}


def test_the_text_of_a_token_is_shown_rather_than_its_spelling() -> None:
    texts = ["I", " café", "\n\t", "\\xf0\\x9f", "Ġ", "\xa0", "\u200b", "\x1b[31m"]
    reading = reading_of(["?"] * 8, [0.5] * 8, texts=texts)
    shown = [shown_token(reading, place) for place in range(8)]
    assert shown == ["I", " café", "⏎⇥", "\\xf0\\x9f", "Ġ", "\\xa0", "\\u200b", "\\x1b[31m"]
    assert "".join(shown) in lines_of(reading)
    assert describe_token(reading, 3, 3).startswith("token 3 '\\xf0\\x9f' at layer 3")


def comparison(best: Method, **aurocs: float) -> MethodComparison:
    scores = [MethodScore(method=method, auroc=aurocs[method], d_prime=0.0) for method in METHODS if method in aurocs]
    scores.sort(key=lambda score: -score["auroc"])
    return MethodComparison(layer=16, held_out="persona", scores=scores, best=best)


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (comparison("lda", mean_diff=0.9, lda=0.9712), "held-out AUROC at layer 16: lda 0.971, mean_diff 0.900"),
        (comparison("mean_diff", mean_diff=1.0), "held-out AUROC at layer 16: mean_diff 1.000"),
        (
            comparison("mean_diff", mean_diff=0.968, lda=0.971),
            "held-out AUROC at layer 16: lda 0.971, mean_diff 0.968; mean_diff is within 0.005 of it",
        ),
        (comparison("mean_diff"), "mean_diff: the methods could not be compared on held-out pairs"),
    ],
)
def test_a_comparison_of_methods_in_words(compared: MethodComparison, said: str) -> None:
    assert compared_methods(compared) == said
    assert said in " ".join(lines_of(reading_of(["a", "b"], [0.5, 0.5], methods=compared)))
