"""Which pairs go together: made from one persona, one template or one topic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from engine.records.captures import ActivationData, ContrastData, Factors

if TYPE_CHECKING:
    from torch import Tensor


FOLDS = 5
FEWEST_PAIRS = 4
MOST_UNITS = 65  # of more, several are drawn as one: a bootstrap of 65 knows a standard error to within 9%
FEWEST_GROUPS = 3  # of two, each is projected on the other alone: one number, with nothing to say how it varies
ENOUGH_GROUPS = 6  # labels of fewer cannot be swapped in enough ways for a p-value below 0.05: 2^5 ways
PAIRS = "pairs"
"""What is left out where nothing is known about what pairs were made from."""


def group_pairs(factors: Sequence[Factors] | None, num_pairs: int) -> dict[str, Tensor]:
    """For each way to leave pairs out, the number of the group that each pair belongs to.

    Args:
        factors: What each pair was made from, if that is known.
        num_pairs: Number of pairs.

    Returns:
        `persona`, `template` and `topic` as far as there are three or more, or `pairs` for five folds: numbers from 0,
        `(pairs,)` each. Of more than 65 values several make a group.
        Empty where nothing can be left out: fewer than four pairs, or of groups of every factor than three.

    Example:
        >>> group_pairs(None, 7)["pairs"].tolist()
        [0, 1, 2, 3, 4, 0, 1]
    """
    if num_pairs < FEWEST_PAIRS:
        return {}
    if not factors:
        return {PAIRS: torch.arange(num_pairs) % FOLDS}
    columns: dict[str, list[str]] = {
        "persona": [pair["persona"] for pair in factors],
        "template": [pair["template"] for pair in factors],
        "topic": [pair["topic"] for pair in factors],
    }
    varied = {name: values for name, values in columns.items() if len(set(values)) >= FEWEST_GROUPS}
    return {name: _numbered(values) for name, values in varied.items()}


def resampled_units(factor: str, groups: Tensor) -> Tensor:
    """What is drawn as a whole when pairs are resampled: the groups; or where these are only folds, single pairs.

    Of more than 65 pairs several make a unit, all of one fold.
    """
    return torch.arange(len(groups)) % MOST_UNITS if factor == PAIRS else groups


def _numbered(values: Sequence[str]) -> Tensor:
    number = {value: index for index, value in enumerate(sorted(set(values)))}
    return torch.tensor([number[value] % MOST_UNITS for value in values])


_CHUNK_VALUES = 2**20  # of one side, 8 MiB in float64

Sides = tuple["Tensor", "Tensor"]
"""States of some positive prompts and of their partners, `(pairs, hidden)` each, float64."""

Pairs = Callable[[], Iterator[Sides]]
"""Hands over all pairs in order, some at a time, as often as it is called."""


def pairs_at(data: ContrastData, layer: int) -> Pairs:
    """The pairs of a contrast at one layer, by the last kept token of each prompt.

    Args:
        data: A contrast.
        layer: One of its layers.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=8)
        >>> [positive.shape for positive, negative in pairs_at(contrast, 16)()]
        [torch.Size([8, 576])]
    """
    return partial(_chunks, data, layer)


def pairs_of(positive: Tensor, negative: Tensor) -> Pairs:
    """Pairs whose states are in memory, `(pairs, hidden)` each."""
    return lambda: iter([(positive.double(), negative.double())])


def last_states(prompts: list[ActivationData], layer: int) -> Tensor:
    """States of the last kept token of every prompt, `(prompts, hidden)`, float64."""
    return torch.cat([data["activations"][layer][:, -1, :] for data in prompts]).double()


def chunked(prompts: list[ActivationData], layer: int) -> Iterator[Tensor]:
    """`last_states`, some prompts at a time."""
    width = prompts[0]["activations"][layer].shape[-1]
    size = max(1, _CHUNK_VALUES // width)
    for start, stop in pairwise([*range(0, len(prompts), size), len(prompts)]):
        yield last_states(prompts[start:stop], layer)


def _chunks(data: ContrastData, layer: int) -> Iterator[Sides]:
    yield from zip(chunked(data["positive"], layer), chunked(data["negative"], layer), strict=True)
