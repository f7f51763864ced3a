"""Pack prompts with shared prefixes into one row, and check what models allow.

A packed row holds each shared prefix once. The attention mask lets a token see only the preceding tokens of its own
prompt. Whether a model respects such a mask, and whether oneDNN products are exact enough, is measured here.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.errors import first_line
from engine.models.attention import BATCHED_QUERIES, PackedMask, batches_blocks
from engine.models.devices import send
from engine.models.forward import TokenBatch, input_device, read_blocks
from engine.models.offload import each_module, runs_on_cpu
from engine.models.products import onednn_possible, onednn_products, product_error
from engine.models.token_tree import TokenTree

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

    from engine.models.structure import Blocks


class Packed(NamedTuple):
    """Prompts packed into one row.

    Attributes:
        batch: The row, with its mask and token positions.
        places: For each prompt, the indices of its tokens in the row.
    """

    batch: TokenBatch
    places: list[np.ndarray]


def pack_prompts(
    rows: Sequence[Sequence[int]],
    device: torch.device,
    dtype: torch.dtype,
    *,
    start: int = 0,
    cache: DynamicCache | None = None,
    groups: int = 1,
    multiple: int | None = None,
    fixed_shape: bool = False,
    ordered: bool = False,
) -> Packed:
    """Pack prompts into one row that holds each shared prefix once.

    Args:
        rows: Token ids of each prompt, from `start` on; at least one each.
        device: Device of the row.
        dtype: Dtype of the model, used for the mask.
        start: Number of preceding tokens, which are the same in all prompts.
        cache: Keys and values of those tokens.
        groups: Number of heads that share keys and values, from `head_groups`.
        multiple: Length to a multiple of which the row is padded; None for what attention on the device needs.
        fixed_shape: Whether to give rows of equal length masks of few different shapes, for compiled code.
        ordered: Whether the prompts are known to be in lexicographic order, which saves time.

    Returns:
        The row, and the indices of each prompt's tokens in it.

    Example:
        >>> packed = pack_prompts([[5, 6, 7], [5, 6, 8, 9]], torch.device("cpu"), torch.float32)
        >>> packed.batch.input_ids.tolist(), [places.tolist() for places in packed.places]
        ([[5, 6, 7, 8, 9]], [[0, 1, 2], [0, 1, 3, 4]])
    """
    tree = TokenTree.of(rows, ordered=ordered).padded(multiple or (BATCHED_QUERIES if batches_blocks(device) else 1))
    batch = TokenBatch(
        send(tree.ids[None].astype(np.int64), device),
        PackedMask.of(tree.ends, device, dtype, cached=start, groups=groups, fixed_shape=fixed_shape),
        send(start + tree.depths[None], device),
        cache,
        fixed_shape,
    )
    return Packed(batch, tree.places)


def packer(model: PreTrainedModel, blocks: Blocks) -> Callable[..., Packed]:
    """Return `pack_prompts` for a model: with its device, its dtype and its groups of heads."""
    return partial(pack_prompts, device=input_device(model), dtype=model.dtype, groups=head_groups(blocks))


def head_groups(blocks: Blocks) -> int:
    """Number of heads of queries for which transformers repeats each head of keys and values; 1 if layers differ."""
    found: set[int] = {getattr(module, "num_key_value_groups", 0) for module in each_module(blocks.blocks)} - {0}
    return next(iter(found)) if len(found) == 1 else 1


def continued(cache: DynamicCache | None) -> DynamicCache:
    """Return a cache that continues another without changing it; empty for None.

    No tensor is copied: a cache grows by replacing its tensors with longer ones.
    """
    from transformers import DynamicCache

    if cache is None:
        return DynamicCache()
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


ONEDNN_TOLERANCE = 1e-4
"""Maximum error of the median token's state through oneDNN, relative to its norm, against PyTorch's default products:
thirty times the effect of summation order, a thirtieth of the effect of rounding to bfloat16."""

# Attention implementations that add a mask to their scores. Others may read past its end.
_TAKE_MASKS = ("sdpa", "eager")

# Names of the attention window in configs.
_WINDOWS = (
    *("sliding_window", "sliding_window_size", "sliding_window_len", "window_size", "attention_window_size"),
    *("attention_chunk_size", "local_attention", "index_topk", "keep_window_size"),
)

States = dict[int, Tensor]
"""Layer to token states, `(tokens, hidden)`, float64 on the CPU."""


def attention_window(config: PreTrainedConfig) -> int | None:
    """Return the longest prompt in which every token sees all preceding ones.

    Returns None if there is no limit.
    """
    text = config.get_text_config(decoder=True)
    found = [value for name in _WINDOWS if isinstance(value := getattr(text, name, None), int) and value > 0]
    return min(found, default=None)


def attention_name(config: PreTrainedConfig) -> str:
    """Return the name of the attention implementation that a model uses, without a prefix like `paged|`."""
    return str(config.get_text_config(decoder=True)._attn_implementation).rpartition("|")[2]


class Sharing(NamedTuple):
    """Whether a model supports prefix sharing.

    Attributes:
        refused: Why it does not; empty if it does.
        dense_mask: Whether its attention needs the mask of packed prompts as an ordinary tensor.
    """

    refused: str
    dense_mask: bool = False


def examine_sharing(
    model: PreTrainedModel, blocks: Blocks, prompts: Sequence[list[int]], alone: Sequence[States], tolerance: float
) -> Sharing:
    """Find out whether a model supports prefix sharing.

    The prompts run twice: packed into one row, and packed after the cached keys and values of their shared prefix.

    Args:
        model: A model that passes the other checks.
        blocks: Its blocks, from `find_blocks`.
        prompts: Token ids of prompts with a shared prefix.
        alone: The states of each prompt run alone.
        tolerance: How far a state may move, relative to its norm.
    """
    window = attention_window(model.config)
    attention = attention_name(model.config)
    if attention not in _TAKE_MASKS:
        return Sharing(f"its attention implementation, {attention}, is not known to accept an additive mask")
    if "position_ids" not in inspect.signature(blocks.decoder.forward).parameters:
        return Sharing("it does not accept position ids")
    if window is not None and window < max(map(len, prompts)):
        return Sharing(f"its attention window is only {window} tokens")
    # A layer with an attention window acts like full attention on prompts that fit into the window.
    others = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or []) - {"full_attention"}
    if window is not None:
        others -= {"sliding_attention", "chunked_attention"}
    if others:
        return Sharing(f"it has layers of type {', '.join(sorted(others))}")
    try:
        errors, dense = zip(*(_run_packed(model, blocks, prompts, alone, start) for start in (0, 3)), strict=True)
    except Exception as refusal:  # a family may reject the mask or the cache with any exception
        why = f"{type(refusal).__name__}: {first_line(refusal)}"
        return Sharing(f"its attention does not accept the mask or cache ({why})")
    error = float(torch.tensor(errors).max())  # unlike the built-in max, it propagates NaN
    if not error <= tolerance:
        return Sharing(f"prefix sharing changes a token's state by {error:.2g} of its norm")
    return Sharing("", any(dense))


def _run_packed(
    model: PreTrainedModel, blocks: Blocks, prompts: Sequence[list[int]], alone: Sequence[States], start: int
) -> tuple[list[float], bool]:
    """Run the prompts packed.

    Returns:
        The median error outside the shared prefix, per prompt and layer, and whether the mask was needed as an ordinary
        tensor. The median ignores a single token that a mixture of experts routes differently on a tie.
    """
    device, cache = input_device(model), continued(None) if start else None
    if start:
        read_all(model, blocks, TokenBatch.of([prompts[0][:start]], device, cache))
    rest = [ids[start:] for ids in prompts]
    batch, places = pack_prompts(rest, device, model.dtype, start=start, cache=cache, groups=head_groups(blocks))
    states = read_all(model, blocks, batch)
    own = len(np.intersect1d(places[0], places[1]))
    errors = [
        float(moved(states[layer][where[own:]], single[start + own :]).median())
        for where, one in zip(places, alone, strict=True)
        for layer, single in one.items()
    ]
    return errors, isinstance(batch.attention_mask, PackedMask) and batch.attention_mask.was_dense


def onednn_error(model: PreTrainedModel, blocks: Blocks, batch: TokenBatch, states: States) -> float | None:
    """Measure how far oneDNN moves the median token's state, relative to its norm.

    The median is used because rounding moves a token with a massive activation further.

    Args:
        model: A model that passes the other checks.
        blocks: Its blocks, from `find_blocks`.
        batch: A few tokens.
        states: Their states through PyTorch's default products.

    Returns:
        The largest error over layers, or the error of a single product of many tokens if that is larger, because a few
        tokens do not show whether oneDNN rounds large products. None if products cannot go through oneDNN.
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
    """Read the states of all tokens after every block.

    Args:
        model: The model.
        blocks: Its blocks, from `find_blocks`.
        batch: The tokens.
        whole: Run the whole model's `forward` instead of only the decoder's.
        onednn: Send float32 products through oneDNN.
    """
    layers = range(len(blocks.blocks))
    with onednn_products(wanted=onednn):
        return read_blocks(model, blocks, batch, layers, _copied, run=model if whole else None)


def _copied(states: Tensor) -> Tensor:
    """Copy states to the CPU in float64, one row per token.

    The shape changes from `(batch, sequence, hidden)` to `(batch x sequence, hidden)`.
    """
    return states.flatten(0, 1).to("cpu", torch.float64, copy=True)


def moved(states: Tensor, expected: Tensor) -> Tensor:
    """Return each token's distance from its expected state, relative to its norm."""
    distance: Tensor = (states - expected).norm(dim=-1) / expected.norm(dim=-1)
    return distance
