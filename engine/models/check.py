"""The check at load: does this model keep the promises that a capture relies on?

Runs a few tokens and compares what the blocks put out with what they pass on and with what the model itself reports.
Knows no prompts and no tokenizer; a model that fails is refused with the reason, never worked around.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError, Remedy
from engine.models.alterations import autocast_dtype, find_alterations
from engine.models.forward import (
    TokenBatch,
    evaluating,
    input_device,
    residual,
    run_decoder,
    taken_in,
    without_report_hooks,
)
from engine.models.offload import all_fetched, is_offloaded
from engine.models.shortcuts import (
    States,
    attention_window,
    moved,
    onednn_error,
    read_all,
    why_not_shared,
)
from engine.models.structure import Blocks, find_blocks
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
    """What the blocks and the final norm were given and what they put out in one whole forward pass.

    Hooks of others count with the part that they are on: inputs are those before its hooks, outputs those behind them.
    """

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
    final hidden state; the decoder alone gives the states that the whole model gives; and a token's state in a padded
    batch is what it is on its own. What attention and feed-forward add to the stream is looked for on the way: a model
    without it is not refused, but has no such sites. So are the shortcuts that model and machine allow.

    Where code was added to the model (`find_alterations`), its report may show the states before that code and is not
    compared, and prompts are run one at a time.

    Args:
        model: Any causal language model of transformers.

    Returns:
        What was measured.

    Raises:
        ModelError: A promise does not hold; the message says which.
    """
    blocks, added = find_blocks(model), find_alterations(model)
    prompts, device = _token_ids(model), input_device(model)
    trace = _trace(model, blocks, TokenBatch.of([prompts[0]], device), report=not added)
    broken = _broken_promise(blocks, trace, len(prompts[0]))
    if broken:
        raise _refusal(model, broken)
    states = trace.outputs[-1]
    tolerance = _tolerance(model, states.dtype)
    alone = [read_all(model, blocks, TokenBatch.of([ids], device)) for ids in prompts]
    _require_same_as_whole(model, blocks, prompts[0], alone[0], tolerance, altered=bool(added))
    sublayers = trace.sublayers.found()
    receipt = Receipt(
        blocks=blocks.path,
        final_norm=blocks.final_norm_path,
        attn_out=sublayers.attention,
        mlp_out=sublayers.feed_forward,
        num_layers=len(blocks.blocks),
        hidden_size=states.shape[-1],
        batched_error=0.0,
        tolerance=tolerance,
        dtype=str(states.dtype).removeprefix("torch."),
        separate="code was added to it",
        window=attention_window(model.config),
        onednn_error=None,
    )
    if added:
        return receipt
    batch = TokenBatch.of(prompts, device)
    together = read_all(model, blocks, batch)
    receipt["batched_error"] = _batched_error(alone, together)
    if not receipt["batched_error"] <= tolerance:
        raise _refusal(
            model, f"padding and batching change a token's state by {receipt['batched_error']:.2g} of its norm"
        )
    receipt["separate"] = why_not_shared(model, blocks, prompts, alone, tolerance)
    if autocast_dtype(model) is None:
        receipt["onednn_error"] = onednn_error(model, blocks, batch, together)
    return receipt


def _tolerance(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """How far a state may move: that of the dtype that is computed in, which under autocast is not the states' own."""
    autocast = autocast_dtype(model)
    return max(TOLERANCE[dtype], TOLERANCE[getattr(torch, autocast)] if autocast else 0.0)


def _require_same_as_whole(
    model: PreTrainedModel, blocks: Blocks, ids: list[int], alone: States, tolerance: float, *, altered: bool
) -> None:
    """Refuse a model that gives its decoder something else than the tokens: what is captured is the decoder alone.

    Raises:
        ModelError: The states differ by more than another order of summation makes.
    """
    if is_offloaded(model) and not altered and type(model).__module__.startswith("transformers."):
        return  # one of the library's own models: not worth another pass over weights on the disk
    whole = read_all(model, blocks, TokenBatch.of([ids], input_device(model)), whole=True)
    for layer, states in alone.items():
        if whole[layer].shape != states.shape:
            raise _refusal(model, f"its decoder is given {len(whole[layer])} tokens for a prompt of {len(states)}")
        error = float(moved(whole[layer], states).median())
        if not error <= tolerance:
            raise _refusal(model, f"the whole model and its decoder differ at layer {layer} by {error:.2g} of the norm")


def _token_ids(model: PreTrainedModel) -> list[list[int]]:
    """Prompts of different lengths that begin alike, drawn from the low half of the vocabulary, reproducibly."""
    generator = torch.Generator().manual_seed(0)
    half = model.config.get_text_config(decoder=True).vocab_size // 2
    one, other = (torch.randint(3, max(half, 4), (n,), generator=generator).tolist() for n in _PROMPT_LENGTHS)
    return [one, one[:_SHARED] + other[_SHARED:]]


def _trace(model: PreTrainedModel, blocks: Blocks, batch: TokenBatch, *, report: bool) -> _Trace:
    trace, own = _Trace(), get_ident()

    def watch_input(layer: int) -> Any:  # noqa: ANN401 - torch's own signature
        def hook(_module: nn.Module, args: Any, kwargs: Any = None) -> None:  # noqa: ANN401
            if get_ident() == own:
                trace.order.append(layer)
                trace.inputs.append(taken_in(args, kwargs).clone())

        return hook

    def watch_output(_module: nn.Module, _args: Any, output: Any) -> None:  # noqa: ANN401 - torch's own signature
        if get_ident() == own:
            trace.outputs.append(residual(output).clone())

    def watch_norm_input(_module: nn.Module, args: Any) -> None:  # noqa: ANN401 - torch's own signature
        if get_ident() == own:
            trace.norm_input = args[0].clone()

    def watch_norm_output(_module: nn.Module, _args: Any, output: Any) -> None:  # noqa: ANN401 - torch's own signature
        if get_ident() == own:
            trace.norm_output = output.clone()

    with evaluating(model, blocks.decoder), without_report_hooks(model), all_fetched(model), ExitStack() as stack:
        for layer, block in enumerate(blocks.blocks):
            before = block.register_forward_pre_hook(watch_input(layer), prepend=True, with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(block.register_forward_hook(watch_output).remove)
            for hook in trace.sublayers.watch(block):
                stack.callback(hook.remove)
        if blocks.final_norm is not None:
            stack.callback(blocks.final_norm.register_forward_pre_hook(watch_norm_input, prepend=True).remove)
            stack.callback(blocks.final_norm.register_forward_hook(watch_norm_output).remove)
        reported = run_decoder(blocks.decoder, batch, **({"output_hidden_states": True} if report else {}))
        trace.reported = reported if report else None
    return trace


def _broken_promise(blocks: Blocks, trace: _Trace, tokens: int) -> str:
    """What does not hold, in words; empty when all does. Equal means to the bit: these are the same tensors."""
    n = len(blocks.blocks)
    if trace.order != list(range(n)):
        return f"its blocks do not run once each and in order: {trace.order}"
    shape = (1, tokens, trace.outputs[-1].shape[-1])
    for layer, states in enumerate(trace.outputs):
        if states.shape != shape:
            return f"block {layer} puts out shape {tuple(states.shape)}; expected {shape}"
        if not torch.isfinite(states).all():
            return f"block {layer} puts out values that are not finite"
        if layer + 1 < n and not _equal(trace.inputs[layer + 1], states):
            return f"what block {layer} puts out is not what block {layer + 1} takes in"
    if trace.inputs[0].shape != shape:
        return f"block 0 takes in shape {tuple(trace.inputs[0].shape)}; expected {shape}"
    if trace.reported is None:
        return ""
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
    added = find_alterations(model)
    if added:
        return ModelError(
            f"{type(model).__name__} fails the check, with code that was added to it: {promise}",
            expected="code that does the same each time, and blocks that each put out the residual stream",
            next_step=f"remove what was added: {added[0]}",
        )
    return ModelError(
        f"{type(model).__name__} fails the check at load: {promise}",
        expected="blocks that each put out the residual stream, and states that padding does not change",
        next_step=Remedy.LOAD_IN_FLOAT32
        if model.dtype.itemsize < torch.float32.itemsize
        else "choose a model of another family; what cannot be checked is not captured",
    )
