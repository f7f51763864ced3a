"""Format numbers for narrow columns and say in sentences what a ranking shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

from engine.plots.specificity_text import neighbour_sentences
from engine.records.captures import CaptureEstimate
from engine.records.files import CaptureRecord
from engine.records.results import ENOUGH_GROUPS, FOLDS, SIGNIFICANT, Confound, RankedLayer, Ranking, may_be_best
from engine.stats.scores import SATURATED


def cost_in_words(estimate: CaptureEstimate) -> str:
    """Say what a capture costs, with the seconds if they were estimated.

    Example:
        >>> cost_in_words({"prompts": 144, "tokens": 6790, "bytes": 9953280, "in_shards": False, "seconds": 3.21})
        '144 prompts, 6,790 tokens, about 3.2 s, 10.0 MB'
    """
    counts = [_counted(estimate["prompts"], "prompt"), _counted(estimate["tokens"], "token")]
    seconds = [f"about {max(estimate['seconds'], 0.1):.1f} s"] if "seconds" in estimate else []
    return ", ".join([*counts, *seconds, f"{estimate['bytes'] / 1e6:.1f} MB"])


def neighbours_in_words(estimate: CaptureEstimate) -> str:
    """Say how many prompts of neighbours run after a capture; empty if none do.

    Example:
        >>> estimate = {"prompts": 144, "tokens": 6790, "bytes": 9953280, "in_shards": False, "neighbours": 576}
        >>> neighbours_in_words(estimate)
        'and 576 prompts of neighbours, once for this model'
    """
    count = estimate.get("neighbours", 0)
    return f"and {_counted(count, 'prompt')} of neighbours, once for this model" if count else ""


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


_TELLING, _TELLING_PAIRS = 0.025, 0.1  # distance from chance
_TESTS = {"crossed": "all at once"}
_COMPONENTS = {"pair": "single pair", "pairs": "single pair"}


def describe_findings(record: CaptureRecord) -> list[str]:
    """Say what a ranking shows, most important first.

    In this order: which layers exceed the null; which neighbours sort the pairs as well; which layers cannot be
    ordered; where the concept begins; which layers exceed the null with an interval that includes 0; what limits the
    result; the baselines; and where the raw norm would have led.

    Args:
        record: JSON record of a capture.

    Returns:
        One string per finding; empty if the capture has no ranking.
    """
    ranking = record["ranking"]
    if ranking is None:
        return []
    return [
        _exceed(ranking),
        *(describe_neighbours(record) if significant_layers(ranking) else []),
        *_order(ranking),
        *_below_chance(ranking),
        *_beginning(ranking),
        *_intervals(ranking),
        *_limits(ranking),
        *_confounds(record),
        _raw_norm(record, ranking),
    ]


def describe_neighbours(record: CaptureRecord) -> list[str]:
    """Say which neighbours sort the pairs as well, see `neighbour_sentences`.

    A contrast that is not found is no more specific than its neighbours, even if they do not sort its pairs.
    """
    sentences = neighbour_sentences(record.get("specificity"))
    if sentences and record["ranking"] and not significant_layers(record["ranking"]):
        return ["No layer separates these pairs better than chance, so no neighbour can be told from the contrast."]
    return sentences


def significant_layers(ranking: Ranking) -> list[int]:
    """Layers that exceed the null at 5%, best first.

    The level covers the search over all layers and holds for new personas, templates and topics, as far as these were
    tested.
    """
    return [row["layer"] for row in ranking["layers"] if row["p_value"] <= SIGNIFICANT]


def is_saturated(ranking: Ranking) -> bool:
    """Whether most layers sort nearly all held-out prompts correctly, so that their order means nothing."""
    full = sum(row["auroc"] >= SATURATED for row in ranking["layers"])
    return 2 * full > len(ranking["layers"])


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


def _exceed(ranking: Ranking) -> str:
    """Which layers exceed the null, with the highest score."""
    best, found = ranking["layers"][0], significant_layers(ranking)
    score = (
        f"held-out d' {best['d_prime']:.2f} (95% interval {best['low']:.2f} to {best['high']:.2f},"
        f" {left_out_in_words(best['left_out'], groups_of_pairs(ranking))}), AUROC {best['auroc']:.2f}"
    )
    if ranking["smallest_p"] > SIGNIFICANT:
        what, limit, _ = _too_small(ranking)
        return (
            f"{what}: with {limit}, p cannot fall below {p_in_words(ranking['smallest_p'])}. The highest score is"
            f" {score}, at layer {best['layer']}."
        )
    if not found:
        lowest = min(ranking["layers"], key=lambda row: row["p_value"])
        return (
            f"No layer separates the classes better than chance: the smallest p-value, at layer {lowest['layer']}, is"
            f" {_p(ranking, lowest)}. The highest score, {score} at layer {best['layer']}, may be noise."
        )
    layers = f"Layer {found[0]} separates" if len(found) == 1 else f"Layers {layers_in_words(found)} separate"
    if len(found) == len(ranking["layers"]) > 1:
        layers = f"All {len(found)} layers separate"
    if best["layer"] in found:
        least = ", the smallest possible" if best["p_value"] <= ranking["smallest_p"] * 1.001 else ""
        return (
            f"{layers} held-out prompts better than chance. Highest: layer {best['layer']}, {score},"
            f" {_p(ranking, best)}{least}.{_untested(ranking)}"
        )
    return (
        f"{layers} held-out prompts better than chance, but not the layer with the highest score: layer"
        f" {best['layer']}, {score}, {_p(ranking, best)}.{_untested(ranking)}"
    )


def _too_small(ranking: Ranking) -> tuple[str, str, str]:
    """Why p cannot reach 0.05, what there is too little of, and what to do first."""
    fewest = min(ranking["tested"], key=lambda factor: ranking["groups"].get(factor, 0))
    count, groups = ranking["groups"].get(fewest, 0), _plural(fewest)
    if count < ENOUGH_GROUPS:
        advice = f"Add {groups} first: p can fall below {SIGNIFICANT} with {ENOUGH_GROUPS} or more."
        return "This design is too small to test", f"{count} {groups}", advice
    drawn = "permutations" if ranking["permutations"] < 1 / SIGNIFICANT else "resamples"
    number = ranking["permutations"] if drawn == "permutations" else ranking["resamples"]
    advice = f"Rank with more {drawn} first: the design itself allows smaller p-values."
    return f"Too few {drawn} to test", f"{number}", advice


def _untested(ranking: Ranking) -> str:
    """Factors that vary, but have too few groups to permute: what is common to these groups counts as an effect."""
    few = [
        f"{count} {_plural(factor)}" for factor, count in ranking["groups"].items() if factor not in ranking["tested"]
    ]
    if not few:
        return ""
    return f" It was not tested whether that holds for others than these {' and '.join(few)}: they are too few."


def _p(ranking: Ranking, row: RankedLayer) -> str:
    """The p-value of a layer, by factor; the factors that were tested can differ from the one held out."""
    by_factor = row.get("p_by_factor", {})
    if len(by_factor) > 1:
        each = ", ".join(f"{_TESTS.get(test, test)} {p_in_words(p_value)}" for test, p_value in by_factor.items())
        return f"{p_relation(row['p_value'])} ({each})"
    *first, last = (factor.removesuffix("s") for factor in ranking["tested"])
    factors = f"{', '.join(first)} and {last}" if first else last
    return f"{p_relation(row['p_value'])} (labels permuted by {factors})"


def p_relation(p_value: float) -> str:
    """Format a p-value as `p = 0.031` or `p < 0.001`."""
    words = p_in_words(p_value)
    return f"p < {words[1:]}" if words.startswith("<") else f"p = {words}"


def _plural(factor: str) -> str:
    return factor if factor.endswith("s") else f"{factor}s"


def _order(ranking: Ranking) -> list[str]:
    """Which of the layers that exceed the null cannot be ordered."""
    if is_saturated(ranking):
        full = [row["layer"] for row in ranking["layers"] if row["auroc"] >= SATURATED]
        if len(ranking["layers"]) == 1:
            return [f"Saturated: AUROC is {SATURATED} or more at layer {full[0]}, the only captured layer."]
        return [
            f"Saturated: AUROC is {SATURATED} or more at {len(full)} of {len(ranking['layers'])} layers, so their"
            " order means nothing. Prompts that differ less between the classes would tell the layers apart."
        ]
    found = significant_layers(ranking)
    tied = [row["layer"] for row in ranking["layers"] if may_be_best(row)]
    if not tied:
        return []
    if len(ranking["layers"]) == 1:
        return ["It is the only captured layer."]
    if sum(row["tied"] for row in ranking["layers"]) == 1:
        return [f"Layer {tied[0]} is ahead of every other layer (95%)."]
    if len(found) == 1:
        return []
    if len(tied) == len(found):
        return [f"They cannot be ordered: each of layers {layers_in_words(found)} may be the best (95%)."]
    behind = len(found) - len(tied)
    rest = "The other one is" if behind == 1 else f"The other {behind} are"
    if len(tied) == 1:
        return [f"Of these, only layer {tied[0]} may be the best (95%). {rest} behind."]
    return [f"Layers {layers_in_words(tied)} cannot be ordered: each may be the best (95%). {rest} behind."]


def _below_chance(ranking: Ranking) -> list[str]:
    below = [row["layer"] for row in ranking["layers"] if row["high"] < 0]
    if not below:
        return []
    layers = f"Layer {below[0]} is" if len(below) == 1 else f"Layers {layers_in_words(below)} are"
    return [
        f"{layers} wholly below chance: held-out prompts are sorted the wrong way there. Groups of different size or"
        " opposite effect do that; it is no sign of the concept."
    ]


def _beginning(ranking: Ranking) -> list[str]:
    """Where the concept is found: the first layer that exceeds the null, and the largest rise, if it is significant.

    A weak effect below the first layer may be missed: a design finds small effects only with many pairs.
    """
    found = significant_layers(ranking)
    rows = sorted(ranking["layers"], key=lambda row: row["layer"])
    if not found or len(rows) < 3 or is_saturated(ranking):
        return []
    first, steady = min(found), _steady(rows)
    if steady == rows[0]["layer"]:
        return [f"The concept is found from the first captured layer, {first}, on."]
    begins = f"The concept is found from layer {first} on"
    if steady != first:
        begins = f"The concept is first found at layer {first}"
        begins += f", and without a gap from layer {steady} on" if steady is not None else ""
    weak = "; before that, it may be too weak for these pairs to show" if first > rows[0]["layer"] else ""
    return [f"{begins}{weak}.{_rise(ranking, rows)}"]


def _rise(ranking: Ranking, rows: Sequence[RankedLayer]) -> str:
    """The largest rise of the score from a layer to the next; empty if it may be none (95%).

    It is the largest of many, so its interval is widened by the Bonferroni correction for their number.
    """
    rises = [after["d_prime"] - before["d_prime"] for before, after in pairwise(rows)]
    place = max(range(len(rises)), key=lambda row: rises[row])
    one, all_of_them = (NormalDist().inv_cdf(1 - 0.025 / count) for count in (1, len(rises)))
    if rises[place] <= ranking["margins"][place][0] * all_of_them / one:
        return ""
    before, after = rows[place], rows[place + 1]
    return (
        f" The largest rise is from layer {before['layer']} (d' {before['d_prime']:.2f}) to {after['layer']}"
        f" (d' {after['d_prime']:.2f})."
    )


def _steady(rows: Sequence[RankedLayer]) -> int | None:
    """The layer from which on every captured layer exceeds the null; None if the last does not."""
    start = None
    for row in reversed(rows):
        if row["p_value"] > SIGNIFICANT:
            break
        start = row["layer"]
    return start


def _limits(ranking: Ranking) -> list[str]:
    """What to do first if p cannot reach 0.05; which variance component limits the precision, and what would help."""
    first = [_too_small(ranking)[2]] if ranking["smallest_p"] > SIGNIFICANT else []
    shares = {name: share for name, share in ranking.get("limits", {}).items() if share > 0}
    if not shares:
        return first
    ordered = sorted(shares, key=lambda name: -shares[name])
    most = ordered[0]
    rest = ", ".join(f"{shares[name]:.0%} from {_plural(_COMPONENTS.get(name, name))}" for name in ordered[1:])
    advice = (
        "more pairs narrow the interval"
        if most in {"pair", "pairs"}
        else f"more {_plural(most)} narrow the interval, more pairs of the same ones hardly do"
    )
    return [
        *first,
        f"{_plural(_COMPONENTS.get(most, most)).capitalize()} limit the result: {shares[most]:.0%} of the squared error"
        f" at layer {ranking['layers'][0]['layer']} comes from them{f', {rest}' if rest else ''}; {advice}.",
    ]


def _intervals(ranking: Ranking) -> list[str]:
    """Layers that exceed the null although their interval includes 0, and why that is no contradiction."""
    found = [row["layer"] for row in ranking["layers"] if row["p_value"] <= SIGNIFICANT and row["low"] <= 0]
    if not found:
        return []
    layers = f"layer {found[0]}" if len(found) == 1 else f"layers {layers_in_words(found)}"
    return [
        f"At {layers}, the 95% interval of d' includes 0 although p is at most {SIGNIFICANT}: the interval allows for"
        " an uncertain spread within the classes, the scale of d'; the test permutes groups, and is one-sided."
    ]


def left_out_in_words(factor: str, groups: int = FOLDS) -> str:
    """Name the cross-validation scheme of a held-out factor.

    Args:
        factor: `persona`, `template` or `topic`; `pairs` for pairs without factors, which are held out in folds.
        groups: Number of groups of pairs without factors, see `groups_of_pairs`.

    Example:
        >>> left_out_in_words("persona"), left_out_in_words("pairs"), left_out_in_words("pairs", 4)
        ('leave-one-persona-out', '5-fold over pairs', '4-fold over pairs')
    """
    return f"{min(FOLDS, groups)}-fold over pairs" if factor == "pairs" else f"leave-one-{factor}-out"


def groups_of_pairs(ranking: Ranking | None) -> int:
    """Number of groups of pairs without factors; with fewer than five, each is a fold."""
    return ranking["groups"].get("pairs", FOLDS) if ranking else FOLDS


def misordered_in_words(wrong: int, pairs: int, tied: int = 0) -> str:
    """Count the misordered pairs, and tied pairs if there are any.

    Example:
        >>> misordered_in_words(13, 72), misordered_in_words(1, 72, tied=12)
        ('13 of 72 held-out pairs are misordered', '1 of 72 held-out pairs is misordered and 12 are tied')
    """
    ties = f" and {tied} {'is' if tied == 1 else 'are'} tied" if tied else ""
    return f"{wrong} of {pairs} held-out pairs {'is' if wrong == 1 else 'are'} misordered{ties}"


def _raw_norm(record: CaptureRecord, ranking: Ranking) -> str:
    largest = max(record["statistics"], key=lambda row: row["diff_norm"] or 0.0)["layer"]
    row = next(row for row in ranking["layers"] if row["layer"] == largest)
    if row["rank"] == 1:
        return f"The raw difference norm is also largest at layer {largest}."
    grows = "The raw difference norm, which grows with depth,"
    if may_be_best(row):
        return f"{grows} is largest at layer {largest}, which may be the best too."
    return f"{grows} would have picked layer {largest} (rank {row['rank']} here)."


def _confounds(record: CaptureRecord) -> list[str]:
    report = record["confounds"]
    if report is None or not report["checks"]:
        return []
    best = record["ranking"]["layers"][0]["auroc"] if record["ranking"] else 0.5
    found = [words for check in report["checks"] if (words := _baseline(check))]
    others = len(report["checks"]) - len(found)
    if others:
        found.append(f"{'the others' if found else 'all'} at chance")
    return [f"Baselines without the model (held-out AUROC; best layer {best:.2f}): {', '.join(found)}."]


def _baseline(check: Confound) -> str:
    """A baseline that tells the classes apart, with the share of pairs that it orders; empty at chance."""
    ordered = check.get("within_pairs", 0.5)
    if abs(check["auroc"] - 0.5) < _TELLING and abs(ordered - 0.5) < _TELLING_PAIRS:
        return ""
    pairs = f" ({ordered:.0%} of pairs in order)" if "within_pairs" in check else ""
    return f"{check['what']} {check['auroc']:.2f}{pairs}"
