"""Pairs that two captures share: the direction of one sorts those of the other in-sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from engine.records.captures import ContrastData
from engine.stats.groups import FEWEST_GROUPS, resampled_factors
from engine.stats.wordings import Wording, wording

_FEWEST_NEW = 6


@dataclass(frozen=True)
class NewPairs:
    """Pairs of a contrast for a direction to sort that was fitted to other pairs.

    Attributes:
        data: The pairs that share no prompt with those of the fit; all pairs if too few are left.
        total: Number of pairs of the contrast.
        shared: Number of its pairs of which at least one prompt was in the fit.
    """

    data: ContrastData
    total: int
    shared: int

    @property
    def in_sample(self) -> bool:
        """Whether pairs with a shared prompt are among those to sort."""
        return self.shared > 0 and self.data["num_pairs"] == self.total


def new_pairs(data: ContrastData, fitted: Set[Wording]) -> NewPairs:
    """Choose the pairs of a contrast for a direction to sort.

    One prompt in common is enough to leave a pair out: the direction leans towards a positive prompt that was in its
    fit, and away from a negative one, by what only that prompt has. So in-sample pairs look sorted even in
    noise.

    Args:
        data: The contrast whose pairs are sorted.
        fitted: Prompts that the direction was fitted to, see `wordings`.

    Returns:
        The pairs without a shared prompt, if they are six or more and at least three groups of every resampled factor
        are among them; or else all pairs.

    Example:
        >>> data = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=12, positions="last")
        >>> from engine.stats.wordings import wordings
        >>> found = new_pairs(data, wordings(data))
        >>> found.shared, found.in_sample
        (12, True)
    """
    sides = zip(data["positive"], data["negative"], strict=True)
    kept = [number for number, pair in enumerate(sides) if fitted.isdisjoint(wording(prompt) for prompt in pair)]
    total = data["num_pairs"]
    chosen = _only(data, kept) if len(kept) < total and _enough(data, kept) else data
    return NewPairs(chosen, total, total - len(kept))


def describe_shared(name: str, sorted_by: Mapping[str, NewPairs]) -> list[str]:
    """Say which directions sort pairs of a contrast in-sample, and which sort only some of them.

    Args:
        name: The contrast whose pairs are sorted.
        sorted_by: Name of the capture that each direction was fitted to, and the pairs that it sorts.

    Returns:
        One warning per number of shared pairs; empty if none are shared.
    """
    alike: dict[tuple[int, int, bool], list[str]] = {}
    for fitted, pairs in sorted_by.items():
        if pairs.shared:
            alike.setdefault((pairs.shared, pairs.total, pairs.in_sample), []).append(fitted)
    return [_said(name, key, fitted) for key, fitted in alike.items()]


def _said(name: str, key: tuple[int, int, bool], fitted: Sequence[str]) -> str:
    (shared, total, in_sample), one = key, len(fitted) == 1
    found = f"{shared} of {total} pairs of {name} share a prompt with {', '.join(fitted)}, whose"
    if in_sample:
        return f"{found} direction{' sorts' if one else 's sort'} them in-sample: AUROC there is too far from 0.5"
    return f"{found} direction{' is' if one else 's are'} tested on the other {total - shared}"


def _enough(data: ContrastData, kept: Sequence[int]) -> bool:
    groups = [numbers[kept] for numbers in resampled_factors(data).values()]
    return len(kept) >= _FEWEST_NEW and all(len(set(numbers.tolist())) >= FEWEST_GROUPS for numbers in groups)


def _only(data: ContrastData, kept: Sequence[int]) -> ContrastData:
    chosen = data.copy()
    chosen["num_pairs"] = len(kept)
    chosen["positive"] = [data["positive"][pair] for pair in kept]
    chosen["negative"] = [data["negative"][pair] for pair in kept]
    if factors := data.get("factors"):
        chosen["factors"] = [factors[pair] for pair in kept]
    return chosen
