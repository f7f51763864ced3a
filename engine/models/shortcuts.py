"""Which shortcuts a model and a machine allow: measured on a few tokens, used only where states come out the same.

Two shortcuts: prompts that share their beginning run it once (`engine.models.packing`), and float32 products go through
oneDNN (`engine.models.products`). A model that does not allow one is not refused; it is read the plain way.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors import first_line
from engine.models.forward import TokenBatch, input_device, read_blocks
from engine.models.packing import continued, pack_prompts
from engine.models.products import onednn_possible, onednn_products

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from engine.models.blocks import Blocks

ONEDNN_TOLERANCE = 1e-4
"""Largest error of a state, relative to its norm, that oneDNN may make next to PyTorch's own products."""

_SHARED = (5, 8, 11)  # tokens that a second prompt shares with the first, and the lengths of the two others
_TRUNK = 3
# How far back a token sees, by the names that configs have for it.
_WINDOWS = (
    *("sliding_window", "sliding_window_size", "sliding_window_len", "window_size", "attention_window_size"),
    *("attention_chunk_size", "local_attention", "index_topk", "keep_window_size"),
)

States = dict[int, Tensor]
"""Layer to the states of one prompt, `(tokens, hidden)`, float64 on the CPU."""


def attention_window(config: PreTrainedConfig) -> int | None:
    """The longest prompt in which every token sees all those before it; None where there is no limit."""
    text = config.get_text_config(decoder=True)
    found = [value for name in _WINDOWS if isinstance(value := getattr(text, name, None), int) and value > 0]
    return min(found, default=None)


def why_not_shared(model: PreTrainedModel, blocks: Blocks, tolerance: float) -> str:
    """Why prompts cannot share what they begin with; empty when they can.

    Three prompts with a common beginning are read one by one, then all in one row, then in one row that goes on from
    the keys and values of the beginning.

    Args:
        model: A model that keeps its other promises.
        blocks: Its parts.
        tolerance: How far a state may move, relative to its norm.
    """
    config = model.config.get_text_config(decoder=True)
    window = attention_window(model.config)
    if "position_ids" not in inspect.signature(blocks.decoder.forward).parameters:
        return "it cannot be told where in a prompt a token is"
    if window is not None and window < max(_SHARED):
        return f"its tokens see {window} tokens back"
    # A layer that sees no further back than its window is as good as any other for prompts that fit into it.
    others = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if window is not None:
        others -= {"sliding_attention", "chunked_attention"}
    if others:
        return f"it has layers of the kind {', '.join(sorted(others))}"
    first = _token_ids(model, max(_SHARED))
    prompts = [first, [*first[: _SHARED[0]], *first[: _SHARED[1] - _SHARED[0]]], [*first[:_TRUNK], *first[::-1][:4]]]
    layers = range(len(blocks.blocks))
    device, dtype = input_device(model), model.dtype
    try:
        alone = [read_blocks(model, blocks, TokenBatch.of([ids], device), layers, _copy_rows) for ids in prompts]
        packed = pack_prompts(prompts, device, dtype)
        whole = read_blocks(model, blocks, packed.batch, layers, _copy_rows)
        cache = continued(None)
        read_blocks(model, blocks, TokenBatch.of([first[:_TRUNK]], device, cache), layers, lambda _states: None)
        rest = pack_prompts([ids[_TRUNK:] for ids in prompts], device, dtype, start=_TRUNK, cache=continued(cache))
        after = read_blocks(model, blocks, rest.batch, layers, _copy_rows)
    except Exception as error:
        return f"its attention does not take such a mask or cache ({type(error).__name__}: {first_line(error)})"
    moved = max(
        max(_error(whole, packed.places[i], alone[i], 0), _error(after, rest.places[i], alone[i], _TRUNK))
        for i in range(len(prompts))
    )
    return "" if moved <= tolerance else f"it moves a token's state by {moved:.2g} of its norm"


def onednn_error(model: PreTrainedModel, blocks: Blocks) -> float | None:
    """Largest change of a state, relative to its norm, when products go through oneDNN; None where they cannot.

    Args:
        model: A model that keeps its promises.
        blocks: Its parts.
    """
    if model.dtype != torch.float32 or not onednn_possible():
        return None
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return None
    first = _token_ids(model, max(_SHARED))
    batch = TokenBatch.of([first[shift:] + first[:shift] for shift in range(8)], input_device(model))
    layers = range(len(blocks.blocks))
    before = read_blocks(model, blocks, batch, layers, _copy_rows)
    with onednn_products(wanted=True):
        after = read_blocks(model, blocks, batch, layers, _copy_rows)
    rows = list(range(batch.input_ids.numel()))
    return max(float(_moved(after[layer], before[layer][rows]).max()) for layer in layers)


def _token_ids(model: PreTrainedModel, count: int) -> list[int]:
    """Token ids from the low half of the vocabulary, reproducibly."""
    half = model.config.get_text_config(decoder=True).vocab_size // 2
    return torch.randint(3, max(half, 4), (count,), generator=torch.Generator().manual_seed(1)).tolist()


def _copy_rows(states: Tensor) -> Tensor:
    return states.flatten(0, 1).to("cpu", torch.float64, copy=True)


def _error(packed: States, places: list[int], alone: States, start: int) -> float:
    """Largest error over layers of the median token: a mixture of experts may send one elsewhere on a tie."""
    return max(float(_moved(packed[layer][places], states[start:]).median()) for layer, states in alone.items())


def _moved(states: Tensor, expected: Tensor) -> Tensor:
    moved: Tensor = (states - expected).norm(dim=-1) / expected.norm(dim=-1)
    return moved
