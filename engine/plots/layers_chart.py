"""Describe the layers of a capture as a chart and draw it in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.text import Text

from engine.plots.findings import describe_findings
from engine.records.files import CaptureRecord, count_prompts, record_warnings
from engine.records.results import LayerRow, RankedLayer, may_be_best


@dataclass(frozen=True)
class Looks:
    """Terminal styles by role.

    Without color, the characters alone distinguish the roles.

    Attributes:
        tied: Layers tied with the best; the positive class.
        behind: Layers behind the best; the negative class.
        shuffled: Permutation null.
        quiet: Axes and labels.
        cursor: Layer under the cursor.
    """

    tied: Style
    behind: Style
    shuffled: Style
    quiet: Style
    cursor: Style


PLAIN = Looks(
    tied=Style(color="yellow"),
    behind=Style(color="blue"),
    shuffled=Style(dim=True),
    quiet=Style(dim=True),
    cursor=Style(reverse=True),
)


@dataclass(frozen=True)
class LayersChart:
    """Statistics of a capture by layer, ready to draw.

    Attributes:
        title: Concept, or the name of the capture.
        subtitle: Model, number of prompts or pairs, positions, and the site unless it is `resid_post`.
        axis: Label of the layer axis.
        contrast: Whether the capture is a contrast.
        rows: One row per layer, ascending; differences are set only for a contrast.
        ranked: Layers by descending held-out d'; empty without a ranking.
        chance: 95% quantile of the best layer's score under permuted labels; None without a ranking.
        findings: Sentences from `describe_findings`.
        warnings: Sentences on what limits the results.
    """

    title: str
    subtitle: str
    axis: str
    contrast: bool
    rows: tuple[LayerRow, ...]
    ranked: tuple[RankedLayer, ...]
    chance: float | None
    findings: tuple[str, ...]
    warnings: tuple[str, ...]


def layers_chart(record: CaptureRecord) -> LayersChart:
    """Build the chart of a capture.

    Args:
        record: JSON record of the capture.
    """
    provenance, ranking = record["provenance"], record["ranking"]
    contrast = record["kind"] == "contrast"
    count = record["num_pairs"] if contrast else count_prompts(record)
    counted = f"{count} {'pair' if contrast else 'prompt'}{'' if count == 1 else 's'}"
    model = f"{provenance['model']}, " if provenance else ""
    site = provenance["site"] if provenance else "resid_post"
    read = f", positions: {provenance['positions']}" if provenance else ""
    if site != "resid_post":
        read += f", site: {site}"
    return LayersChart(
        title=record["concept"] or record["name"],
        subtitle=f"{model}{counted}{read}",
        axis="layer (output of block)" if site == "resid_post" else f"layer ({site} of block)",
        contrast=contrast,
        rows=tuple(record["statistics"]),
        ranked=tuple(ranking["layers"]) if ranking else (),
        chance=ranking["chance"] if ranking else None,
        findings=tuple(describe_findings(record)),
        warnings=tuple(record_warnings(record)),
    )


TIED, BEHIND, INTERVAL, SHUFFLED = "●", "○", "│", "░"
_LABELS = 6  # width of the score axis, in columns
_FEWEST_ROWS = 3


def layers_as_columns(
    ranked: Sequence[RankedLayer], width: int, height: int, *, cursor: int | None = None, looks: Looks = PLAIN
) -> list[Text]:
    """Draw a ranking with one column per layer.

    `●` marks the d' of a layer tied with the best, `○` that of any other layer, `│` the 95% interval and `░` the
    middle 95% of the permutation null.

    Args:
        ranked: Ranked layers, in any order.
        width: Width in characters.
        height: Number of lines, including the line of layer numbers.
        cursor: Layer under the cursor.
        looks: Terminal styles.

    Returns:
        `height` lines. If the layers do not fit the width, only those around the cursor are shown.
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
    """Map from scores to lines; line 0 is the top."""

    bottom: float
    top: float
    lines: int

    def line(self, score: float) -> int:
        return round((self.top - score) / (self.top - self.bottom) * (self.lines - 1))

    def label(self, line: int) -> str:
        """Axis label of a line: only the top, the bottom and zero have one."""
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
    style = looks.tied if may_be_best(row) else looks.behind
    if line == scale.line(row["d_prime"]):
        return (TIED if may_be_best(row) else BEHIND), style
    if scale.line(row["high"]) <= line <= scale.line(row["low"]):
        return INTERVAL, style
    if scale.line(row["null_high"]) <= line <= scale.line(row["null_low"]):
        return SHUFFLED, looks.shuffled
    return " ", looks.quiet


def _numbers(rows: Sequence[RankedLayer], step: int, cursor: int | None, looks: Looks) -> Text:
    """Label the cursor and every fifth layer that does not overlap its label."""
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


_NARROWEST = 8
SCORE, BAR = "●", "━"


@dataclass(frozen=True)
class Scale:
    """Map from scores to columns.

    Attributes:
        low: Score at the first column.
        high: Score at the last column.
        width: Number of columns.
    """

    low: float
    high: float
    width: int

    @classmethod
    def of(cls, layers: Iterable[RankedLayer], width: int) -> Scale:
        """Build the scale that fits every interval of a ranking."""
        rows = list(layers)
        low = min(min(row["low"], row["null_low"]) for row in rows)
        high = max(max(row["high"], row["null_high"]) for row in rows)
        return cls(low, high if high > low else low + 1.0, width)

    def column(self, score: float) -> int:
        """Return the column of a score, from 0."""
        return round((score - self.low) / (self.high - self.low) * (self.width - 1))


@dataclass(frozen=True)
class Whiskers:
    """Renderable of one ranked layer that fills the available width.

    Attributes:
        row: Layer to draw.
        layers: All layers that share the scale.
    """

    row: RankedLayer
    layers: Sequence[RankedLayer]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the layer at the width that the other columns leave."""
        yield whiskers(self.row, Scale.of(self.layers, options.max_width))

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        """Accept any width from eight columns up."""
        return Measurement(_NARROWEST, options.max_width)


def whiskers(row: RankedLayer, scale: Scale, looks: Looks = PLAIN) -> Text:
    """Draw the d', the 95% interval and the permutation null of one layer on a line.

    Args:
        row: Layer to draw.
        scale: Scale shared by all layers.
        looks: Terminal styles.
    """
    cells = [" "] * scale.width
    for low, high, mark in (
        (row["null_low"], row["null_high"], SHUFFLED),
        (row["low"], row["high"], BAR),
        (row["d_prime"], row["d_prime"], SCORE),
    ):
        for column in range(scale.column(low), scale.column(high) + 1):
            cells[column] = mark
    text = Text("".join(cells))
    text.highlight_regex(SHUFFLED, looks.shuffled)
    text.highlight_regex(f"[{SCORE}{BAR}]", looks.tied if may_be_best(row) else looks.behind)
    return text
