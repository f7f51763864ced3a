"""Quartiles of a side, from the counts that the record of a capture holds. Knows records alone; imports no torch."""

import math
from dataclasses import dataclass
from typing import Literal

from engine.errors import Remedy, RequestError, nearest
from engine.records.files import CaptureRecord
from engine.records.results import LayerRow, RankedLayer, SideProjections, SideSummary

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def side_quartiles(summary: SideSummary, side: Literal["positive", "negative"]) -> list[float]:
    """Minimum, quartiles and maximum of the projections of one side, each to half a step of what was counted.

    Args:
        summary: One layer of a record's `sides`.
        side: Which side.

    Returns:
        Five numbers, ascending, in units of the spread within a side; 0 is half-way between the sides.

    Example:
        >>> from engine.stats.classes import summarise_sides
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24)
        >>> quartiles = side_quartiles(summarise_sides(contrast)[0], "positive")
        >>> len(quartiles), quartiles == sorted(quartiles)
        (5, True)
    """
    counts = summary[side]
    step = (summary["high"] - summary["low"]) / len(counts)
    middles = [summary["low"] + step * (number + 0.5) for number, count in enumerate(counts) for _ in range(count)]
    return [middles[round(share * (len(middles) - 1))] for share in _SHARES]


def wrong_pairs(sides: SideProjections) -> list[int]:
    """Numbers of the pairs whose positive prompt lies on the negative side of its partner, the furthest first.

    Args:
        sides: From `project_sides`.
    """
    gaps = pair_gaps(sides)
    return sorted((pair for pair, gap in enumerate(gaps) if gap < 0), key=lambda pair: gaps[pair])


def pair_gaps(sides: SideProjections) -> list[float]:
    """How far the positive prompt of each pair lies beyond its partner, in units of the spread within a side."""
    return [positive - negative for positive, negative in zip(sides["positive"], sides["negative"], strict=True)]


@dataclass(frozen=True)
class Score:
    """A number of each layer that layers can be ordered by.

    Attributes:
        key: Its name, as in the JSON.
        meaning: What it says.
        descending: Whether more of it ranks higher.
        held_out: Whether it comes from prompts that had no part in finding the direction.
    """

    key: str
    meaning: str
    descending: bool = True
    held_out: bool = False


@dataclass(frozen=True)
class ScoredLayer:
    """One layer in the order of a score.

    Attributes:
        rank: Place, from 1.
        value: The score; None where this layer has none.
        row: What describes the layer.
        ranked: Its place in the ranking by held-out d', if there is one.
    """

    rank: int
    value: float | None
    row: LayerRow
    ranked: RankedLayer | None


SCORES = (
    Score("d_prime", "held-out d': distance of the sides over their spread, worst of what was left out", held_out=True),
    Score("auroc", "held-out AUROC: share of left-out prompts in the right order", held_out=True),
    Score("wrong_way", "share of left-out pairs that point the wrong way", descending=False, held_out=True),
    Score("pair_cosine", "mean cosine between the differences of two pairs"),
    Score("relative_norm", "norm of the mean difference over the mean norm of the states"),
    Score("cosine_sim", "cosine of the two means; near 1 is normal", descending=False),
    Score("diff_norm", "norm of the mean difference: grows with depth whatever the concept"),
)
DEFAULT_SCORE = SCORES[0].key


def find_score(key: str) -> Score:
    """The score of that name.

    Raises:
        RequestError: There is none.
    """
    by_key = {score.key: score for score in SCORES}
    if key not in by_key:
        raise RequestError(
            f"there is no score {key!r}", expected=f"one of {', '.join(by_key)}", next_step=nearest(key, by_key)
        )
    return by_key[key]


def order_layers(record: CaptureRecord, key: str = DEFAULT_SCORE) -> list[ScoredLayer]:
    """Layers of a contrast in the order of a score, best first.

    Args:
        record: Its JSON.
        key: Name of the score, see `SCORES`.

    Raises:
        RequestError: No such score, or this capture does not have it: it is one of prompts, or has too few pairs.

    Example:
        >>> from engine.store.catalog import show_capture
        >>> order_layers(show_capture("activations/smollm2_honesty"), "diff_norm")[0].row["layer"]
        29
    """
    score = find_score(key)
    if record["kind"] != "contrast":
        raise RequestError(
            f"the capture {record['name']!r} is one of prompts: there are no two sides to rank layers by",
            expected="a contrast",
            next_step=Remedy.CAPTURE_CONTRAST,
        )
    if score.held_out and record["ranking"] is None:
        described = ", ".join(score.key for score in SCORES if not score.held_out)
        raise RequestError(
            f"the capture {record['name']!r} has no ranking: {record['unranked']}",
            expected=f"for these pairs alone one of the scores {described}",
            next_step=Remedy.CAPTURE_MORE_PAIRS,
        )
    ranked = {row["layer"]: row for row in record["ranking"]["layers"]} if record["ranking"] else {}
    values = {row["layer"]: _value(score, row, ranked.get(row["layer"])) for row in record["statistics"]}
    rows = sorted(record["statistics"], key=lambda row: _place(score, values[row["layer"]]))
    return [
        ScoredLayer(rank, values[row["layer"]], row, ranked.get(row["layer"])) for rank, row in enumerate(rows, start=1)
    ]


def _value(score: Score, row: LayerRow, ranked: RankedLayer | None) -> float | None:
    found = dict(ranked or row if score.held_out else row)[score.key]
    return float(found) if isinstance(found, int | float) else None


def _place(score: Score, value: float | None) -> float:
    """What to sort by: a layer without a value comes last."""
    if value is None:
        return math.inf
    return -value if score.descending else value
