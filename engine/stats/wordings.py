"""Wording of prompts, and which pairs of a contrast share a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from engine.records.captures import ActivationData, ContrastData
from engine.records.results import ENOUGH_GROUPS

if TYPE_CHECKING:
    from torch import Tensor

Wording = tuple[str, str]
"""Text of a prompt and of its response, empty without one."""


def wording(prompt: ActivationData) -> Wording:
    """Text of a prompt, and of its response."""
    return wordings_of(prompt)[0]


def wordings_of(prompts: ActivationData) -> list[Wording]:
    """Text of each prompt of a batch, and of its response."""
    text, response = prompts["prompt"], prompts.get("response")
    asked = [text] if isinstance(text, str) else text
    said = response if isinstance(response, list) else [response] * len(asked)
    return [(one, answer["text"] if answer else "") for one, answer in zip(asked, said, strict=True)]


def wordings(data: ContrastData) -> Set[Wording]:
    """All prompts of a contrast, with their responses."""
    return {wording(prompt) for prompt in (*data["positive"], *data["negative"])}


def number_pairs(data: ContrastData) -> Tensor:
    """Number the pairs of a contrast, with one number for all that share a prompt, directly or through others.

    They are not independent: what is peculiar to a prompt is in the state of each of its pairs. Responses count as
    part of their prompts, unless pairs without factors have six or more prompts: then those are resampled, as a
    ranking should hold for other prompts too.

    Args:
        data: A contrast.

    Returns:
        Number of each pair, `(pairs,)`, counted from 0 in the order of their first pairs.

    Example:
        >>> data = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=12, positions="last")
        >>> number_pairs(data).tolist() == [*range(12)]
        True
    """
    return torch.tensor(link(*pair_prompts(data)), dtype=torch.long)


def pair_prompts(data: ContrastData) -> tuple[Sequence[Hashable], Sequence[Hashable]]:
    """Identify the prompts of each pair, by class; pairs with an equal one are not independent, see `number_pairs`."""
    sides = [list(map(wording, data[side])) for side in ("positive", "negative")]
    if not data.get("factors") and any(response for side in sides for _, response in side):
        prompts = [[prompt for prompt, _ in side] for side in sides]
        if len({*link(*prompts)}) >= ENOUGH_GROUPS:
            return prompts[0], prompts[1]
    return sides[0], sides[1]


@dataclass(frozen=True)
class SharedPrompts:
    """Which pairs share a prompt, such that sums over all two pairs that share none take one pass.

    The product of two sums over all pairs, less those over the pairs of each shared prompt, has each two pairs that
    share a prompt once too often if they share both; those sums are added again.

    Attributes:
        places: Number of the sum that a pair is part of, or -1: by its positive prompt, by its negative prompt, and by
            both, `(pairs,)` each.
        signs: -1 for sums that are subtracted, 1 for those that are added again, float64.
        excess: How often the product of a pair with itself is subtracted too often, `(pairs,)`, float64.
    """

    places: tuple[Tensor, Tensor, Tensor]
    signs: Tensor
    excess: Tensor


def share_prompts(positive: Sequence[Hashable], negative: Sequence[Hashable]) -> SharedPrompts:
    """Find the prompts that pairs share.

    Args:
        positive: The positive prompt of each pair.
        negative: The negative prompt of each.
    """
    pairs = [frozenset(pair) for pair in zip(positive, negative, strict=True)]
    uses, both_uses = Counter(prompt for pair in pairs for prompt in pair), Counter(pairs)
    ones = {prompt: place for place, prompt in enumerate(prompt for prompt, count in uses.items() if count > 1)}
    twice = [pair for pair, count in both_uses.items() if count > 1 and len(pair) > 1]
    both = {pair: len(ones) + place for place, pair in enumerate(twice)}
    places = (
        torch.tensor([ones.get(prompt, -1) for prompt in positive]),
        torch.tensor([ones.get(two, -1) if two != one else -1 for one, two in zip(positive, negative, strict=True)]),
        torch.tensor([both.get(pair, -1) for pair in pairs]),
    )
    shared = [(place >= 0).double() for place in places]
    signs = torch.tensor([-1.0] * len(ones) + [1.0] * len(both), dtype=torch.float64)
    return SharedPrompts(places, signs, shared[0] + shared[1] - shared[2] - 1)


def number_shared(data: ContrastData, factors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Number the prompts of each class that several pairs share, unless all of these pairs share a group as well.

    Args:
        data: A contrast.
        factors: Group index of each pair, `(pairs,)`, one entry per factor that is tested.

    Returns:
        Class to the number of the prompt of each pair, `(pairs,)`, for classes with such prompts.
    """
    columns, found = [groups.tolist() for groups in factors], {}
    for side in ("positive", "negative"):
        known: dict[Wording, int] = {}
        numbers = [known.setdefault(wording(prompt), len(known)) for prompt in data[side]]
        apart = all(len({*zip(numbers, column, strict=True)}) > len(known) for column in columns)
        if apart and len(known) < len(numbers):
            found[side] = torch.tensor(numbers)
    return found


def link(ones: Sequence[Hashable], others: Sequence[Hashable]) -> list[int]:
    """Number links, with one number for all that have an end in common, directly or through others.

    Args:
        ones: One end of each link.
        others: The other end of each.

    Returns:
        Number of each link, counted from 0 in the order of their first links.

    Example:
        >>> link("abcd", ["x", "y", "x", "b"])
        [0, 1, 0, 1]
    """
    known: dict[Hashable, int] = {}
    ends = [np.array([known.setdefault(end, len(known)) for end in side], dtype=np.int64) for side in (ones, others)]
    links = coo_array((np.ones(len(ends[0])), (ends[0], ends[1])), shape=(len(known), len(known)))
    _, found = connected_components(links, directed=False)
    first: dict[int, int] = {}
    return [first.setdefault(label, len(first)) for label in found[ends[0]].tolist()]
