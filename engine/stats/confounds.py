"""Baselines without the model: do length, tokens, words or signs separate the classes?

Each baseline turns a prompt into a vector and is scored on held-out groups exactly like the states. If a baseline
separates held-out prompts, the states may carry nothing more than that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from engine.capture.selection import Positions, parse_positions
from engine.records.captures import ActivationData, ContrastData, Factors
from engine.records.results import Confound, ConfoundReport, Ranking
from engine.runtime import Progress, ignore_progress
from engine.stats.groups import ENOUGH_GROUPS, Pairs, group_pairs, pairs_of, resampled_units
from engine.stats.held_out import hold_out
from engine.stats.moments import UnitMoments
from engine.stats.resampling import all_shuffles, smallest_p
from engine.stats.separation import separate
from engine.stats.text_features import (
    Bag,
    BagPairs,
    Tell,
    capitals_in,
    neighbors_of,
    pair_groups,
    signs_of,
    telltale_in_words,
    words_of,
)

if TYPE_CHECKING:
    from torch import Tensor

Groupings = Mapping[str, "Tensor"]

ALPHA = 0.05
"""Chance that any baseline gets a warning if none tells new prompts apart."""

UNRANKED = 0.8
"""Stands for the best layer's scores where there is no ranking: about what they are in a small model."""

PERMUTATIONS = 10_000

_EXPLAIN_ORDER = {"capitals", "punctuation", "topic words", "all words"}
"""Baselines whose features are part of those of `word order`."""


@dataclass(frozen=True)
class Texts:
    """What the baselines need to know of the prompts of a contrast.

    Attributes:
        positive: Positive prompts.
        negative: Negative prompts, in the same order.
        lengths: Length of each positive and of each negative prompt.
        unit: What the lengths count, in the plural.
        read: Token at which the states of each prompt are read; None if there is no single one.
        factors: Factors of each pair, if known.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    lengths: tuple[Sequence[int], Sequence[int]]
    unit: str
    read: tuple[Sequence[str], Sequence[str]] | None
    factors: Sequence[Factors] | None

    @property
    def sides(self) -> tuple[Sequence[str], Sequence[str]]:
        """Positive and negative prompts."""
        return self.positive, self.negative


class Scores(NamedTuple):
    """Held-out scores of a layer or a baseline."""

    within_pairs: float
    auroc: float


def find_confounds(
    data: ContrastData, ranking: Ranking | None = None, *, progress: Progress | None = None
) -> ConfoundReport:
    """Score baselines that could explain a contrast without the concept.

    Every pair is projected on the mean difference of the pairs in all other groups. The share of pairs in the right
    order compares within pairs, so that it finds what AUROC misses: positive prompts that are always a little longer
    than their partners, while lengths differ more between pairs. Both are given for the factor where the share is
    lowest.

    A baseline gets a warning if both of the following hold.

    - Its permutation p-value is at most 5%, divided by the number of baselines that differ within pairs. If there are
      too few groups for that, the smallest possible p-value counts.
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
    groupings = group_pairs(data.get("factors"), data["num_pairs"])
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
    baselines = _baselines(texts)
    report = progress or ignore_progress
    checks = []
    for done, baseline in enumerate(baselines):
        tell = partial(report, done, len(baselines))
        tell()
        checks.append(baseline(groupings, tell))
    units = _units(groupings)
    return ConfoundReport(checks=checks, warnings=_warnings(checks, units, ranking))


Baseline = Callable[[Groupings, Tell], Confound]


def _baselines(texts: Texts) -> list[Baseline]:
    capitals = tuple([capitals_in(text) for text in side] for side in texts.sides)
    made: list[Baseline] = [
        partial(_number, "prompt length", texts.unit, (texts.lengths[0], texts.lengths[1])),
        *([partial(_tokens_read, texts.read)] if texts.read else []),
        partial(_number, "capitals", "capital letters", (capitals[0], capitals[1])),
        partial(_features, "punctuation", signs_of, texts),
    ]
    if texts.factors:
        made.append(partial(_topic_words, texts, texts.factors))
    made.append(partial(_features, "all words", words_of, texts))
    made.append(partial(_features, "word order", neighbors_of, texts))
    return made


def _number(
    what: str, unit: str, sides: tuple[Sequence[int], Sequence[int]], groupings: Groupings, _tell: Tell
) -> Confound:
    """Baseline on one number per prompt."""
    positive, negative = (torch.tensor(side, dtype=torch.float64)[:, None] for side in sides)  # (pairs, 1)
    more, less = int((positive > negative).sum()), int((positive < negative).sum())
    detail = (
        f"{positive.mean():.1f} {unit} per positive prompt, {negative.mean():.1f} per negative prompt; more in the"
        f" positive prompt in {more} of {len(positive)} pairs, fewer in {less}"
    )
    return _scored(what, pairs_of(positive, negative) if more or less else None, groupings, detail)


def _tokens_read(read: tuple[Sequence[str], Sequence[str]], groupings: Groupings, tell: Tell) -> Confound:
    positive, negative = read
    usual = Counter(positive).most_common(1)[0][0], Counter(negative).most_common(1)[0][0]
    same = sum(one == other for one, other in zip(positive, negative, strict=True))
    detail = f"the same in {same} of {len(positive)} pairs; mostly {usual[0]!r}"
    detail += f" in positive prompts, {usual[1]!r} in negative prompts" if usual[0] != usual[1] else ""
    bags = BagPairs(len(positive), lambda number: ({positive[number]: 1}, {negative[number]: 1}), tell)
    columns = bags.columns()
    return _scored("token read", bags.vectors(columns) if columns else None, groupings, detail)


def _topic_words(texts: Texts, factors: Sequence[Factors], groupings: Groupings, tell: Tell) -> Confound:
    """Baseline on the words of the pair's topic that each prompt contains."""

    def bags(number: int) -> tuple[Bag, Bag]:
        topic = words_of(factors[number]["topic"]).keys()
        positive, negative = (words_of(side[number]).keys() for side in texts.sides)
        return dict.fromkeys(topic & positive, 1), dict.fromkeys(topic & negative, 1)

    return _bag("topic words", BagPairs(len(factors), bags, tell), texts, groupings)


def _features(what: str, of: Callable[[str], Bag], texts: Texts, groupings: Groupings, tell: Tell) -> Confound:
    """Baseline on all features of one kind."""

    def bags(number: int) -> tuple[Bag, Bag]:
        return of(texts.positive[number]), of(texts.negative[number])

    return _bag(what, BagPairs(len(texts.positive), bags, tell), texts, groupings)


def _bag(what: str, bags: BagPairs, texts: Texts, groupings: Groupings) -> Confound:
    columns = bags.columns()
    if not columns:
        return _scored(what, None, groupings, "the same in both prompts of every pair")
    counted, values = pair_groups(texts.factors, main_factor(groupings), bags.count)
    found = bags.telltale(columns, counted, values)
    detail = telltale_in_words(found) or f"the prompts of pairs differ, but not in the same way in two {counted}s"
    check = _scored(what, bags.vectors(columns), groupings, detail)
    check["telltale"] = found
    return check


def _scored(what: str, pairs: Pairs | None, groupings: Groupings, detail: str) -> Confound:
    """Score a baseline on held-out groups; without pairs, the prompts of each pair do not differ."""
    if pairs is None:
        return Confound(what=what, auroc=0.5, detail=detail, within_pairs=0.5, p_value=1.0, telltale=[])
    held_out = hold_out(pairs, groupings)
    by_factor = separate(held_out)["by_factor"].values()
    scores = min(Scores(1 - found["wrong_way"], found["auroc"]) for found in by_factor)
    p_value = permuted_p(held_out.by_factor[main_factor(groupings)].moments)
    return Confound(
        what=what, auroc=scores.auroc, detail=detail, within_pairs=scores.within_pairs, p_value=p_value, telltale=[]
    )


def main_factor(groupings: Groupings) -> str:
    """Factor whose labels are permuted: the persona if there are enough, else the one with the most groups."""
    counts = {factor: int(groups.max()) + 1 for factor, groups in groupings.items()}
    return "persona" if counts.get("persona", 0) >= ENOUGH_GROUPS else max(counts, key=lambda factor: counts[factor])


def _units(groupings: Groupings) -> int:
    factor = main_factor(groupings)
    return int(resampled_units(factor, groupings[factor]).max()) + 1


def permuted_p(moments: UnitMoments, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Compute the permutation p-value of a baseline.

    The labels of whole units are swapped, as for layers. The statistic is the mean held-out difference of a pair along
    the direction of the other groups. Swapping leaves the size of differences as it is, so dividing by their spread is
    not needed; with d', features that are the same in all prompts of a class would have no spread and no score.

    Args:
        moments: Unit moments of the baseline.
        permutations: Maximum number of permutations; all distinct ones if there are fewer.
        seed: Seed for sampling permutations.

    Returns:
        Share of permutations that score at least as high as the true labels, which count as one of them.
    """
    units = len(moments.groups)
    every = all_shuffles(units, permutations)
    if every:  # the last unit keeps its labels: swapping all of them changes nothing
        signs = 1.0 - 2.0 * ((torch.arange(1 << (units - 1)) >> torch.arange(units)[:, None]) & 1).double()
    else:
        generator = torch.Generator().manual_seed(seed)
        signs = 1.0 - 2.0 * torch.randint(2, (units, permutations), generator=generator).double()
    observed = float(_mean_difference(moments, torch.ones((units, 1), dtype=torch.float64)))
    as_high = int((_mean_difference(moments, signs) >= observed - 1e-9 * (1 + abs(observed))).sum())
    return as_high / signs.shape[1] if every else (as_high + 1) / (permutations + 1)


def _mean_difference(moments: UnitMoments, signs: Tensor) -> Tensor:
    """Mean held-out pair difference for signs of the units, `(units, permutations)` to `(permutations,)`."""
    per_length, _ = moments.train(torch.ones_like(signs), signs)  # (groups, permutations)
    along = signs * ((moments.differences * moments.others) @ signs)  # (units, permutations)
    return (along * per_length[moments.groups]).sum(dim=0) / moments.pairs.sum()


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
    positive, negative = ([str(prompt["prompt"]) for prompt in side] for side in sides)
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


def _last_kept(prompts: Sequence[ActivationData], positions: Positions) -> list[str]:
    """Last kept token of every prompt, the one whose state the statistics use."""
    tokens = [prompt["tokens"] for prompt in prompts]
    return [str(row[positions.span(len(row))[1] - 1]) for row in tokens]
