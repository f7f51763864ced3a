"""Draw the layers of a ranking as columns of characters, in the room there is. Knows rich and rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text

from engine.plots.looks import PLAIN, Looks
from engine.records.ranking import RankedLayer

TIED, BEHIND, INTERVAL, SHUFFLED = "●", "○", "│", "░"
_LABELS = 6  # columns of the scores on the left
_FEWEST_ROWS = 3


def layers_as_columns(
    ranked: Sequence[RankedLayer], width: int, height: int, *, cursor: int | None = None, looks: Looks = PLAIN
) -> list[Text]:
    """One column a layer: `●` is its d' (`○` for a layer behind the best), `│` the 95% interval, `░` shuffled labels.

    Args:
        ranked: The layers, in any order.
        width: Characters from side to side.
        height: Lines from top to bottom, the line of layer numbers included.
        cursor: The layer that is looked at.
        looks: Colours.

    Returns:
        Lines, `height` of them. Where there are more layers than columns, those around the cursor.
    """
    rows = sorted(ranked, key=lambda row: row["layer"])
    room = max(height - 1, _FEWEST_ROWS)
    step = max(min((width - _LABELS) // len(rows), 4), 1)
    shown = _around(rows, cursor, max((width - _LABELS) // step, 1))
    top = max(max(row["high"], row["null_high"]) for row in rows)
    bottom = min(min(row["low"], row["null_low"], 0.0) for row in rows)
    scale = _Scale(bottom, top if top > bottom else bottom + 1.0, room)
    lines = [_line(shown, scale, line, step, cursor, looks) for line in range(room)]
    return [*lines, _numbers(shown, step, cursor, looks)][-height:]


def _around(rows: Sequence[RankedLayer], cursor: int | None, room: int) -> Sequence[RankedLayer]:
    place = next((place for place, row in enumerate(rows) if row["layer"] == cursor), 0)
    first = max(min(place - room // 2, len(rows) - room), 0)
    return rows[first : first + room]


@dataclass(frozen=True)
class _Scale:
    """Which score stands at which line; line 0 is the top."""

    bottom: float
    top: float
    lines: int

    def line(self, score: float) -> int:
        return round((self.top - score) / (self.top - self.bottom) * (self.lines - 1))

    def label(self, line: int) -> str:
        """Scores at the top, at the bottom and at zero."""
        if line == self.line(0.0):
            return "0"
        if line in (0, self.lines - 1):
            return f"{self.top if line == 0 else self.bottom:.1f}"
        return ""


def _line(rows: Sequence[RankedLayer], scale: _Scale, line: int, step: int, cursor: int | None, looks: Looks) -> Text:
    text = Text(f"{scale.label(line):>{_LABELS - 1}} ", style=looks.quiet, no_wrap=True, end="")
    zero = line == scale.line(0.0)
    for row in rows:
        sign, style = _cell(row, scale, line, looks)
        if sign == " " and zero:
            sign, style = "─", looks.quiet
        if row["layer"] == cursor:
            style += looks.cursor
        text.append(sign, style)
        text.append(("─" if zero else " ") * (step - 1), looks.quiet)
    return text


def _cell(row: RankedLayer, scale: _Scale, line: int, looks: Looks) -> tuple[str, Style]:
    style = looks.tied if row["tied"] else looks.behind
    if line == scale.line(row["d_prime"]):
        return (TIED if row["tied"] else BEHIND), style
    if scale.line(row["high"]) <= line <= scale.line(row["low"]):
        return INTERVAL, style
    if scale.line(row["null_high"]) <= line <= scale.line(row["null_low"]):
        return SHUFFLED, looks.shuffled
    return " ", looks.quiet


def _numbers(rows: Sequence[RankedLayer], step: int, cursor: int | None, looks: Looks) -> Text:
    """Layer numbers under the columns: that of the cursor, and every fifth that has room beside it."""
    places = {row["layer"]: place * step for place, row in enumerate(rows)}
    labels = {places[cursor]: str(cursor)} if cursor in places else {}
    reach = range(0)
    if cursor in places:
        reach = range(places[cursor] - 1, places[cursor] + len(str(cursor)) + 1)
    for layer, place in places.items():
        if (layer % 5 == 0 or place == 0) and not set(range(place, place + len(str(layer)))) & set(reach):
            labels[place] = str(layer)
    text = Text(" " * _LABELS, no_wrap=True, end="")
    for place in sorted(labels):
        text.append(" " * (_LABELS + place - len(text)))
        text.append(labels[place], looks.cursor if labels[place] == str(cursor) else looks.quiet)
    return text
