"""Draw where the two sides lie at one layer as text. Knows rich and the projections."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from engine.plots.layers_chart import PLAIN, Looks
from engine.plots.words import left_out_in_words
from engine.records.files import CaptureRecord, find_pair
from engine.records.results import SideProjections, SideSummary
from engine.stats.scores import wrong_pairs

_COLUMNS = 72
_LEVELS = " ▁▂▃▄▅▆▇█"
_MOST_WRONG = 5


def sides_as_text(sides: SideProjections, label: Callable[[int], str] | None = None, title: str = "") -> RenderableType:
    """Two histograms, one above the other, and the pairs that point the wrong way.

    Args:
        sides: From `project_sides`.
        label: What to call the pair of a number, as `pair_label` does.
        title: What was captured.
    """
    low = min(*sides["positive"], *sides["negative"])
    high = max(*sides["positive"], *sides["negative"])
    wrong = wrong_pairs(sides)
    score = f"d' {sides['d_prime']:.2f}, AUROC {sides['auroc']:.3f}"
    lines = [
        Text(f"{title}, layer {sides['layer']}".removeprefix(", "), style="bold"),
        Text(f"{left_out_in_words(sides['left_out'])} left out: {score}", style="dim"),
        Text(f"+ {_histogram(sides['positive'], low, high)}", style="yellow"),
        Text(f"- {_histogram(sides['negative'], low, high)}", style="blue"),
        Text(f"  {low:<+8.1f}{'units of the spread within a side':^{_COLUMNS - 16}}{high:>+8.1f}", style="dim"),
        Text(f"{len(wrong)} of {len(sides['positive'])} pairs point the wrong way."),
    ]
    if label is not None:
        for pair in wrong[:_MOST_WRONG]:
            gap = sides["positive"][pair] - sides["negative"][pair]
            name = " ".join(label(pair).split())
            lines.append(Text(f"  pair {pair} ({gap:+.1f}): {name}", no_wrap=True, overflow="ellipsis"))
    return Group(*lines)


def pair_label(record: CaptureRecord, number: int) -> str:
    """What to call a pair: what it was made from, or else its positive prompt.

    Args:
        record: Its JSON; of a capture in shards it does not hold every pair.
        number: Of the pair, from 0.
    """
    try:
        pair = find_pair(record, number)
    except KeyError:
        return "in the shards, see open_shards"
    factors = pair["factors"]
    return f"{factors['persona']}, {factors['template']}: {factors['topic']}" if factors else pair["positive"]


def _histogram(values: Sequence[float], low: float, high: float) -> str:
    counts = [0] * _COLUMNS
    for value in values:
        counts[min(int((value - low) / ((high - low) or 1.0) * _COLUMNS), _COLUMNS - 1)] += 1
    tallest = max(counts)
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // tallest)] for count in counts)


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
