"""Explain the order of two layers: does one separate the classes better than the other?"""

from __future__ import annotations

from engine.errors import RequestError
from engine.plots.findings import groups_of_pairs, left_out_in_words, misordered_in_words, norm_in_words
from engine.records.files import CaptureRecord
from engine.records.results import ClassSummary, RankedLayer, Ranking


def describe_order(record: CaptureRecord, layer: int, other: int) -> list[str]:
    """Explain the order of two layers and whether they differ significantly.

    Args:
        record: JSON record of a contrast with a ranking.
        layer: First layer.
        other: Second layer.

    Returns:
        Sentences on the difference in score with its 95% interval, the scores by held-out factor, the misordered
        pairs, and the raw difference norm.

    Raises:
        RequestError: The record has no ranking, a layer is not ranked, or both layers are the same.
    """
    ranking = record["ranking"]
    rows = {row["layer"]: row for row in ranking["layers"]} if ranking else {}
    if ranking is None or layer not in rows or other not in rows or layer == other:
        raise RequestError(
            f"layers {layer} and {other} of {record['name']!r} cannot be compared",
            expected=f"two different ranked layers ({', '.join(map(str, sorted(rows))) or 'there are none'})",
        )
    above, below = sorted((rows[layer], rows[other]), key=lambda row: row["rank"])
    return [
        _scores(above, below, margin_between(ranking, layer, other)),
        _left_out(above, below, groups_of_pairs(ranking)),
        *_wrong_pairs(record, above, below),
        _norms(record, above["layer"], below["layer"]),
    ]


def margin_between(ranking: Ranking, layer: int, other: int) -> float:
    """Half-width of the 95% interval of the difference in d' between two layers."""
    numbers = sorted(row["layer"] for row in ranking["layers"])
    first, second = sorted((numbers.index(layer), numbers.index(other)))
    return ranking["margins"][first][second - first - 1]


def _scores(above: RankedLayer, below: RankedLayer, margin: float) -> str:
    gap = above["d_prime"] - below["d_prime"]
    low, high = gap - margin, gap + margin
    verdict = (
        f"layer {above['layer']} separates the classes significantly better"
        if low > 0
        else "the data do not show which layer is better"
    )
    return (
        f"Layer {above['layer']} has rank {above['rank']} (d' {above['d_prime']:.2f}) and layer {below['layer']} has"
        f" rank {below['rank']} (d' {below['d_prime']:.2f}). The difference is {gap:.2f} (95% interval {low:.2f} to"
        f" {high:.2f}): {verdict}."
    )


def _left_out(above: RankedLayer, below: RankedLayer, groups: int) -> str:
    parts = [
        f"{left_out_in_words(factor, groups)} {score['d_prime']:.2f} and {below['by_factor'][factor]['d_prime']:.2f}"
        for factor, score in above["by_factor"].items()
        if factor in below["by_factor"]
    ]
    counted = "; a layer's score is its lowest" if len(parts) > 1 else ""
    return f"Held-out d' at layers {above['layer']} and {below['layer']}: {', '.join(parts)}{counted}."


def _wrong_pairs(record: CaptureRecord, above: RankedLayer, below: RankedLayer) -> list[str]:
    sides = {summary["layer"]: summary for summary in record["sides"]}
    if above["layer"] not in sides or below["layer"] not in sides:
        return []
    one, other = sides[above["layer"]], sides[below["layer"]]
    counts = (
        f"{misordered_in_words(one['wrong_total'], record['num_pairs'], one.get('tied_total', 0))} at layer"
        f" {above['layer']}, {other['wrong_total']}{_tied(other)} at layer {below['layer']}"
    )
    if _cut(one) or _cut(other):
        return [f"{counts}."]
    here, there = ({pair["pair"] for pair in summary["wrong"]} for summary in (one, other))
    return [
        f"{counts}: {len(here & there)} at both, {len(here - there)} only at layer {above['layer']},"
        f" {len(there - here)} only at layer {below['layer']}."
    ]


def _tied(summary: ClassSummary) -> str:
    return f" (and {summary['tied_total']} tied)" if "tied_total" in summary else ""


def _cut(summary: ClassSummary) -> bool:
    """Whether the record names only some of the misordered pairs."""
    return len(summary["wrong"]) < summary["wrong_total"]


def _norms(record: CaptureRecord, above: int, below: int) -> str:
    rows = {row["layer"]: row for row in record["statistics"]}
    one, other = rows[above]["diff_norm"] or 0.0, rows[below]["diff_norm"] or 0.0
    order = f"would also rank layer {above} first" if one >= other else f"would rank layer {below} first"
    return (
        f"The raw difference norm ({norm_in_words(one)} and {norm_in_words(other)}) {order}; it grows with depth for"
        " any concept."
    )
