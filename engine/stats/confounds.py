"""Confounds of a contrast: do length, tokens, words or signs separate the classes?

Each baseline turns a prompt into a vector and is scored on held-out groups exactly like the states. If a baseline
separates held-out prompts, the states may carry nothing more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from engine.capture.selection import Positions, parse_positions
from engine.records.captures import ActivationData, ContrastData
from engine.records.results import ENOUGH_GROUPS, Confound, ConfoundReport, Ranking
from engine.runtime import Progress, ignore_progress
from engine.stats.baselines import Groupings, Scores, Texts, baselines_of
from engine.stats.groups import group_pairs, tested_factors
from engine.stats.resampling import PERMUTATIONS, smallest_p

ALPHA = 0.05
"""Chance that any baseline gets a warning if none tells new prompts apart."""

UNRANKED = 0.8
"""Stands for the best layer's scores where there is no ranking: about what they are in a small model."""

_EXPLAIN_ORDER = {"capitals", "punctuation", "topic words", "all words"}
"""Baselines whose features are part of those of `word order`."""


def find_confounds(
    data: ContrastData, ranking: Ranking | None = None, *, progress: Progress | None = None
) -> ConfoundReport:
    """Score baselines that could explain a contrast without the concept.

    Every pair is projected on the mean difference of the pairs in all other groups. The share of pairs in the right
    order compares within pairs, so that it finds what AUROC misses: positive prompts that are always a little longer
    than their partners, while lengths differ more between pairs. Both are given for the factor where the share is
    lowest.

    A baseline gets a warning if both of the following hold.

    - Its permutation p-value is at most 5%, divided by the number of baselines that differ within pairs; the largest
      of those over factors with six groups or more, because lengths that vary by template alone say nothing about
      other templates. If there are too few groups for that, the smallest possible p-value counts. Fewer than six
      groups cannot reach 5%: one warning then says that the baselines were not tested.
    - Its share of pairs in the right order, or its AUROC, is at least halfway from 0.5 to that of the best layer: it
      could explain half or more of what that layer shows. Without a ranking, 0.8 stands for the best layer.

    Args:
        data: A contrast.
        ranking: Its ranking, from which the scores of the best layer are taken.
        progress: Called periodically with the number of finished checks and the total; an exception raised by it
            stops the search.

    Returns:
        How well each of these separates the classes on held-out prompts: prompt length, token read (unless the capture
        keeps a mean), number of capital letters, punctuation, topic words, all words, and word order (pairs of
        neighboring words and signs, as written). No checks if no group can be held out.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24)
        >>> report = find_confounds(contrast, rank_layers(contrast))
        >>> [check["what"] for check in report["checks"]]
        ['prompt length', 'token read', 'capitals', 'punctuation', 'topic words', 'all words', 'word order']
    """
    groupings = group_pairs(data)
    if not groupings:
        return ConfoundReport(checks=[], warnings=[])
    return check_texts(_texts(data), groupings, ranking, progress)


def check_texts(
    texts: Texts, groupings: Groupings, ranking: Ranking | None = None, progress: Progress | None = None
) -> ConfoundReport:
    """Score the baselines of a contrast on its texts; see `find_confounds`.

    Args:
        texts: The prompts.
        groupings: Factor to the group index of each pair, at least one factor.
        ranking: See `find_confounds`.
        progress: See `find_confounds`.
    """
    baselines = baselines_of(texts)
    report = progress or ignore_progress
    checks = []
    for done, baseline in enumerate(baselines):
        tell = partial(report, done, len(baselines))
        tell()
        checks.append(baseline(groupings, tell))
    counts = {factor: int(groupings[factor].max()) + 1 for factor in tested_factors(groupings)}
    factor = min(counts, key=lambda name: counts[name])
    units = counts[factor]
    few = f"too few groups to test the baselines: {units} {factor.removesuffix('s')}s, {ENOUGH_GROUPS} are needed"
    warnings = _warnings(checks, units, ranking) if units >= ENOUGH_GROUPS else [few]
    return ConfoundReport(checks=checks, warnings=warnings)


def _warnings(checks: Sequence[Confound], units: int, ranking: Ranking | None) -> list[str]:
    row = ranking["layers"][0] if ranking else None
    best = Scores(1 - row["wrong_way"], row["auroc"]) if row else Scores(UNRANKED, UNRANKED)
    differing = max(1, sum(check["p_value"] < 1 or check["auroc"] != 0.5 for check in checks))
    level = max(ALPHA / differing, smallest_p(units, PERMUTATIONS)) * (1 + 1e-9)
    found = [check for check in checks if check["p_value"] <= level and _reaches(check, best)]
    if _EXPLAIN_ORDER & {check["what"] for check in found}:
        found = [check for check in found if check["what"] != "word order"]
    layer = f"; best layer {best.within_pairs:.0%} and {best.auroc:.2f}" if row else ""
    return [
        f"{check['what']} alone puts {check['within_pairs']:.0%} of held-out pairs in the right order"
        f" (AUROC {check['auroc']:.2f}{layer}): {check['detail']}"
        for check in found
    ]


def _reaches(check: Confound, best: Scores) -> bool:
    """Whether a baseline is at least halfway from chance to the best layer, by one of the scores."""
    own = Scores(check["within_pairs"], check["auroc"])
    return any(0.5 < reached >= 0.5 + max(high - 0.5, 0.0) / 2 for reached, high in zip(own, best, strict=True))


def _texts(data: ContrastData) -> Texts:
    positions = parse_positions(data["provenance"]["positions"] if "provenance" in data else "all")
    sides = data["positive"], data["negative"]
    positive, negative = ([_text(prompt) for prompt in side] for side in sides)
    lengths = [[prompt["input_ids"].shape[-1] for prompt in side] for side in sides]
    read = [_last_kept(side, positions) for side in sides] if not positions.mean else None
    return Texts(
        positive=positive,
        negative=negative,
        lengths=(lengths[0], lengths[1]),
        unit="tokens",
        read=(read[0], read[1]) if read else None,
        factors=data.get("factors"),
    )


def _text(data: ActivationData) -> str:
    """The prompt, followed by its response if there is one."""
    response = data.get("response")
    return (
        str(data["prompt"])
        if response is None or isinstance(response, list)
        else f"{data['prompt']}\n{response['text']}"
    )


def _last_kept(prompts: Sequence[ActivationData], positions: Positions) -> list[str]:
    """Last kept token of every prompt, the one whose state the statistics use."""
    tokens = [prompt["tokens"] for prompt in prompts]
    if positions.response:  # all of them end with the response
        return [str(row[-1]) for row in tokens]
    return [str(row[positions.span(len(row))[1] - 1]) for row in tokens]
