"""Several prompts in one row of tokens, what they share at the beginning held once.

A token sees those before it in its own prompt and no others: the mask says so. Knows token ids and masks; does not know
whether a model heeds a mask that it did not make itself, which is for `engine.models.shortcuts` to measure.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.errors import first_line
from engine.models.forward import TokenBatch, input_device, read_blocks
from engine.models.offload import runs_on_cpu
from engine.models.products import onednn_possible, onednn_products, product_error

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

    from engine.models.structure import Blocks


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


ONEDNN_TOLERANCE = 1e-4
"""Largest error of the median token's state, relative to its norm, that oneDNN may make next to PyTorch's own products:
thirty times what another order of summation makes, a thirtieth of what rounding to bfloat16 does."""

# Implementations of attention that add a mask to their scores. Others may read past the end of one.
_TAKE_MASKS = ("sdpa", "eager")

# How far back a token sees, by the names that configs have for it.
_WINDOWS = (
    *("sliding_window", "sliding_window_size", "sliding_window_len", "window_size", "attention_window_size"),
    *("attention_chunk_size", "local_attention", "index_topk", "keep_window_size"),
)

States = dict[int, Tensor]
"""Layer to the states of tokens, `(tokens, hidden)`, float64 on the CPU."""


def attention_window(config: PreTrainedConfig) -> int | None:
    """The longest prompt in which every token sees all those before it; None where there is no limit."""
    text = config.get_text_config(decoder=True)
    found = [value for name in _WINDOWS if isinstance(value := getattr(text, name, None), int) and value > 0]
    return min(found, default=None)


def why_not_shared(
    model: PreTrainedModel, blocks: Blocks, prompts: Sequence[list[int]], alone: Sequence[States], tolerance: float
) -> str:
    """Why prompts cannot share what they begin with; empty when they can.

    They are read in one row, and once more in one row that goes on from the keys and values of their beginning.

    Args:
        model: A model that keeps its other promises.
        blocks: Its parts.
        prompts: Token ids of prompts that begin alike.
        alone: The states that each has by itself.
        tolerance: How far a state may move, relative to its norm.
    """
    window = attention_window(model.config)
    attention = str(model.config.get_text_config(decoder=True)._attn_implementation)
    if attention.rpartition("|")[2] not in _TAKE_MASKS:
        return f"its attention, {attention}, is not known to take a mask of numbers"
    if "position_ids" not in inspect.signature(blocks.decoder.forward).parameters:
        return "it cannot be told where in a prompt a token is"
    if window is not None and window < max(map(len, prompts)):
        return f"its tokens see {window} tokens back"
    # A layer that sees no further back than its window is as good as any other for prompts that fit into it.
    others = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or []) - {"full_attention"}
    if window is not None:
        others -= {"sliding_attention", "chunked_attention"}
    if others:
        return f"it has layers of the kind {', '.join(sorted(others))}"
    try:
        errors = [*_packed_errors(model, blocks, prompts, alone, 0), *_packed_errors(model, blocks, prompts, alone, 3)]
    except Exception as refusal:  # whatever a family does not like about it
        return f"its attention does not take such a mask or cache ({type(refusal).__name__}: {first_line(refusal)})"
    error = float(torch.tensor(errors).max())  # which, unlike max, does not pass over what is not a number
    return "" if error <= tolerance else f"it moves a token's state by {error:.2g} of its norm"


def _packed_errors(
    model: PreTrainedModel, blocks: Blocks, prompts: Sequence[list[int]], alone: Sequence[States], start: int
) -> list[float]:
    """For each prompt and layer the error of the median token, of those that no other prompt has.

    The median, because a mixture of experts may send one token elsewhere on a tie.
    """
    device, cache = input_device(model), continued(None) if start else None
    if start:
        read_all(model, blocks, TokenBatch.of([prompts[0][:start]], device, cache))
    rest = [ids[start:] for ids in prompts]
    batch, places = pack_prompts(rest, device, model.dtype, start=start, cache=cache)
    states = read_all(model, blocks, batch)
    own = len(set(places[0]) & set(places[1]))
    return [
        float(moved(states[layer][where[own:]], single[start + own :]).median())
        for where, one in zip(places, alone, strict=True)
        for layer, single in one.items()
    ]


def onednn_error(model: PreTrainedModel, blocks: Blocks, batch: TokenBatch, states: States) -> float | None:
    """How far the median token moves, relative to its norm, when products go through oneDNN; None where they cannot.

    Largest over layers. The median, because a token at which a huge activation sets in moves further by any rounding.
    Or what a single product of many tokens moves, if that is more: a few tokens do not show what becomes of many.

    Args:
        model: A model that keeps its promises.
        blocks: Its parts.
        batch: Some tokens.
        states: The states that they have.
    """
    if model.dtype != torch.float32 or not onednn_possible() or not runs_on_cpu(model):
        return None
    after = read_all(model, blocks, batch, onednn=True)
    real = batch.attention_mask.flatten().bool().cpu()
    errors = [moved(after[layer][real], before[real]).median() for layer, before in states.items()]
    shapes = {(weight.shape[-2], weight.shape[-1]) for weight in blocks.blocks.parameters() if weight.dim() > 1}
    return max(float(torch.stack(errors).max()), product_error(shapes))


def read_all(
    model: PreTrainedModel, blocks: Blocks, batch: TokenBatch, *, whole: bool = False, onednn: bool = False
) -> States:
    """The states of all tokens after every block.

    Args:
        model: The model.
        blocks: Its parts.
        batch: The tokens.
        whole: Run the model with all that it is beside its decoder, as its own `forward` does.
        onednn: Send float32 products through oneDNN.
    """
    layers = range(len(blocks.blocks))
    with onednn_products(wanted=onednn):
        return read_blocks(model, blocks, batch, layers, _copied, run=model if whole else None)


def _copied(states: Tensor) -> Tensor:
    """States of a batch, `(batch, sequence, hidden)`, as rows of tokens in float64."""
    return states.flatten(0, 1).to("cpu", torch.float64, copy=True)


def moved(states: Tensor, expected: Tensor) -> Tensor:
    """How far each token's state is from what was expected, relative to the norm of that."""
    distance: Tensor = (states - expected).norm(dim=-1) / expected.norm(dim=-1)
    return distance
