"""Standardize token projections for heat maps and render a reading as text."""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from statistics import median

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from engine.records.files import MethodComparison, TokenReading

_BYTE = re.compile(rb"\\x([0-9a-f]{2})")  # how `token_texts` shows a byte of a character that is split
_NORMAL = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation
MOST_SPREADS = 3.0
"""Absolute z-score at which the color scale of a heat map ends."""


def stand_out(values: Sequence[float], aside: Collection[int] = (0,)) -> list[float]:
    """Compute the robust z-score of each token's projection within a layer.

    The z-score is the distance from the median, divided by the median absolute deviation scaled to the standard
    deviation of a normal distribution. Tokens that are set aside count in neither: the first one is an outlier in many
    models, and the chat template is not part of the text. Raw projections would show one color per layer: in early
    layers the class means hardly differ, and in most layers all tokens of running text project to one side of the
    positions that the direction was extracted from.

    Args:
        values: Projection of each token, `(tokens,)`.
        aside: Indices of the tokens to leave out, see `tokens_aside`.

    Returns:
        One z-score per token; all 0 if the tokens have no spread.
    """
    others = [value for place, value in enumerate(values) if place not in aside] or values
    middle = median(others)
    spread = _NORMAL * median(abs(value - middle) for value in others)
    return [(value - middle) / spread if spread > 0 else 0.0 for value in values]


def tokens_aside(reading: TokenReading) -> set[int]:
    """Indices of the tokens to leave out of colors, medians and extremes; empty if no other tokens remain.

    Args:
        reading: Reading from `read_text`.
    """
    aside = {*reading.get("set_aside", [0])}
    return aside if len(aside) < len(reading["tokens"]) else set()


def describe_aside(aside: Collection[int]) -> str:
    """What is set aside, for a legend.

    Args:
        aside: Indices of the tokens.
    """
    return "first token" if {*aside} == {0} else "first token, special tokens and chat template"


_BAR = 31
_LOWEST, _HIGHEST = -1.0, 2.0  # range of the scale; arrows mark values outside it
_MARKS, _HOLLOW = "◀●▶", "◁○▷"
_ASIDE = Style(dim=True)
# Blue to gray to orange is safe for color-blind readers; each background has a text color with enough contrast.
_SHADES = (
    ("#0072B2", "#ffffff"),
    ("#6cb4dc", "#000000"),
    ("#e8e8e8", "#000000"),
    ("#f2c46d", "#000000"),
    ("#E69F00", "#000000"),
)


def tokens_as_text(reading: TokenReading, *, layer: int | None = None, most: int = 60) -> RenderableType:
    """Render the text colored by projection, then one line per token with its value.

    Args:
        reading: Reading from `read_text`.
        layer: Layer to show; the leading one by default.
        most: Maximum number of tokens to list.

    Returns:
        A rich renderable.
    """
    shown = reading["leading"] if layer is None else layer
    values, aside = reading["values"][shown], tokens_aside(reading)
    tokens = [shown_token(reading, place) for place in range(len(values))]
    name, scale = _names(reading)
    notes = [scale]
    if aside:
        notes.append(f"○: {describe_aside(aside)}, not colored")
    if "methods" in reading:
        notes.append(compared_methods(reading["methods"]))
    parts: list[RenderableType] = [
        Text(f"{name}, layer {shown}, {reading['method']}", style="bold"),
        *(Text(note, style="dim") for note in notes),
        _colored(_as_written(reading) or tokens, values, aside),
        _listed(tokens[:most], values[:most], aside),
    ]
    if len(values) > most:
        parts.append(Text(f"and {len(values) - most} more tokens (--json lists all)", style="dim"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in reading["warnings"]]
    return Group(*parts)


def _names(reading: TokenReading) -> tuple[str, str]:
    """Name of what is read, and what 0 and 1 mean."""
    if reading["method"] == "imported":
        return reading["concept"] or "vectors", "0: no projection, 1: length of the imported vector"
    return reading["concept"] or "custom pairs", "0: mean of the negative class, 1: mean of the positive class"


def readable_token(token: str) -> str:
    """Replace the vocabulary's space and newline markers with readable characters.

    For readings without the text of each token. Non-printable characters become escapes.

    Example:
        >>> readable_token("Ġtrue"), readable_token("Ċ")
        (' true', '⏎')
    """
    return one_line(token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n"))


def shown_token(reading: TokenReading, token: int) -> str:
    """The text of a token of a reading, see `one_line`.

    Args:
        reading: Reading from `read_text`.
        token: Index of the token, from 0.
    """
    texts = reading.get("texts")
    return one_line(texts[token]) if texts else readable_token(reading["tokens"][token])


def one_line(text: str) -> str:
    """Put the text of a token on one line: `⏎` for a line break, `⇥` for a tab, escapes for other such characters.

    Args:
        text: The text.
    """
    line = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


def compared_methods(compared: MethodComparison) -> str:
    """Describe a comparison of methods in one sentence, best first.

    Args:
        compared: Comparison from `compare_methods`.
    """
    best, scores = compared["best"], compared["scores"]
    if not scores:
        return f"{best}: the methods could not be compared on held-out pairs"
    listed = ", ".join(f"{score['method']} {score['auroc']:.3f}" for score in scores)
    tied = f"; {best} is within 0.005 of it" if best != scores[0]["method"] else ""
    return f"held-out AUROC at layer {compared['layer']}: {listed}{tied}"


def describe_token(reading: TokenReading, token: int, layer: int) -> str:
    """Describe the projection and the z-score of one token at one layer.

    Args:
        reading: Reading from `read_text`.
        token: Index of the token, from 0.
        layer: One of the layers that were read.
    """
    values, aside = reading["values"][layer], tokens_aside(reading)
    z_score = round(stand_out(values, aside)[token], 1) + 0.0  # avoids "-0.0"
    note = f", robust z-score {z_score:+.1f} within the layer"
    if token in aside:
        note = "; special token or chat template, not colored"
        note = "; the first token is an outlier in many models, ignore it" if token == 0 else note
    return (
        f"token {token} '{shown_token(reading, token)}' at layer {layer}: {values[token]:+.2f}"
        f" (0: negative class mean, 1: positive class mean){note}"
    )


def _as_written(reading: TokenReading) -> list[str]:
    """Divide the prompt among its tokens; a character that is split goes to its first token.

    Special tokens that are not in the prompt, such as one that begins every text, keep their own text. Empty if the
    tokens do not spell the prompt, or if their texts are unknown.
    """
    whole, texts, end = reading["prompt"].encode(), reading.get("texts", []), 0
    ends, added = [0], set()
    for place, text in enumerate(texts):
        found = next((spelt for spelt in _spellings(text, first=end == 0) if whole.startswith(spelt, end)), None)
        if found is None:
            if place not in tokens_aside(reading):
                return []
            added.add(place)
        end += len(found or b"")
        ends.append(end)
    if not texts or end != len(whole):
        return []
    while (start := next((place for place, end in enumerate(ends) if _inside(whole, end)), None)) is not None:
        ends[start] += 1
    spans = [whole[start:end].decode() for start, end in pairwise(ends)]
    return [one_line(texts[place] if place in added else span) for place, span in enumerate(spans)]


def _spellings(text: str, *, first: bool) -> list[bytes]:
    """What the text of a token may stand for: itself, or bytes; the first one may have a space that was added."""
    spelt = [text.encode(), _BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode())]
    return [*spelt, *(one[1:] for one in spelt if first and one.startswith(b" "))]


def _inside(text: bytes, place: int) -> bool:
    """Whether a place in UTF-8 is inside a character."""
    return place < len(text) and text[place] & 0xC0 == 0x80


def _colored(tokens: list[str], values: list[float], aside: set[int]) -> Text:
    text = Text()
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        text.append(token, style=_ASIDE if place in aside else _style(value))
    return text


def _listed(tokens: list[str], values: list[float], aside: set[int]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("token", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column(_axis(), width=_BAR, no_wrap=True)
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        out = place in aside
        bar = Text(_bar(value, _HOLLOW if out else _MARKS), style="bold")
        table.add_row(Text(token), f"{value:.2f}", bar, style=_ASIDE if out else None)
    return table


def _style(value: float) -> Style:
    place = (max(_LOWEST, min(_HIGHEST, value)) - _LOWEST) / (_HIGHEST - _LOWEST)
    background, ink = _SHADES[min(int(place * len(_SHADES)), len(_SHADES) - 1)]
    return Style(color=ink, bgcolor=background)


def _bar(value: float, marks: str) -> str:
    cells = list(" " * _BAR)
    for end in (0.0, 1.0):
        cells[_column(end)] = "│"
    cells[_column(value)] = marks[0 if value < _LOWEST else 2 if value > _HIGHEST else 1]
    return "".join(cells)


def _axis() -> str:
    cells = list(" " * _BAR)
    cells[_column(0.0)], cells[_column(1.0)] = "0", "1"
    return "".join(cells)


def _column(value: float) -> int:
    clipped = max(_LOWEST, min(_HIGHEST, value))
    return round((clipped - _LOWEST) / (_HIGHEST - _LOWEST) * (_BAR - 1))
