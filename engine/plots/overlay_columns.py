"""Draw the scores of several captures over one another as columns of characters. Knows rich and records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text

from engine.records.files import CaptureRecord

SIGNS = ("●", "▲", "■", "◆")
SEVERAL = "✱"  # where captures have the same place
MOST_CAPTURES = len(SIGNS)
_LABELS = 6


@dataclass(frozen=True)
class _Point:
    """One layer of one capture: the capture's place, the layer's relative depth and its held-out d'."""

    capture: int
    depth: float
    d_prime: float


@dataclass(frozen=True)
class _Plane:
    """Where scores and depths stand; line 0 is the top."""

    top: float
    bottom: float
    lines: int
    columns: int

    def line(self, score: float) -> int:
        return round((self.top - score) / ((self.top - self.bottom) or 1.0) * (self.lines - 1))

    def column(self, depth: float) -> int:
        return min(round(depth * (self.columns - 1)), self.columns - 1)

    def label(self, line: int) -> str:
        """Scores at zero, at the top and at the bottom."""
        if line == self.line(0.0):
            return "0"
        return f"{self.top if line == 0 else self.bottom:.1f}" if line in (0, self.lines - 1) else ""


def overlay_as_columns(
    records: Sequence[CaptureRecord],
    width: int,
    height: int,
    *,
    styles: Sequence[Style],
    quiet: Style,
    cursor: float | None = None,
) -> list[Text]:
    """Held-out d' of each capture over relative depth, each with a sign and a colour of its own.

    Args:
        records: Two to four captures.
        width: Characters from side to side.
        height: Lines, that of the depths included.
        styles: A colour for each capture.
        quiet: Axes.
        cursor: The relative depth that is looked at.
    """
    points = _points(records)
    if not points:
        return [Text("none of these captures has a ranking", style=quiet)]
    scores = [point.d_prime for point in points]
    plane = _Plane(max(scores), min(*scores, 0.0), max(height - 1, 3), max(width - _LABELS, 10))
    cells = {(plane.line(0.0), column): ("─", quiet) for column in range(plane.columns)}
    if cursor is not None:
        cells |= {(line, plane.column(cursor)): ("┊", quiet) for line in range(plane.lines)}
    for point in points:
        place = plane.line(point.d_prime), plane.column(point.depth)
        taken = cells.get(place, ("", quiet))[0] in (*SIGNS, SEVERAL)
        cells[place] = (SEVERAL, quiet) if taken else (SIGNS[point.capture], styles[point.capture])
    lines = []
    for line in range(plane.lines):
        text = Text(f"{plane.label(line):>{_LABELS - 1}} ", style=quiet, no_wrap=True, end="")
        for column in range(plane.columns):
            text.append(*cells.get((line, column), (" ", quiet)))
        lines.append(text)
    half = plane.columns // 2
    depths = f"{'':{_LABELS}}{'0%':<{half}}{'50%':<{plane.columns - half - 4}}100%"
    return [*lines, Text(depths, style=quiet, no_wrap=True, end="")]


def _points(records: Sequence[CaptureRecord]) -> list[_Point]:
    return [
        _Point(place, (row["layer"] + 1) / record["num_layers"], row["d_prime"])
        for place, record in enumerate(records)
        for row in (record["ranking"]["layers"] if record["ranking"] else [])
    ]
