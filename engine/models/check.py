"""The check at load: does this model keep the promises that a capture relies on?

Runs a few tokens and compares what the blocks put out with what they pass on and with what the model itself reports.
Knows no prompts and no tokenizer; a model that fails is refused with the reason, never worked around.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError, Remedy
from engine.models.blocks import Blocks, find_blocks
from engine.models.forward import TokenBatch, input_device, left_as_found, residual, run_decoder, taken_in
from engine.models.offload import all_fetched
from engine.models.shortcuts import (
    States,
    attention_window,
    copy_states,
    moved,
    onednn_error,
    read_all,
    why_not_shared,
)
from engine.models.sublayers import SublayerSearch
from engine.records.models import Receipt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How far the state of a token may move when its prompt is padded and batched, relative to the norm of the state. Matrix
# products of another shape add up in another order; the rest is what rounding makes of that over the depth.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_PROMPT_LENGTHS = (11, 8)
_SHARED = 4  # tokens that both begin with


@dataclass
class _Trace:
    """What went in and out of the blocks and the final norm in one whole forward pass."""

    order: list[int] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    norm_input: Tensor | None = None
    norm_output: Tensor | None = None
    sublayers: SublayerSearch = field(default_factory=SublayerSearch)
    reported: Any = None


def check_model(model: PreTrainedModel) -> Receipt:
    """Verify on a few tokens what every capture takes for granted.

    Each block runs once, in order, and puts out the residual stream, `(batch, sequence, hidden)`, that the next block
    takes in and that the model reports as `hidden_states[i + 1]`; the last one is what the final norm turns into the
    final hidden state; and a token's state in a padded batch is what it is on its own. What attention and feed-forward
    add to the stream is looked for on the way: a model without it is not refused, but has no such sites. So are the
    shortcuts that model and machine allow.

    Args:
        model: Any causal language model of transformers.

    Returns:
        What was measured.

    Raises:
        ModelError: A promise does not hold; the message says which.
    """
    blocks = find_blocks(model)
    prompts, device = _token_ids(model), input_device(model)
    trace = _trace(model, blocks, TokenBatch.of([prompts[0]], device))
    broken = _broken_promise(blocks, trace, len(prompts[0]))
    if broken:
        raise _refusal(model, broken)
    states = trace.outputs[-1]
    alone = [
        {layer: copy_states(output) for layer, output in enumerate(trace.outputs)},
        read_all(model, blocks, TokenBatch.of([prompts[1]], device)),
    ]
    batch = TokenBatch.of(prompts, device)
    together = read_all(model, blocks, batch)
    batched_error, tolerance = _batched_error(alone, together), TOLERANCE[states.dtype]
    if not batched_error <= tolerance:
        raise _refusal(model, f"padding and batching change a token's state by {batched_error:.2g} of its norm")
    sublayers = trace.sublayers.found()
    return Receipt(
        blocks=blocks.path,
        final_norm=blocks.final_norm_path,
        attn_out=sublayers.attention,
        mlp_out=sublayers.feed_forward,
        num_layers=len(blocks.blocks),
        hidden_size=states.shape[-1],
        batched_error=batched_error,
        tolerance=tolerance,
        dtype=str(states.dtype).removeprefix("torch."),
        separate=why_not_shared(model, blocks, prompts, alone, tolerance),
        window=attention_window(model.config),
        onednn_error=onednn_error(model, blocks, batch, together),
    )


def _token_ids(model: PreTrainedModel) -> list[list[int]]:
    """Prompts of different lengths that begin alike, drawn from the low half of the vocabulary, reproducibly."""
    generator = torch.Generator().manual_seed(0)
    half = model.config.get_text_config(decoder=True).vocab_size // 2
    one, other = (torch.randint(3, max(half, 4), (n,), generator=generator).tolist() for n in _PROMPT_LENGTHS)
    return [one, one[:_SHARED] + other[_SHARED:]]


def _trace(model: PreTrainedModel, blocks: Blocks, batch: TokenBatch) -> _Trace:
    trace = _Trace()

    def watch(layer: int) -> Any:  # noqa: ANN401 - torch's own signature
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
            trace.order.append(layer)
            trace.inputs.append(taken_in(args, kwargs).clone())
            trace.outputs.append(residual(output).clone())

        return hook

    def watch_norm(_module: nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401 - torch's own signature
        trace.norm_input, trace.norm_output = args[0].clone(), output.clone()

    with left_as_found(model), all_fetched(model), ExitStack() as stack:
        for layer, block in enumerate(blocks.blocks):
            stack.callback(block.register_forward_hook(watch(layer), with_kwargs=True).remove)
            for hook in trace.sublayers.watch(block):
                stack.callback(hook.remove)
        if blocks.final_norm is not None:
            stack.callback(blocks.final_norm.register_forward_hook(watch_norm).remove)
        trace.reported = run_decoder(model, blocks, batch)
    return trace


def _broken_promise(blocks: Blocks, trace: _Trace, tokens: int) -> str:
    """What does not hold, in words; empty when all does. Equal means to the bit: these are the same tensors."""
    n = len(blocks.blocks)
    if trace.order != list(range(n)):
        return f"its blocks do not run once each and in order: {trace.order}"
    shape = (1, tokens, trace.outputs[-1].shape[-1])
    for layer, states in enumerate(trace.outputs):
        if states.shape != shape or not torch.isfinite(states).all():
            return (
                f"block {layer} puts out shape {tuple(states.shape)}, or values that are not finite; expected {shape}"
            )
        if layer + 1 < n and not _equal(trace.inputs[layer + 1], states):
            return f"what block {layer} puts out is not what block {layer + 1} takes in"
    if trace.inputs[0].shape != shape:
        return f"block 0 takes in shape {tuple(trace.inputs[0].shape)}; expected {shape}"
    reported = trace.reported.hidden_states
    for layer in range(n - 1):
        if not _equal(reported[layer + blocks.first_state], trace.outputs[layer]):
            return f"what block {layer} puts out is not the hidden state that the model reports for it"
    final = trace.outputs[-1]
    if blocks.final_norm is not None:
        if trace.norm_input is None or trace.norm_output is None or not _equal(trace.norm_input, final):
            return "what the last block puts out is not what the final norm takes in"
        final = trace.norm_output
    if blocks.final_projection is not None:
        final = blocks.final_projection(final)
    if not _equal(trace.reported.last_hidden_state, final):
        return "the last block and the final norm do not lead to the final hidden state"
    return ""


def _batched_error(alone: list[States], together: States) -> float:
    """Largest error over layers: for each prompt, the median over its tokens of |batched - alone| / |alone|.

    The median, because a mixture of experts in half precision may send one token elsewhere on a tie; what padding does
    wrong, it does to all tokens of a prompt.
    """
    width = max(len(states[0]) for states in alone)
    errors = [
        moved(together[layer][row * width :][: len(single)], single).median()
        for row, states in enumerate(alone)
        for layer, single in states.items()
    ]
    return float(torch.stack(errors).max())


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(other.device), other)


def _refusal(model: PreTrainedModel, promise: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} fails the check at load: {promise}",
        expected="blocks that each put out the residual stream, and states that padding does not change",
        next_step=Remedy.LOAD_IN_FLOAT32
        if model.dtype.itemsize < torch.float32.itemsize
        else "choose a model of another family; what cannot be checked is not captured",
    )
