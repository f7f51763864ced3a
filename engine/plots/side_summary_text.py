"""Draw what a record says of both sides at one layer as text. Knows rich and records; needs no tensors."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from engine.plots.findings import left_out_in_words
from engine.plots.looks import PLAIN, Looks
from engine.plots.sides_text import pair_label
from engine.records.files import CaptureRecord, find_pair
from engine.records.statistics import SideSummary

_LEVELS = " ▁▂▃▄▅▆▇█"
_FEWEST_COLUMNS = 12


def side_summary(record: CaptureRecord, layer: int) -> SideSummary | None:
    """What a record says of both sides at a layer; None where it says nothing."""
    return next((summary for summary in record["sides"] if summary["layer"] == layer), None)


def histograms_as_text(summary: SideSummary, width: int, *, looks: Looks = PLAIN) -> list[Text]:
    """Where the left-out prompts of both sides lie: a line a side, one above the other, and their scale.

    Args:
        summary: One layer.
        width: Characters from side to side.
        looks: Colours; the positive side has that of a tied layer.
    """
    columns = max(min(width - 2, len(summary["positive"])), _FEWEST_COLUMNS)
    tallest = max(max(_merged(summary[side], columns)) for side in ("positive", "negative"))
    lines = [
        Text(f"{sign} {_bars(_merged(counts, columns), tallest)}", style=style, no_wrap=True)
        for sign, counts, style in (("+", summary["positive"], looks.tied), ("-", summary["negative"], looks.behind))
    ]
    ends = f"{summary['low']:+.1f}", f"{summary['high']:+.1f}"
    middle = "spreads" if columns < 40 else "spreads of a side"
    scale = f"  {ends[0]}{middle:^{columns - len(ends[0]) - len(ends[1])}}{ends[1]}"
    return [*lines, Text(scale, style=looks.quiet, no_wrap=True)]


def wrong_pairs_as_text(
    record: CaptureRecord, summary: SideSummary, *, most: int = 20, prompts: bool = False, looks: Looks = PLAIN
) -> list[Text]:
    """The pairs that point the wrong way, the furthest first, and how many there are.

    Args:
        record: The capture.
        summary: One of its layers.
        most: Most pairs to name.
        prompts: Whether to show the texts of both sides too.
        looks: Colours.
    """
    left_out = left_out_in_words(summary["left_out"])
    lines = [Text(f"{summary['wrong_total']} of {record['num_pairs']} pairs point the wrong way, {left_out} left out.")]
    for pair in summary["wrong"][:most]:
        number = pair["pair"]
        lines.append(Text(f"pair {number} ({pair['gap']:+.1f}): {_one_line(pair_label(record, number))}"))
        if prompts:
            texts = find_pair(record, number)
            lines.append(Text(f"  + {_one_line(texts['positive'])}", style=looks.tied))
            lines.append(Text(f"  - {_one_line(texts['negative'])}", style=looks.behind))
    more = summary["wrong_total"] - len(summary["wrong"][:most])
    return [*lines, Text(f"and {more} more", style=looks.quiet)] if more > 0 and summary["wrong"] else lines


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _merged(counts: Sequence[int], columns: int) -> list[int]:
    """The same counts in fewer steps."""
    out = [0] * columns
    for step, count in enumerate(counts):
        out[step * columns // len(counts)] += count
    return out


def _bars(counts: Sequence[int], tallest: int) -> str:
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // (tallest or 1))] for count in counts)
