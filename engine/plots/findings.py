"""Format numbers for narrow columns and describe a ranking in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import RequestError
from engine.plots.specificity_text import neighbour_sentences
from engine.records.captures import CaptureEstimate
from engine.records.files import CaptureRecord
from engine.records.results import RankedLayer, Ranking, SideSummary


def cost_in_words(estimate: CaptureEstimate) -> str:
    """Say what a capture costs, with the seconds if they were estimated.

    Example:
        >>> cost_in_words({"prompts": 144, "tokens": 6790, "bytes": 9953280, "in_shards": False, "seconds": 3.21})
        '144 prompts, 6,790 tokens, about 3.2 s, 10.0 MB'
    """
    counts = [_counted(estimate["prompts"], "prompt"), _counted(estimate["tokens"], "token")]
    seconds = [f"about {max(estimate['seconds'], 0.1):.1f} s"] if "seconds" in estimate else []
    return ", ".join([*counts, *seconds, f"{estimate['bytes'] / 1e6:.1f} MB"])


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def score_in_words(value: float) -> str:
    """Format a score in at most six characters.

    Two decimals below 10, fewer above, exponent notation from 100,000.

    Example:
        >>> [score_in_words(value) for value in (0.1234, -12.34, 1234.5)]
        ['0.12', '-12.3', '1234']
    """
    for limit, form in ((9.995, ".2f"), (99.95, ".1f"), (99999.5, ".0f")):
        if abs(value) < limit:
            return format(value, form)
    return f"{value:.0e}"


def norm_in_words(value: float) -> str:
    """Format a norm in at most eight characters.

    Three decimals below 1000, one below 100,000, exponent notation above.

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
    """Describe the best layer, its neighbours, its ties, the raw-norm ranking and the baselines.

    Args:
        record: JSON record of a capture.

    Returns:
        One string per finding; empty if the capture has no ranking.
    """
    ranking = record["ranking"]
    if ranking is None:
        return []
    neighbours = neighbour_sentences(record.get("specificity"))
    return [_leader(ranking), *neighbours, _ties(ranking), _raw_norm(record, ranking), *_confounds(record)]


def p_in_words(p_value: float) -> str:
    """Format a p-value to three decimals, as `0.031`; below 0.001 as `<0.001`."""
    return f"{p_value:.3f}" if p_value >= 0.001 else "<0.001"


def layers_in_words(layers: Sequence[int]) -> str:
    """Format layer numbers, consecutive layers as ranges.

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


def _is_smallest(p_value: float, ranking: Ranking) -> bool:
    return p_value <= ranking["smallest_p"] * 1.001


def _why_smallest(ranking: Ranking) -> str:
    """What keeps p from being smaller: few groups, or the number of sampled permutations."""
    sampled = abs(ranking["smallest_p"] * (ranking["permutations"] + 1) - 1) < 1e-6
    return f"with {ranking['permutations']:,} permutations" if sampled else "with so few groups"


def _leader(ranking: Ranking) -> str:
    best = ranking["layers"][0]
    score = (
        f"held-out d' {best['d_prime']:.2f} (95% interval {best['low']:.2f} to {best['high']:.2f},"
        f" {left_out_in_words(best['left_out'])})"
    )
    if best["p_value"] <= SIGNIFICANT:
        floor = f", the smallest possible {_why_smallest(ranking)}" if _is_smallest(best["p_value"], ranking) else ""
        return f"Layer {best['layer']} leads with {score}. Permutation {_p(ranking, best['p_value'])}{floor}."
    found = [row["layer"] for row in ranking["layers"] if row["p_value"] <= SIGNIFICANT]
    if found:
        return (
            f"Layer {best['layer']} scores highest with {score}, but does not separate the classes significantly:"
            f" permutation {_p(ranking, best['p_value'])}. Layers with p <= {SIGNIFICANT}: {layers_in_words(found)}."
        )
    floor = ""
    if ranking["smallest_p"] > SIGNIFICANT:
        floor = f" With so few groups, p cannot fall below {p_in_words(ranking['smallest_p'])}."
    lowest = min(row["p_value"] for row in ranking["layers"])
    return (
        "No layer separates the classes significantly on held-out prompts: smallest permutation"
        f" {_p(ranking, lowest)}.{floor}"
    )


def _p(ranking: Ranking, p_value: float) -> str:
    """Name a p-value and its permuted factors; they can differ from the held-out one."""
    words = p_in_words(p_value)
    relation = f"p < {words[1:]}" if words.startswith("<") else f"p = {words}"
    *first, last = (factor.removesuffix("s") for factor in ranking["tested"])
    factors = f"{', '.join(first)} and {last}" if first else last
    return f"{relation} (labels permuted by {factors})"


def left_out_in_words(factor: str) -> str:
    """Name the cross-validation scheme of a held-out factor.

    Args:
        factor: `persona`, `template` or `topic`; `pairs` for pairs without factors, which are held out in five folds.

    Example:
        >>> left_out_in_words("persona"), left_out_in_words("pairs")
        ('leave-one-persona-out', '5-fold over pairs')
    """
    return "5-fold over pairs" if factor == "pairs" else f"leave-one-{factor}-out"


def misordered_in_words(wrong: int, pairs: int) -> str:
    """Count the misordered pairs.

    Example:
        >>> misordered_in_words(13, 72), misordered_in_words(1, 72)
        ('13 of 72 held-out pairs are misordered', '1 of 72 held-out pairs is misordered')
    """
    return f"{wrong} of {pairs} held-out pairs {'is' if wrong == 1 else 'are'} misordered"


def _ties(ranking: Ranking) -> str:
    best, *others = ranking["layers"]
    tied = [row["layer"] for row in others if row["tied"]]
    if not others:
        return "It is the only captured layer."
    if len(tied) == len(others):
        rest = "The other layer is" if len(others) == 1 else f"All {len(others)} other layers are"
        return f"{rest} tied with layer {best['layer']} at 95%."
    if not tied:
        return f"Layer {best['layer']} is ahead of every other layer at 95%."
    behind = len(others) - len(tied)
    rest = "The remaining layer scores" if behind == 1 else f"The remaining {behind} layers score"
    return f"Tied with layer {best['layer']} at 95%: {layers_in_words(tied)}. {rest} lower."


def _raw_norm(record: CaptureRecord, ranking: Ranking) -> str:
    largest = max(record["statistics"], key=lambda row: row["diff_norm"] or 0.0)["layer"]
    rank = next(row["rank"] for row in ranking["layers"] if row["layer"] == largest)
    if rank == 1:
        return f"The raw difference norm is also largest at layer {largest}."
    return f"The raw difference norm, which grows with depth, would have picked layer {largest} (rank {rank} here)."


def _confounds(record: CaptureRecord) -> list[str]:
    report = record["confounds"]
    if report is None or not report["checks"]:
        return []
    found = ", ".join(f"{check['what']} {check['auroc']:.2f}" for check in report["checks"])
    best = record["ranking"]["layers"][0]["auroc"] if record["ranking"] else 0.5
    return [f"Baselines without the model (held-out AUROC; chance 0.50, best layer {best:.2f}): {found}."]


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
        _left_out(above, below),
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


def _left_out(above: RankedLayer, below: RankedLayer) -> str:
    parts = [
        f"{left_out_in_words(factor)} {score['d_prime']:.2f} and {below['by_factor'][factor]['d_prime']:.2f}"
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
        f"{misordered_in_words(one['wrong_total'], record['num_pairs'])} at layer {above['layer']},"
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
