"""Draw where the two sides lie at one layer as text. Knows rich and the projections."""

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from engine.plots.findings import left_out_in_words
from engine.records.files import CaptureRecord, find_pair
from engine.records.statistics import SideProjections
from engine.stats.wrong_pairs import wrong_pairs

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
