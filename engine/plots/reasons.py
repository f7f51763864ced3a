"""Why one layer is ranked above another, in sentences that say no more than the data do. Knows records alone."""

from __future__ import annotations

from engine.errors import RequestError
from engine.plots.findings import left_out_in_words
from engine.plots.numbers import norm_in_words
from engine.records.files import CaptureRecord
from engine.records.ranking import RankedLayer, Ranking
from engine.records.statistics import SideSummary


def describe_order(record: CaptureRecord, layer: int, other: int) -> list[str]:
    """Why one of two layers is ranked above the other, and whether the data can tell them apart at all.

    Args:
        record: The JSON of a contrast with a ranking.
        layer: One layer.
        other: Another.

    Returns:
        Sentences: the scores with the interval of their difference, what each kind of prompt left out gives, the pairs
        that point the wrong way, and what the raw norm would have said.

    Raises:
        RequestError: There is no ranking, or a layer is not in it.
    """
    ranking = record["ranking"]
    rows = {row["layer"]: row for row in ranking["layers"]} if ranking else {}
    if ranking is None or layer not in rows or other not in rows or layer == other:
        raise RequestError(
            f"layers {layer} and {other} of {record['name']!r} cannot be compared",
            expected=f"two of the layers that are ranked: {', '.join(map(str, sorted(rows))) or 'there are none'}",
        )
    above, below = sorted((rows[layer], rows[other]), key=lambda row: row["rank"])
    return [
        _scores(above, below, margin_between(ranking, layer, other)),
        _left_out(above, below),
        *_wrong_pairs(record, above, below),
        _norms(record, above["layer"], below["layer"]),
    ]


def margin_between(ranking: Ranking, layer: int, other: int) -> float:
    """How far the 95% interval of the difference between two layers' scores reaches to each side of what was found."""
    numbers = sorted(row["layer"] for row in ranking["layers"])
    first, second = sorted((numbers.index(layer), numbers.index(other)))
    return ranking["margins"][first][second - first - 1]


def _scores(above: RankedLayer, below: RankedLayer, margin: float) -> str:
    gap = above["d_prime"] - below["d_prime"]
    low, high = gap - margin, gap + margin
    verdict = (
        f"layer {above['layer']} separates the sides better, beyond what other prompts would change"
        if low > 0
        else "the data cannot tell which of the two is better, only which scored higher"
    )
    return (
        f"Layer {above['layer']} is ranked {above['rank']} (d' {above['d_prime']:.2f}) and layer {below['layer']} is"
        f" ranked {below['rank']} ({below['d_prime']:.2f}): {gap:.2f} apart, 95% interval {low:.2f} to {high:.2f}, so"
        f" {verdict}."
    )


def _left_out(above: RankedLayer, below: RankedLayer) -> str:
    parts = [
        f"{left_out_in_words(factor)} left out {score['d_prime']:.2f} and {below['by_factor'][factor]['d_prime']:.2f}"
        for factor, score in above["by_factor"].items()
        if factor in below["by_factor"]
    ]
    counted = "; the lowest is what counts" if len(parts) > 1 else ""
    return f"d' at layers {above['layer']} and {below['layer']}: {', '.join(parts)}{counted}."


def _wrong_pairs(record: CaptureRecord, above: RankedLayer, below: RankedLayer) -> list[str]:
    sides = {summary["layer"]: summary for summary in record["sides"]}
    if above["layer"] not in sides or below["layer"] not in sides:
        return []
    one, other = sides[above["layer"]], sides[below["layer"]]
    counts = (
        f"{one['wrong_total']} of {record['num_pairs']} left-out pairs point the wrong way at layer {above['layer']},"
        f" {other['wrong_total']} at layer {below['layer']}"
    )
    if _cut(one) or _cut(other):
        return [f"{counts}."]
    here, there = ({pair["pair"] for pair in summary["wrong"]} for summary in (one, other))
    return [
        f"{counts}: {len(here & there)} at both, {len(here - there)} only at layer {above['layer']},"
        f" {len(there - here)} only at layer {below['layer']}."
    ]


def _cut(summary: SideSummary) -> bool:
    """Whether only some of the pairs that point the wrong way are named."""
    return len(summary["wrong"]) < summary["wrong_total"]


def _norms(record: CaptureRecord, above: int, below: int) -> str:
    rows = {row["layer"]: row for row in record["statistics"]}
    one, other = rows[above]["diff_norm"] or 0.0, rows[below]["diff_norm"] or 0.0
    said = "would have put it first as well" if one >= other else f"would have put layer {below} first"
    return (
        f"The raw difference norm, {norm_in_words(one)} and {norm_in_words(other)}, {said}; it grows with depth"
        " whatever the concept."
    )
