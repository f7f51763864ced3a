"""Scores to order layers by, read from records without torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.errors import RequestError, similar
from engine.records.files import CaptureRecord
from engine.records.results import FEWEST_PAIRS, ClassProjections, ClassSummary, LayerRow, RankedLayer, Transfer
from engine.remedies import Remedy

TIE = 1e-10
"""Largest distance between tied projections, relative to their range: rounding errors are smaller."""

_MENDS = {
    "so that they count as": "use each prompt in one pair only, and capture again",
    "they share prompts with the others": (
        "use each prompt with one persona, template or topic only, and capture again"
    ),
    "too few personas, templates and topics": "vary a factor, or omit the factors, and capture again",
}
"""Part of the reason in a record (see `cannot_hold_out`) to what to do about it."""

SATURATED = 0.995
"""Held-out AUROC from which nearly all prompts are sorted correctly, so that it cannot order layers."""

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def more_pairs(concept: str | None) -> Remedy:
    """How to get more pairs: a concept has more of them, a file or list has no others."""
    return Remedy.ADD_PAIRS if concept is None else Remedy.CAPTURE_MORE_PAIRS


def mend_unranked(record: CaptureRecord) -> Remedy | str:
    """What to do about a contrast without a ranking, whose record says why it has none."""
    for reason, step in _MENDS.items():
        if reason in record["unranked"]:
            return step
    return more_pairs(record["concept"]) if record["num_pairs"] < FEWEST_PAIRS else "mend this and capture again"


def side_quartiles(summary: ClassSummary, side: Literal["positive", "negative"]) -> list[float]:
    """Compute minimum, quartiles and maximum of the projections of one class.

    They come from the histogram in the record and are accurate to half a bin.

    Args:
        summary: One layer of a record's `sides`.
        side: `positive` or `negative`.

    Returns:
        Five numbers, ascending, in units of the spread within a class; 0 is halfway between the class means.

    Example:
        >>> counts = {"low": -2.0, "high": 2.0, "positive": [0, 1, 2, 2], "negative": [2, 2, 1, 0]}
        >>> side_quartiles(counts, "positive")
        [-0.5, 0.5, 0.5, 1.5, 1.5]
    """
    counts = summary[side]
    step = (summary["high"] - summary["low"]) / len(counts)
    middles = [summary["low"] + step * (number + 0.5) for number, count in enumerate(counts) for _ in range(count)]
    return [middles[round(share * (len(middles) - 1))] for share in _SHARES]


def wrong_pairs(sides: ClassProjections) -> list[int]:
    """List the misordered pairs, largest gap first.

    A pair is misordered if its positive prompt projects lower than its negative partner; a tied pair is not.

    Args:
        sides: Result of `project_sides`.

    Returns:
        Pair numbers, from 0.
    """
    gaps, tie = pair_gaps(sides), _tie(sides)
    return sorted((pair for pair, gap in enumerate(gaps) if gap < -tie), key=lambda pair: gaps[pair])


def count_tied(sides: ClassProjections) -> int:
    """Number of pairs whose two prompts project alike."""
    tie = _tie(sides)
    return sum(abs(gap) <= tie for gap in pair_gaps(sides))


def _tie(sides: ClassProjections) -> float:
    both = [*sides["positive"], *sides["negative"]]
    return TIE * (max(both) - min(both))


def pair_gaps(sides: ClassProjections) -> list[float]:
    """Gap of each pair, positive minus negative, in units of the within-class spread."""
    return [positive - negative for positive, negative in zip(sides["positive"], sides["negative"], strict=True)]


@dataclass(frozen=True)
class Score:
    """A score to order layers by.

    Attributes:
        key: Name, as in the JSON.
        meaning: Description for help texts and tables.
        descending: Whether higher is better.
        held_out: Whether the score is computed on held-out prompts.
    """

    key: str
    meaning: str
    descending: bool = True
    held_out: bool = False


@dataclass(frozen=True)
class ScoredLayer:
    """A layer with its rank by a score.

    Attributes:
        rank: Rank by the score, from 1.
        value: The score; None if this layer has none.
        row: Descriptive statistics of the layer.
        ranked: The layer's row in the ranking by held-out d'; None without a ranking.
    """

    rank: int
    value: float | None
    row: LayerRow
    ranked: RankedLayer | None


SCORES = (
    Score("d_prime", "held-out d': distance between classes over their spread, for the worst factor", held_out=True),
    Score("auroc", "held-out AUROC: share of (positive, negative) prompts in the right order", held_out=True),
    Score("wrong_way", "share of held-out pairs that are misordered; ties count half", descending=False, held_out=True),
    Score("pair_cosine", "mean cosine between the differences of two pairs that share no prompt"),
    Score("relative_norm", "norm of the mean difference divided by the mean norm of the states"),
    Score("cosine_sim", "cosine of the class means; near 1 is normal", descending=False),
    Score("diff_norm", "norm of the mean difference (raw norm); grows with depth for every concept"),
)
DEFAULT_SCORE = SCORES[0].key


def own_scores(own: Sequence[Transfer | None]) -> tuple[float, float]:
    """Sum of the AUROC of held-out directions, and that of their d', which orders layers where AUROC is 1."""
    known = [found for found in own if found is not None]
    return sum(found["auroc"] for found in known), sum(found.get("d_prime", 0.0) for found in known)


def find_score(key: str) -> Score:
    """Look up a score by name.

    Raises:
        RequestError: There is no score of that name.
    """
    by_key = {score.key: score for score in SCORES}
    if key not in by_key:
        raise RequestError(
            f"there is no score {key!r}", expected=f"one of {', '.join(by_key)}", next_step=similar(key, by_key)
        )
    return by_key[key]


def order_layers(record: CaptureRecord, key: str = DEFAULT_SCORE) -> list[ScoredLayer]:
    """Order the layers of a contrast by a score, best first.

    Args:
        record: Record of a contrast.
        key: Name of the score, see `SCORES`.

    Raises:
        RequestError: The score is unknown, the capture is not a contrast, or it lacks the ranking that the score needs.

    Example:
        >>> from engine.store.catalog import show_capture
        >>> order_layers(show_capture("activations/smollm2_honesty"), "diff_norm")[0].row["layer"]
        29
    """
    score = find_score(key)
    if record["kind"] != "contrast":
        raise RequestError(
            f"{record['name']!r} is a capture of prompts: it has no positive and negative class",
            expected="a contrast",
            next_step=Remedy.CAPTURE_CONTRAST,
        )
    if score.held_out and record["ranking"] is None:
        rows = record["statistics"]
        known = [one for one in SCORES if not one.held_out and any(_value(one, row, None) is not None for row in rows)]
        described = ", ".join(one.key for one in known)
        raise RequestError(
            f"the capture {record['name']!r} has no ranking: {record['unranked']}",
            expected=f"one of the scores that need no ranking: {described}",
            next_step=mend_unranked(record),
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
    """Sort key, lowest first; layers without a value come last."""
    if value is None:
        return math.inf
    return -value if score.descending else value
