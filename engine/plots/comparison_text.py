"""Draw a comparison as text that fits 80 columns. Knows rich and the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from engine.records.files import CaptureRecord
from engine.records.results import Comparison, DepthRow

_COLUMNS = 37


def comparison_as_text(comparison: Comparison) -> RenderableType:
    """The comparison as a table, with a line of what it comes to.

    Args:
        comparison: From `compare_captures`.
    """
    one, other = comparison["titles"]
    table = _cosines(comparison) if comparison["kind"] == "directions" else _depths(comparison)
    return Group(
        Text(f"{one} and {other}", style="bold"),
        table,
        *(Text(line) for line in describe_comparison(comparison)),
        *(Text(f"warning: {warning}", style="yellow") for warning in comparison["warnings"]),
    )


def describe_comparison(comparison: Comparison) -> list[str]:
    """What a comparison comes to, in sentences.

    Args:
        comparison: From `compare_captures`.
    """
    one, other = comparison["titles"]
    if comparison["kind"] == "depth":
        return [
            _leading_depths(comparison, name, title)
            for name, title in zip(comparison["names"], (one, other), strict=True)
        ]
    rows = comparison["directions"]
    beyond = [row for row in rows if abs(row["cosine"]) > row["chance"]]
    strongest = max(rows, key=lambda row: abs(row["cosine"]))
    return [
        f"The directions of {one} and {other} lie closer than random ones of the same captures (95%, layer by layer) at"
        f" {len(beyond)} of {len(rows)} layers; furthest from 0 at layer {strongest['layer']}:"
        f" cosine {strongest['cosine']:+.2f}, random ones within ±{strongest['chance']:.2f}.",
        f"The directions of two halves of one capture have {strongest['ceiling']:.2f} there: about what one and the"
        " same direction would show.",
    ]


def _cosines(comparison: Comparison) -> Table:
    table = _table("layer", "cosine", "random within", "halves reach")
    table.add_column(f"{'-1':<{_COLUMNS // 2}}0{'+1':>{_COLUMNS // 2}}", width=_COLUMNS, no_wrap=True)
    for row in comparison["directions"]:
        table.add_row(
            str(row["layer"]),
            f"{row['cosine']:+.2f}",
            f"±{row['chance']:.2f}",
            f"{row['ceiling']:.2f}",
            _cosine_line(row["cosine"], row["chance"]),
        )
    return table


def _cosine_line(cosine: float, chance: float) -> Text:
    middle = _COLUMNS // 2
    cells = [" "] * _COLUMNS
    reach = round(min(chance, 1.0) * middle)
    cells[middle - reach : middle + reach + 1] = "░" * (2 * reach + 1)
    cells[middle] = "│"
    cells[middle + round(max(-1.0, min(1.0, cosine)) * middle)] = "●"
    text = Text("".join(cells))
    text.highlight_regex("░", "dim")
    text.highlight_regex("●", "bold yellow" if abs(cosine) > chance else "blue")
    return text


def _depths(comparison: Comparison) -> Table:
    table = _table("depth", "layer", "d'", "interval", "layer", "d'", "interval")
    left, right = ([row for row in comparison["depths"] if row["capture"] == name] for name in comparison["names"])
    for row in left:
        nearest = min(right, key=lambda candidate: abs(candidate["depth"] - row["depth"]))
        table.add_row(f"{row['depth']:.0%}", *_depth_cells(row), *_depth_cells(nearest))
    return table


def _depth_cells(row: DepthRow) -> tuple[str, str, str]:
    mark = "=" if row["tied"] else " "
    return f"{row['layer']}{mark}", f"{row['d_prime']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}"


def _leading_depths(comparison: Comparison, name: str, title: str) -> str:
    rows = [row for row in comparison["depths"] if row["capture"] == name]
    best = max(rows, key=lambda row: row["d_prime"])
    tied = [row["depth"] for row in rows if row["tied"]]
    ties = "no other is tied with it"
    if len(tied) > 1:
        ties = f"tied with it are layers from {min(tied):.0%} to {max(tied):.0%}"
    place = f"layer {best['layer']} leads at {best['depth']:.0%} of the depth"
    return f"{title}: {place} (d' {best['d_prime']:.2f}); {ties}."


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


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
