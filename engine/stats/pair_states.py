"""States of both sides of a contrast, some pairs at a time: a capture may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from engine.records.captures import ActivationData, ContrastData

if TYPE_CHECKING:
    from torch import Tensor

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
