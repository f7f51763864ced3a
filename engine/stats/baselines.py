"""Baselines without the model: properties of prompts as vectors, scored on held-out groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from engine.records.captures import Factors
from engine.records.results import ENOUGH_GROUPS, Confound
from engine.stats.groups import Pairs, pairs_of, tested_factors
from engine.stats.held_out import hold_out
from engine.stats.moments import UnitMoments
from engine.stats.resampling import PERMUTATIONS, all_permutations, all_signs, random_signs
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

Baseline = Callable[[Groupings, Tell], Confound]
"""Scores one property of the prompts."""


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


def baselines_of(texts: Texts) -> list[Baseline]:
    """Baselines that these texts allow; topic words need factors, and token read a single token."""
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
    p_value = max(permuted_p(held_out.by_factor[factor].moments) for factor in tested_factors(groupings))
    return Confound(
        what=what, auroc=scores.auroc, detail=detail, within_pairs=scores.within_pairs, p_value=p_value, telltale=[]
    )


def main_factor(groupings: Groupings) -> str:
    """Factor whose groups are counted to name features: the persona if there are enough, else the one with the most."""
    counts = {factor: int(groups.max()) + 1 for factor, groups in groupings.items()}
    return "persona" if counts.get("persona", 0) >= ENOUGH_GROUPS else max(counts, key=lambda factor: counts[factor])


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
    every = all_permutations(units, permutations)
    drawing = torch.Generator().manual_seed(seed)
    signs = all_signs(units) if every else random_signs(units, permutations, drawing)
    observed = float(_mean_difference(moments, torch.ones((units, 1), dtype=torch.float64)))
    as_high = int((_mean_difference(moments, signs) >= observed - 1e-9 * (1 + abs(observed))).sum())
    return as_high / signs.shape[1] if every else (as_high + 1) / (permutations + 1)


def _mean_difference(moments: UnitMoments, signs: Tensor) -> Tensor:
    """Mean held-out pair difference for signs of the units, `(units, permutations)` to `(permutations,)`."""
    per_length, _ = moments.train(torch.ones_like(signs), signs)  # (groups, permutations)
    along = signs * ((moments.differences * moments.others) @ signs)  # (units, permutations)
    return (along * per_length[moments.groups]).sum(dim=0) / moments.pairs.sum()
