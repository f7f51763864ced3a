"""A score with its interval and what shuffled labels score, in one line of characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from engine.plots.looks import PLAIN, Looks
from engine.records.ranking import RankedLayer

_NARROWEST = 8
SCORE, INTERVAL, SHUFFLED = "●", "━", "░"


@dataclass(frozen=True)
class Scale:
    """Which score stands at which column.

    Attributes:
        low: Score at the first column.
        high: Score at the last.
        width: Number of columns.
    """

    low: float
    high: float
    width: int

    @classmethod
    def of(cls, layers: Iterable[RankedLayer], width: int) -> Scale:
        """The scale on which every interval of a ranking fits."""
        rows = list(layers)
        low = min(min(row["low"], row["null_low"]) for row in rows)
        high = max(max(row["high"], row["null_high"]) for row in rows)
        return cls(low, high if high > low else low + 1.0, width)

    def column(self, score: float) -> int:
        """Column of a score, from 0."""
        return round((score - self.low) / (self.high - self.low) * (self.width - 1))


@dataclass(frozen=True)
class Whiskers:
    """One layer drawn as wide as there is room.

    Attributes:
        row: The layer.
        layers: All that are drawn on the same scale.
    """

    row: RankedLayer
    layers: Sequence[RankedLayer]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Rich asks for it once the other columns have what they need."""
        yield whiskers(self.row, Scale.of(self.layers, options.max_width))

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        """From a glimpse to all there is."""
        return Measurement(_NARROWEST, options.max_width)


def whiskers(row: RankedLayer, scale: Scale, looks: Looks = PLAIN) -> Text:
    """Draw one layer.

    Args:
        row: The layer.
        scale: Common to all layers.
        looks: Colours.
    """
    cells = [" "] * scale.width
    for low, high, mark in (
        (row["null_low"], row["null_high"], SHUFFLED),
        (row["low"], row["high"], INTERVAL),
        (row["d_prime"], row["d_prime"], SCORE),
    ):
        for column in range(scale.column(low), scale.column(high) + 1):
            cells[column] = mark
    text = Text("".join(cells))
    text.highlight_regex(SHUFFLED, looks.shuffled)
    text.highlight_regex(f"[{SCORE}{INTERVAL}]", looks.tied if row["tied"] else looks.behind)
    return text
