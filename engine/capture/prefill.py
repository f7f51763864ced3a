"""Compute the keys and values of prompts before the model responds to them, those of a shared prefix once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from engine.capture.prefixes import Plan, Trunk, planned_tokens, shared_batches
from engine.capture.run_settings import sharing_allowed, uses_onednn, worth_packing
from engine.models.devices import send
from engine.models.forward import run_decoder
from engine.models.offload import is_offloaded
from engine.models.products import onednn_products
from engine.models.shortcuts import continued, packer
from engine.models.structure import find_blocks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedModel

    from engine.capture.batches import Limits
    from engine.records.models import ModelConfig


class _Filled(NamedTuple):
    """Keys and values of some prompts.

    Attributes:
        prompts: Indices of the prompts.
        places: For each prompt, the indices of its tokens in the cache.
        cache: Keys and values of one row, which holds each shared token once.
    """

    prompts: list[int]
    places: list[np.ndarray]
    cache: DynamicCache


def prefill(
    model: PreTrainedModel, known: ModelConfig, prompts: Sequence[Sequence[int]], new_tokens: int, limits: Limits
) -> DynamicCache | None:
    """Compute the keys and values of all tokens of prompts but their last, for a batch that `generate` continues.

    The caller holds the turn of the model, which is in eval mode: see `evaluating`.

    Args:
        model: A model that takes the positions of tokens.
        known: Its description.
        prompts: Token ids of each prompt.
        new_tokens: Maximum number of tokens of each response.
        limits: Maximum size of a forward pass.

    Returns:
        A cache of the prompts, padded with zeros on the left, `(prompts, heads, longest prompt - 1, size)` per layer.
        None if the prompts cannot be packed or share too little, or weights are offloaded.

    Example:
        >>> from engine.capture.batches import Limits
        >>> from engine.models.description import describe_model
        >>> cache = prefill(model, describe_model(model), [[5, 6, 7], [5, 6, 8, 9]], 5, Limits(512))
        >>> cache.layers[0].keys.shape[2]
        3
    """
    rows = [[*prompt[:-1]] for prompt in prompts]
    window, longest = known.receipt.get("window"), max(map(len, rows))
    fits = window is None or longest + 1 + new_tokens <= window
    # In `generate` the prompts are one pass, which fetches offloaded weights once.
    if not (sharing_allowed(known) and all(rows) and fits) or is_offloaded(model):
        return None
    plan = shared_batches(rows, limits)
    if planned_tokens(plan, rows) > worth_packing(model, known.receipt) * sum(map(len, rows)):
        return None
    padded: DynamicCache | None = None
    with onednn_products(wanted=uses_onednn(known.receipt)):
        for filled in _Prefill(model, rows).run(plan, continued(None)):
            padded = padded or _empty(filled.cache, len(rows), longest)
            _copy(filled, padded, longest)
    return padded


class _Prefill:
    """Runs a plan, and yields the cache of each of its batches.

    Args:
        model: The model.
        rows: Token ids of each prompt.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[list[int]]) -> None:
        blocks = find_blocks(model)
        self._decoder, self._rows = blocks.decoder, rows
        self._pack = packer(model, blocks)

    def run(self, plan: Plan, past: DynamicCache) -> Iterator[_Filled]:
        """Run a plan after the tokens in a cache, which stays as it is."""
        for step in plan:
            cache = continued(past)
            if isinstance(step, Trunk):
                own = [self._rows[step.prompts[0]][step.start : step.stop]]
                run_decoder(self._decoder, self._pack(own, start=step.start, cache=cache, multiple=1).batch)
                yield from self.run(step.branches, cache)
            else:
                own = [self._rows[index][step.start :] for index in step.prompts]
                packed = self._pack(own, start=step.start, cache=cache, ordered=True)
                run_decoder(self._decoder, packed.batch)
                before = np.arange(step.start)
                places = [np.concatenate([before, step.start + after]) for after in packed.places]
                yield _Filled(step.prompts, places, cache)


def _empty(cache: DynamicCache, rows: int, width: int) -> DynamicCache:
    """A cache of zeros for padded rows, with the layers of another cache."""
    new = continued(cache)
    for layer in _filled_layers(new):
        layer.keys, layer.values = (
            states.new_zeros(rows, states.shape[1], width, states.shape[3]) for states in (layer.keys, layer.values)
        )
    return new


def _copy(filled: _Filled, padded: DynamicCache, width: int) -> None:
    """Copy keys and values of some prompts to the end of their padded rows."""
    source = np.concatenate(filled.places)
    row = np.repeat(filled.prompts, [len(own) for own in filled.places])
    column = np.concatenate([np.arange(width - len(own), width) for own in filled.places])
    indices: dict[torch.device, list[Tensor]] = {}
    for states, into in zip(_tensors(filled.cache), _tensors(padded), strict=True):
        if states.device not in indices:
            indices[states.device] = [send(index, states.device) for index in (source, row, column)]
        taken, rows, columns = indices[states.device]
        into[rows, :, columns] = states[0].index_select(1, taken).transpose(0, 1)  # (tokens, heads, size)


def _tensors(cache: DynamicCache) -> list[Tensor]:
    """Keys and values of the filled layers, `(rows, heads, tokens, size)` each."""
    return [states for layer in _filled_layers(cache) for states in (layer.keys, layer.values)]


def _filled_layers(cache: DynamicCache) -> list[Any]:
    """The layers of a cache that hold keys and values; a block without attention leaves its layer empty."""
    return [layer for layer in cast("list[Any]", cache.layers) if layer.keys is not None]
