"""Numbers as text that stays narrow however large they are."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import RequestError
from engine.records.files import CaptureRecord
from engine.records.results import RankedLayer, Ranking, SideSummary


def score_in_words(value: float) -> str:
    """A score to two decimals, fewer where it is large: at most six characters up to 100,000.

    Example:
        >>> [score_in_words(value) for value in (0.1234, -12.34, 1234.5)]
        ['0.12', '-12.3', '1234']
    """
    for limit, form in ((9.995, ".2f"), (99.95, ".1f"), (99999.5, ".0f")):
        if abs(value) < limit:
            return format(value, form)
    return f"{value:.0e}"


def norm_in_words(value: float) -> str:
    """A norm to three decimals, fewer where it is large: at most eight characters.

    Example:
        >>> [norm_in_words(value) for value in (0.0421, 33.96, 12345.6, 1.5e9)]
        ['0.042', '33.960', '12345.6', '1.50e+09']
    """
    for limit, form in ((999.9995, ".3f"), (99999.95, ".1f")):
        if abs(value) < limit:
            return format(value, form)
    return f"{value:.2e}"


SIGNIFICANT = 0.05


def describe_findings(record: CaptureRecord) -> list[str]:
    """Which layer leads and how surely, what is tied with it, where the raw norm would have led, and confounds.

    Args:
        record: The JSON of a capture.

    Returns:
        Sentences; none for a capture without a ranking.
    """
    ranking = record["ranking"]
    if ranking is None:
        return []
    return [_leader(ranking), _ties(ranking), _raw_norm(record, ranking), *_confounds(record)]


def p_in_words(p_value: float) -> str:
    """A p-value to three decimals, as `0.031`; below one in a thousand as `<0.001`."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "<0.001"


def layers_in_words(layers: Sequence[int]) -> str:
    """Layer numbers with runs drawn together.

    Example:
        >>> layers_in_words([17, 15, 16, 21])
        '15-17, 21'
    """
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _leader(ranking: Ranking) -> str:
    best = ranking["layers"][0]
    interval = f"{best['low']:.2f} to {best['high']:.2f}"
    score = f"d' {best['d_prime']:.2f} ({interval}), {left_out_in_words(best['left_out'])} left out"
    if best["p_value"] <= SIGNIFICANT:
        floor = ", the least that so few groups can show" if best["p_value"] <= ranking["smallest_p"] * 1.001 else ""
        return f"Layer {best['layer']} leads: {score}. {_shuffled(ranking)} {_p(best['p_value'])}{floor}."
    found = [row["layer"] for row in ranking["layers"] if row["p_value"] <= SIGNIFICANT]
    if found:
        return (
            f"Layer {best['layer']} scores highest ({score}) but is not shown to separate the sides."
            f" {_shuffled(ranking)} {_p(best['p_value'])}. Shown to, with p of {SIGNIFICANT} at most: layers"
            f" {layers_in_words(found)}."
        )
    floor = ""
    if ranking["smallest_p"] > SIGNIFICANT:
        floor = f" So few groups cannot show less than {_p(ranking['smallest_p'])}."
    lowest = min(row["p_value"] for row in ranking["layers"])
    return f"No layer is shown to separate the sides on left-out prompts. {_shuffled(ranking)} {_p(lowest)}.{floor}"


def _shuffled(ranking: Ranking) -> str:
    """What the p-value is about: the start of a sentence."""
    *first, last = (f"{factor}s".replace("ss", "s") for factor in ranking["tested"])
    return f"Shuffling the labels of {' and '.join([', '.join(first), last]) if first else last} does as well with"


def _p(p_value: float) -> str:
    words = p_in_words(p_value)
    return f"p < {words[1:]}" if words.startswith("<") else f"p = {words}"


def left_out_in_words(factor: str) -> str:
    """What is left out at a time: `a persona`, or `a fifth of the pairs` where nothing is known of them."""
    return "a fifth of the pairs" if factor == "pairs" else f"a {factor}"


def _ties(ranking: Ranking) -> str:
    best, *others = ranking["layers"]
    tied = [row["layer"] for row in others if row["tied"]]
    if not others:
        return "It is the only layer captured."
    if len(tied) == len(others):
        return f"No layer can be told apart from layer {best['layer']}, the first by score."
    if not tied:
        return f"Layer {best['layer']} is ahead of every other layer at 95%."
    behind = len(others) - len(tied)
    rest = "the one other layer" if behind == 1 else f"the other {behind}"
    return f"Tied with layer {best['layer']} at 95%: {layers_in_words(tied)}. Behind it: {rest}."


def _raw_norm(record: CaptureRecord, ranking: Ranking) -> str:
    loudest = max(record["statistics"], key=lambda row: row["diff_norm"] or 0.0)["layer"]
    place = next(row["rank"] for row in ranking["layers"] if row["layer"] == loudest)
    if place == 1:
        return f"The raw difference norm is largest at layer {loudest} as well."
    return f"The raw difference norm, which grows with depth, would have led to layer {loudest}: place {place} here."


def _confounds(record: CaptureRecord) -> list[str]:
    report = record["confounds"]
    if report is None or not report["checks"]:
        return []
    found = ", ".join(f"{check['what']} {check['auroc']:.2f}" for check in report["checks"])
    best = record["ranking"]["layers"][0]["auroc"] if record["ranking"] else 0.5
    return [f"Told apart without the model (held-out AUROC; 0.5 is nothing; the best layer has {best:.2f}): {found}."]


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
