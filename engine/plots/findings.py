"""What a ranking comes to, in sentences that say no more than it does. Knows records alone."""

from collections.abc import Sequence

from engine.records.files import CaptureRecord
from engine.records.ranking import Ranking

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
