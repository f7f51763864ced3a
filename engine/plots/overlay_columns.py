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
class OverlayPoint:
    """One layer of one capture.

    Attributes:
        capture: Its place among the captures.
        depth: How far through the model its block ends, 0 to 1.
        layer: Layer number.
        d_prime: Held-out d'.
        low: Lower end of its interval.
        high: Upper end.
        tied: Whether it may be the best of its capture.
    """

    capture: int
    depth: float
    layer: int
    d_prime: float
    low: float
    high: float
    tied: bool


def overlay_points(records: Sequence[CaptureRecord]) -> list[OverlayPoint]:
    """Every ranked layer of every capture, by its relative depth."""
    return [
        OverlayPoint(
            capture=place,
            depth=(row["layer"] + 1) / record["num_layers"],
            layer=row["layer"],
            d_prime=row["d_prime"],
            low=row["low"],
            high=row["high"],
            tied=row["tied"],
        )
        for place, record in enumerate(records)
        for row in sorted(record["ranking"]["layers"] if record["ranking"] else [], key=lambda row: row["layer"])
    ]


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
    points = overlay_points(records)
    if not points:
        return [Text("none of these captures has a ranking", style=quiet)]
    columns, room = max(width - _LABELS, 10), max(height - 1, 3)
    top = max(point.d_prime for point in points)
    bottom = min(min(point.d_prime for point in points), 0.0)
    span = (top - bottom) or 1.0

    def line_of(score: float) -> int:
        return round((top - score) / span * (room - 1))

    def column_of(depth: float) -> int:
        return min(round(depth * (columns - 1)), columns - 1)

    cells: dict[tuple[int, int], tuple[str, Style]] = {}
    for column in range(columns):
        cells[line_of(0.0), column] = ("─", quiet)
    if cursor is not None:
        for line in range(room):
            cells[line, column_of(cursor)] = ("┊", quiet)
    for point in points:
        place = line_of(point.d_prime), column_of(point.depth)
        taken = place in cells and cells[place][0] in SIGNS
        cells[place] = (SEVERAL, quiet) if taken else (SIGNS[point.capture], styles[point.capture])
    lines = []
    for line in range(room):
        label = "0" if line == line_of(0.0) else f"{top if line == 0 else bottom:.1f}" if line in (0, room - 1) else ""
        text = Text(f"{label:>{_LABELS - 1}} ", style=quiet, no_wrap=True, end="")
        for column in range(columns):
            sign, style = cells.get((line, column), (" ", quiet))
            text.append(sign, style)
        lines.append(text)
    depths = f"{'':{_LABELS}}{'0%':<{columns // 2}}{'50%':<{columns - columns // 2 - 4}}100%"
    return [*lines, Text(depths, style=quiet, no_wrap=True, end="")]
