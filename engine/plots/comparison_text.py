"""Render comparisons of captures as text that fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from engine.records.files import CaptureRecord
from engine.records.results import ComparedLayer, Comparison, DepthRow, Transfer
from engine.stats.scores import SATURATED, own_scores

_COLUMNS = 23


def comparison_as_text(comparison: Comparison) -> RenderableType:
    """Render the comparison as a table, followed by its findings and warnings.

    Args:
        comparison: Comparison from `compare_captures`.

    Returns:
        A rich renderable.
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
    """Describe the findings of a comparison in sentences.

    Args:
        comparison: Comparison from `compare_captures`.

    Returns:
        For two concepts on one model, whether their directions point the same way at the layer where they separate
        best (of tied or saturated layers, the one with the highest sum of d'), at how many layers they differ from
        random ones, and the transfer both ways. For two models, the best layer and the ties of each.
    """
    one, other = comparison["titles"]
    if comparison["kind"] == "depth":
        return [
            _leading_depths(comparison, name, title)
            for name, title in zip(comparison["names"], (one, other), strict=True)
        ]
    rows = comparison["directions"]
    best, why = _best(rows)
    beyond = sum(abs(row["cosine"]) > row["chance"] for row in rows)
    return [
        f"At layer {best['layer']}, {why}, {_alike(best, one, other)}",
        f"The cosine is outside the 95% range of random directions at {beyond} of {len(rows)} layers (each layer tested"
        " separately).",
        _transfers(best, one, other),
    ]


def _best(rows: Sequence[ComparedLayer]) -> tuple[ComparedLayer, str]:
    """The layer to report, and why it was chosen."""
    full = [row for row in rows if all(own is not None and own["auroc"] >= SATURATED for own in row["own"])]
    if len(full) > 1:
        tied = f"{len(full)} of {len(rows)} layers are saturated, with an own AUROC of {SATURATED} or more"
        return max(full, key=lambda row: own_scores(row["own"])[1]), f"where the sum of d' is highest ({tied})"
    best = max(rows, key=lambda row: own_scores(row["own"]))
    highest = own_scores(best["own"])[0]
    tied_rows = sum(own_scores(row["own"])[0] == highest for row in rows)
    if highest == 0:
        return best, "the first layer that both have"
    if tied_rows > 1:
        return best, f"where the sum of d' is highest (the AUROC of their own directions is tied at {tied_rows} layers)"
    return best, "where their own directions separate best"


def _alike(row: ComparedLayer, one: str, other: str) -> str:
    """Whether two directions point the same way, opposite ways, or nowhere in particular."""
    cosine = f"cosine {row['cosine']:+.2f}, random directions from the same captures ±{row['chance']:.2f}"
    if row["ceiling"] <= row["chance"]:
        return (
            f"the {one} and {other} directions are not measured well enough to compare: two halves of one capture agree"
            f" by {row['ceiling']:.2f}, no more than random directions do ({cosine})."
        )
    halves = f"two halves of one capture agree by {row['ceiling']:.2f}"
    if abs(row["cosine"]) <= row["chance"]:
        return f"the {one} and {other} directions are no more alike than random ones ({cosine}; {halves})."
    ways = "the same way" if row["cosine"] > 0 else "opposite ways"
    return f"the {one} and {other} directions point {ways} ({cosine}; {halves})."


def _transfers(best: ComparedLayer, one: str, other: str) -> str:
    first, second = best["own"]
    return (
        f"There (1 on 2), the {one} direction sorts the {other} pairs with {_auroc(best['transfer'], second)}; back (2"
        f" on 1), the {other} direction sorts the {one} pairs with {_auroc(best['back'], first)}."
    )


def _auroc(found: Transfer, own: Transfer | None) -> str:
    beside = f", their own held-out direction with {own['auroc']:.2f}" if own is not None else ""
    name = "in-sample AUROC" if found.get("shared") else "AUROC"
    return f"{name} {found['auroc']:.2f} (95% interval {found['low']:.2f} to {found['high']:.2f}){beside}"


def _cosines(comparison: Comparison) -> Table:
    table = _table("layer", "cosine", "random 95%", "split-half", "1 on 2", "2 on 1")
    table.add_column(f"{'-1':<{_COLUMNS // 2}}0{'+1':>{_COLUMNS // 2}}", width=_COLUMNS, no_wrap=True)
    for row in comparison["directions"]:
        table.add_row(
            str(row["layer"]),
            f"{row['cosine']:+.2f}",
            f"±{row['chance']:.2f}",
            f"{row['ceiling']:.2f}",
            f"{row['transfer']['auroc']:.2f}",
            f"{row['back']['auroc']:.2f}",
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
    table = _table("depth", "layer", "d'", "95% interval", "layer", "d'", "95% interval")
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
    ties = "no other layer is tied with it"
    if len(tied) > 1:
        ties = f"tied layers range from {min(tied):.0%} to {max(tied):.0%} depth"
    leader = f"layer {best['layer']} leads at {best['depth']:.0%} depth"
    return f"{title}: {leader} (d' {best['d_prime']:.2f}); {ties}."


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


SIGNS = ("●", "▲", "■", "◆")
SEVERAL = "✱"  # several captures share the cell
MOST_CAPTURES = len(SIGNS)
_LABELS = 6


@dataclass(frozen=True)
class _Point:
    """Held-out d' of one layer, by index of the capture and relative depth."""

    capture: int
    depth: float
    d_prime: float


@dataclass(frozen=True)
class _Plane:
    """Map from scores to lines and from depths to columns; line 0 is the top."""

    top: float
    bottom: float
    lines: int
    columns: int

    def line(self, score: float) -> int:
        return round((self.top - score) / ((self.top - self.bottom) or 1.0) * (self.lines - 1))

    def column(self, depth: float) -> int:
        return min(round(depth * (self.columns - 1)), self.columns - 1)

    def label(self, line: int) -> str:
        """Axis label of a line: only zero, the top and the bottom have one."""
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
    """Plot held-out d' over relative depth, one marker and style per capture.

    Args:
        records: JSON records of two to four captures.
        width: Width in characters.
        height: Number of lines, including the depth axis.
        styles: Style of each capture.
        quiet: Style of the axes.
        cursor: Relative depth under the cursor.

    Returns:
        `height` lines, but at least four; one line if no capture has a ranking.
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
