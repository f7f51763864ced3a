"""Render the class projections and misordered pairs of a layer as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from engine.plots.findings import groups_of_pairs, left_out_in_words, misordered_in_words
from engine.plots.layers_chart import PLAIN, Looks
from engine.records.files import CaptureRecord, find_pair
from engine.records.results import FOLDS, ClassProjections, ClassSummary
from engine.stats.scores import count_tied, wrong_pairs

_COLUMNS = 72
_LEVELS = " ▁▂▃▄▅▆▇█"
_MOST_WRONG = 5


def sides_as_text(
    sides: ClassProjections, label: Callable[[int], str] | None = None, title: str = ""
) -> RenderableType:
    """Render a histogram of each class and list the most misordered pairs.

    Args:
        sides: Projections from `project_sides`.
        label: Returns the label of a pair by its number, like `pair_label`; without it no pairs are listed.
        title: Heading, followed by the layer.

    Returns:
        A rich renderable.
    """
    low = min(*sides["positive"], *sides["negative"])
    high = max(*sides["positive"], *sides["negative"])
    wrong = wrong_pairs(sides)
    score = f"d' {sides['d_prime']:.2f}, AUROC {sides['auroc']:.3f}"
    lines = [
        Text(f"{title}, layer {sides['layer']}".removeprefix(", "), style="bold"),
        Text(f"{left_out_in_words(sides['left_out'], sides.get('folds', FOLDS))}: {score}", style="dim"),
        Text(f"+ {_histogram(sides['positive'], low, high)}", style="yellow"),
        Text(f"- {_histogram(sides['negative'], low, high)}", style="blue"),
        Text(f"  {low:<+8.1f}{'pooled within-class SD':^{_COLUMNS - 16}}{high:>+8.1f}", style="dim"),
        Text(f"{misordered_in_words(len(wrong), len(sides['positive']), count_tied(sides))}."),
    ]
    if label is not None:
        for pair in wrong[:_MOST_WRONG]:
            gap = sides["positive"][pair] - sides["negative"][pair]
            name = " ".join(label(pair).split())
            lines.append(Text(f"  pair {pair} ({gap:+.1f}): {name}", no_wrap=True, overflow="ellipsis"))
    return Group(*lines)


def pair_label(record: CaptureRecord, number: int) -> str:
    """Label a pair by its factors, or by its positive prompt if it has none.

    Args:
        record: JSON record of the capture. The record of a capture saved as shards does not hold every pair.
        number: Number of the pair, from 0.

    Returns:
        `persona, template: topic`, the positive prompt, or a pointer to the shards if the record lacks the pair.
    """
    try:
        pair = find_pair(record, number)
    except KeyError:
        return "text in the shards (see open_shards)"
    factors = pair["factors"]
    return f"{factors['persona']}, {factors['template']}: {factors['topic']}" if factors else pair["positive"]


def _histogram(values: Sequence[float], low: float, high: float) -> str:
    counts = [0] * _COLUMNS
    for value in values:
        counts[min(int((value - low) / ((high - low) or 1.0) * _COLUMNS), _COLUMNS - 1)] += 1
    tallest = max(counts)
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // tallest)] for count in counts)


_FEWEST_COLUMNS = 12


def side_summary(record: CaptureRecord, layer: int) -> ClassSummary | None:
    """Return the record's summary of both classes at a layer, or None if it has none."""
    return next((summary for summary in record["sides"] if summary["layer"] == layer), None)


def histograms_as_text(summary: ClassSummary, width: int, *, looks: Looks = PLAIN) -> list[Text]:
    """Draw one-line histograms of the held-out projections of both classes.

    Args:
        summary: Summary of one layer.
        width: Width in characters.
        looks: Terminal styles: `tied` for the positive class, `behind` for the negative class.

    Returns:
        Three lines: positive class, negative class, scale.
    """
    columns = max(min(width - 2, len(summary["positive"])), _FEWEST_COLUMNS)
    tallest = max(max(_merged(summary[side], columns)) for side in ("positive", "negative"))
    lines = [
        Text(f"{sign} {_bars(_merged(counts, columns), tallest)}", style=style, no_wrap=True)
        for sign, counts, style in (("+", summary["positive"], looks.tied), ("-", summary["negative"], looks.behind))
    ]
    ends = f"{summary['low']:+.1f}", f"{summary['high']:+.1f}"
    middle = "SD" if columns < 40 else "pooled within-class SD"
    scale = f"  {ends[0]}{middle:^{columns - len(ends[0]) - len(ends[1])}}{ends[1]}"
    return [*lines, Text(scale, style=looks.quiet, no_wrap=True)]


def wrong_pairs_as_text(
    record: CaptureRecord, summary: ClassSummary, *, most: int = 20, prompts: bool = False, looks: Looks = PLAIN
) -> list[Text]:
    """Count the misordered pairs of a layer and list them, worst first.

    Args:
        record: JSON record of the capture.
        summary: Summary of one of its layers.
        most: Maximum number of pairs to list.
        prompts: Whether to show both prompts of each pair.
        looks: Terminal styles.
    """
    scheme = left_out_in_words(summary["left_out"], groups_of_pairs(record["ranking"]))
    counts = misordered_in_words(summary["wrong_total"], record["num_pairs"], summary.get("tied_total", 0))
    lines = [Text(f"{counts} ({scheme}).")]
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
    """Merge a histogram into fewer bins."""
    out = [0] * columns
    for step, count in enumerate(counts):
        out[step * columns // len(counts)] += count
    return out


def _bars(counts: Sequence[int], tallest: int) -> str:
    return "".join(_LEVELS[-(-count * (len(_LEVELS) - 1) // (tallest or 1))] for count in counts)
