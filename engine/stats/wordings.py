"""Wording of prompts, and which pairs of a contrast share a prompt."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence, Set
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
    text, response = prompt["prompt"], prompt.get("response")
    said = response[0] if isinstance(response, list) else response
    return text if isinstance(text, str) else text[0], said["text"] if said else ""


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
    sides = [list(map(wording, data[side])) for side in ("positive", "negative")]
    numbers = link(*sides)
    if not data.get("factors") and any(response for side in sides for _, response in side):
        of_prompts = link(*([prompt for prompt, _ in side] for side in sides))
        if len({*of_prompts}) >= ENOUGH_GROUPS:
            numbers = of_prompts
    return torch.tensor(numbers, dtype=torch.long)


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
