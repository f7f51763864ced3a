"""Describe specificity and transfer in sentences and tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.records.results import NeighbourAt, SpecificityLayer, SpecificityReport, Transfer, TransferMatrix
from engine.stats.sorting import CHANCE, Verdict, compare_sorting, strength

_LONGEST = 16  # characters of a name in a table


def neighbour_sentences(report: SpecificityReport | None) -> list[str]:
    """Name the neighbours whose directions sort the pairs as well as their own, and say what is left of d'.

    Args:
        report: From `measure_specificity`; None if it was not measured.

    Returns:
        Sentences about the layer to read first: the neighbours that sort as well, those that cannot be told apart, or
        else the nearest one; and what is left. Neighbours that sort in-sample are not compared. Empty if nothing was
        measured.
    """
    row = leading_row(report)
    if row is None:
        return []
    names = [neighbour["name"] for neighbour in row["neighbours"]]
    return [
        *(_as_well(row) + _not_apart(row) or _nearest(row)),
        f"Without the direction{'' if len(names) == 1 else 's'} of {_listed(names)}, held-out d' there is"
        f" {row['d_prime_left']:.2f} instead of {row['d_prime']:.2f}.",
    ]


def _found(row: SpecificityLayer, verdict: Verdict) -> list[NeighbourAt]:
    return [each for each in row["neighbours"] if compare_sorting(each["transfer"], row["own"]) == verdict]


def _as_well(row: SpecificityLayer) -> list[str]:
    found, own = _found(row, "as well"), row["own"]["auroc"]
    if not found:
        return []
    one = len(found) == 1
    behind = any(strength(each["transfer"]) < own for each in found)
    within = "" if not behind else ", within its interval" if one else ", within their intervals"
    return [
        f"At layer {row['layer']}, the direction{'' if one else 's'} of {_listed([_measured(each) for each in found])}"
        f" sort{'s' if one else ''} these pairs as well as their own held-out direction (AUROC {own:.2f}){within}: the"
        f" contrast may measure {'it' if one else 'one of them'} instead."
    ]


def _not_apart(row: SpecificityLayer) -> list[str]:
    found = _found(row, "not apart")
    if not found:
        return []
    one = len(found) == 1
    return [
        f"At layer {row['layer']}, the direction{'' if one else 's'} of {_listed([_measured(each) for each in found])}"
        f" cannot be told apart from these pairs' own held-out direction (AUROC {row['own']['auroc']:.2f}) by how"
        f" {'it sorts' if one else 'they sort'} them: {'its interval is' if one else 'their intervals are'} too wide."
    ]


def _nearest(row: SpecificityLayer) -> list[str]:
    worse = _found(row, "worse")
    if not worse:
        return []
    nearest = max(worse, key=lambda neighbour: strength(neighbour["transfer"]))
    return [
        f"At layer {row['layer']}, no neighbour's direction sorts these pairs as well as their own held-out direction"
        f" (AUROC {row['own']['auroc']:.2f}). The nearest is {_measured(nearest)}."
    ]


def leading_row(report: SpecificityReport | None) -> SpecificityLayer | None:
    """The layer to read first; None if nothing was measured."""
    if report is None or not report["layers"]:
        return None
    return next(row for row in report["layers"] if row["layer"] == report["layer"])


def specificity_as_text(report: SpecificityReport) -> RenderableType:
    """Render the layer to read first as a table: the contrast's own direction, then each neighbour.

    Args:
        report: From `measure_specificity`.
    """
    row = leading_row(report)
    if row is None:
        return Text(f"not compared with neighbours: {report['reason']}", style="dim")
    table = _table("direction", "AUROC", "95% interval", "in order", "back", "d'")
    table.add_row("own, held out", *_cells(row["own"]), "", f"{row['d_prime']:.2f}", style="bold")
    for neighbour in row["neighbours"]:
        back = f"{neighbour['back']['auroc']:.2f}"
        name = shortened(neighbour["name"])
        table.add_row(name, *_cells(neighbour["transfer"]), back, f"{neighbour['d_prime_left']:.2f} left")
    table.add_row("all neighbours", "", "", "", "", f"{row['d_prime_left']:.2f} left")
    return Group(
        Text(f"neighbours at layer {row['layer']}", style="bold"),
        table,
        Text("back: AUROC of the own direction on the neighbour's pairs  left: without that direction", style="dim"),
        *(Text(f"warning: {warning}", style="yellow") for warning in report["warnings"]),
    )


def transfer_as_text(matrix: TransferMatrix) -> RenderableType:
    """Render a transfer matrix: AUROC of the direction of each row on the pairs of each column.

    Args:
        matrix: From `compare_transfer`.
    """
    numbers = [str(number) for number, _ in enumerate(matrix["titles"], start=1)]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("direction", no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    for place, (number, title, cells) in enumerate(zip(numbers, matrix["titles"], matrix["cells"], strict=True)):
        shown = [Text(f"{cell['auroc']:.2f}") for cell in cells]
        shown[place].stylize("bold")
        table.add_row(f"{number} {shortened(title)}", *shown)
    return Group(
        Text(f"{_listed(matrix['titles'])}, layer {matrix['layer']}", style="bold"),
        table,
        *(Text(line) for line in describe_transfer(matrix)),
        *(Text(f"warning: {warning}", style="yellow") for warning in matrix["warnings"]),
    )


def describe_transfer(matrix: TransferMatrix) -> list[str]:
    """Describe a transfer matrix: directions that sort the pairs of others as well, and the mean.

    Args:
        matrix: From `compare_transfer`.

    Returns:
        What the cells are, one sentence per contrast that other directions sort as well, one per contrast whose own
        direction others cannot be told apart from, and the mean.
    """
    titles, cells = matrix["titles"], matrix["cells"]
    lines = ["AUROC of the direction in the row on the pairs of the column; on the diagonal, held out."]
    for column, title in enumerate(titles):
        own = cells[column][column]
        verdicts = {row: compare_sorting(line[column], own) for row, line in enumerate(cells) if row != column}
        as_well = [
            f"{titles[row]} ({_interval(cells[row][column])})" for row, said in verdicts.items() if said == "as well"
        ]
        not_apart = [titles[row] for row, said in verdicts.items() if said == "not apart"]
        if as_well:
            lines.append(
                f"{title} (AUROC {own['auroc']:.2f}) is sorted as well by the direction of {_listed(as_well)}."
            )
        if not_apart:
            lines.append(
                f"On the pairs of {title} (AUROC {own['auroc']:.2f}), its own direction cannot be told apart from that"
                f" of {_listed(not_apart)}."
            )
    lines.append(
        "Mean share of pairs in one order, whichever is more frequent, off the diagonal:"
        f" {matrix['off_diagonal']:.2f} (0.50 is the least)."
    )
    return lines


def shortened(name: str, most: int = _LONGEST) -> str:
    """A name of at most `most` characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _measured(neighbour: NeighbourAt) -> str:
    reversed_ = ", reversed" if neighbour["transfer"]["auroc"] < CHANCE else ""
    return f"{neighbour['name']}{reversed_} ({_interval(neighbour['transfer'])})"


def _interval(found: Transfer) -> str:
    return f"AUROC {found['auroc']:.2f}, 95% interval {found['low']:.2f} to {found['high']:.2f}"


def _cells(found: Transfer) -> tuple[str, str, str]:
    interval = f"{found['low']:.2f} to {found['high']:.2f}"
    return f"{found['auroc']:.2f}", interval, f"{found['in_order']:.0%}"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
