"""Several prompts in one row of tokens, what they share at the beginning held once.

A token sees those before it in its own prompt and no others: the mask says so. Knows token ids and masks; does not know
whether a model heeds a mask that it did not make itself, which is for `engine.models.shortcuts` to measure.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from engine.models.forward import TokenBatch

if TYPE_CHECKING:
    from transformers import DynamicCache


class Packed(NamedTuple):
    """Prompts as one row.

    Attributes:
        batch: The row, with the mask and the positions of its tokens.
        places: For each prompt, where in the row its tokens lie.
    """

    batch: TokenBatch
    places: list[list[int]]


def pack_prompts(
    rows: Sequence[Sequence[int]],
    device: torch.device,
    dtype: torch.dtype,
    *,
    start: int = 0,
    cache: DynamicCache | None = None,
) -> Packed:
    """Lay prompts into one row; a token that has the same tokens before it in two prompts is held once.

    Args:
        rows: Token ids of each prompt, from `start` on.
        device: Where the row belongs.
        dtype: That of the model, for the mask.
        start: Number of tokens before these, the same in all prompts.
        cache: Keys and values of those tokens.

    Returns:
        The row, and where each prompt is in it.

    Example:
        >>> packed = pack_prompts([[5, 6, 7], [5, 6, 8, 9]], torch.device("cpu"), torch.float32)
        >>> packed.batch.input_ids.tolist(), packed.places
        ([[5, 6, 7, 8, 9]], [[0, 1, 2], [0, 1, 3, 4]])
    """
    ids: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    places: list[list[int]] = []
    children: dict[tuple[int, int], int] = {}
    for row in rows:
        path: list[int] = []
        for position, token in enumerate(row, start):
            parent = path[-1] if path else -1
            place = children.setdefault((parent, token), len(ids))
            if place == len(ids):
                ids.append(token)
                positions.append(position)
                parents.append(parent)
            path.append(place)
        places.append(path)
    mask = torch.from_numpy(_hidden(parents, start)).to(device)
    batch = TokenBatch(
        torch.tensor([ids], device=device),
        torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(mask, torch.finfo(dtype).min)[None, None],
        torch.tensor([positions], device=device),
        cache,
    )
    return Packed(batch, places)


def _hidden(parents: Sequence[int], start: int) -> np.ndarray:
    """What a token does not see: False for what came before the row, for its ancestors and for itself."""
    hidden = np.ones((len(parents), start + len(parents)), dtype=bool)
    hidden[:, :start] = False
    for token, parent in enumerate(parents):
        if parent >= 0:
            hidden[token] = hidden[parent]
        hidden[token, start + token] = False
    return hidden


def continued(cache: DynamicCache | None) -> DynamicCache:
    """A cache that begins with what another holds, which stays as it is; an empty one for None.

    Nothing is copied: a cache grows by putting a longer tensor in the place of the one it had.
    """
    from transformers import DynamicCache

    if cache is None:
        return DynamicCache()
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new
