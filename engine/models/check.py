"""The load check: verify the assumptions that captures make about a model.

The check runs a few tokens and compares the output of each block with the input of the next and with the hidden states
that the model reports. A model that fails is refused with the reason, never worked around.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError
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
    examine_sharing,
    moved,
    onednn_error,
    read_all,
)
from engine.models.structure import Blocks, find_blocks
from engine.models.sublayers import SublayerSearch
from engine.records.models import Receipt
from engine.remedies import Remedy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How far padding and batching may move a token's state, relative to its norm. Matrix products of another shape sum in
# another order, and rounding amplifies the difference over the depth.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_PROMPT_LENGTHS = (11, 8)
_SHARED = 4  # length of their shared prefix


@dataclass
class _Trace:
    """The inputs and outputs of blocks and final norm in one full forward pass.

    Other hooks count as part of their module: inputs are recorded before them, outputs after them.
    """

    order: list[int] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    norm_input: Tensor | None = None
    norm_output: Tensor | None = None
    sublayers: SublayerSearch = field(default_factory=SublayerSearch)
    reported: Any = None


def check_model(model: PreTrainedModel) -> Receipt:
    """Verify on a few tokens the assumptions that every capture makes.

    - Each block runs once, in order, and outputs the residual stream, `(batch, sequence, hidden)`. The next block
      receives exactly that, and the model reports it as `hidden_states[i + 1]`.
    - The final norm turns the last block's output into the final hidden state.
    - The decoder alone gives the same states as the whole model.
    - A token's state in a padded batch is the same as in a batch of one.

    The check also finds the modules whose outputs are the attention output and the MLP output, and measures which
    shortcuts the model and the machine allow. A model without such modules is not refused, but lacks these sites.

    If code was added to the model (`find_alterations`), its reported hidden states may predate that code and are not
    compared, and prompts run one at a time.

    Args:
        model: Any transformers causal language model.

    Returns:
        The measurements.

    Raises:
        ModelError: An assumption does not hold. The message says which.
    """
    blocks, added = find_blocks(model), find_alterations(model)
    prompts, device = _token_ids(model), input_device(model)
    trace = _trace(model, blocks, TokenBatch.of([prompts[0]], device), report=not added)
    broken = _broken_promise(blocks, trace, len(prompts[0]))
    if broken:
        raise _refusal(model, broken)
    if (layer := _zero_layer(trace)) is not None:
        raise _refusal(model, f"block {layer} outputs 0 for every token", "blocks whose outputs are not 0")
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
    receipt["separate"], dense = examine_sharing(model, blocks, prompts, alone, tolerance)
    if dense:
        receipt["dense_mask"] = True
    if autocast_dtype(model) is None:
        receipt["onednn_error"] = onednn_error(model, blocks, batch, together)
    return receipt


def _tolerance(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Return the tolerance of the compute dtype.

    Under autocast it differs from the dtype of the states.
    """
    autocast = autocast_dtype(model)
    return max(TOLERANCE[dtype], TOLERANCE[getattr(torch, autocast)] if autocast else 0.0)


def _require_same_as_whole(
    model: PreTrainedModel, blocks: Blocks, ids: list[int], alone: States, tolerance: float, *, altered: bool
) -> None:
    """Refuse a model that does not pass its tokens unchanged to its decoder.

    A capture runs only the decoder.

    Raises:
        ModelError: The states differ by more than summation order explains.
    """
    if is_offloaded(model) and not altered and type(model).__module__.startswith("transformers."):
        return  # for a model class of transformers, another forward pass with offloaded weights is not worth it
    whole = read_all(model, blocks, TokenBatch.of([ids], input_device(model)), whole=True)
    for layer, states in alone.items():
        if whole[layer].shape != states.shape:
            raise _refusal(model, f"its decoder receives {len(whole[layer])} tokens for a prompt of {len(states)}")
        error = float(moved(whole[layer], states).median())
        if not error <= tolerance:
            raise _refusal(model, f"the whole model and its decoder differ at layer {layer} by {error:.2g} of the norm")


def _token_ids(model: PreTrainedModel) -> list[list[int]]:
    """Draw two seeded prompts of different lengths with a shared prefix.

    Ids come from the lower half of the vocabulary.
    """
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
        if report:
            trace.reported = run_decoder(blocks.decoder, batch, output_hidden_states=True)
        else:
            run_decoder(blocks.decoder, batch)
    return trace


def _broken_promise(blocks: Blocks, trace: _Trace, tokens: int) -> str:
    """Describe the first assumption that fails; empty if all hold.

    States are compared bit for bit.
    """
    n = len(blocks.blocks)
    if trace.order != list(range(n)):
        return f"its blocks do not each run once, in order: {trace.order}"
    shape = (1, tokens, trace.outputs[-1].shape[-1])
    for layer, states in enumerate(trace.outputs):
        if states.shape != shape:
            return f"the output of block {layer} has shape {tuple(states.shape)}, expected {shape}"
        if not torch.isfinite(states).all():
            return f"the output of block {layer} contains non-finite values"
        if layer + 1 < n and not _equal(trace.inputs[layer + 1], states):
            return f"the output of block {layer} is not the input of block {layer + 1}"
    if trace.inputs[0].shape != shape:
        return f"the input of block 0 has shape {tuple(trace.inputs[0].shape)}, expected {shape}"
    if trace.reported is None:
        return ""
    reported = trace.reported.hidden_states
    for layer in range(n - 1):
        if not _equal(reported[layer + blocks.first_state], trace.outputs[layer]):
            return f"the output of block {layer} is not the hidden state that the model reports for it"
    final = trace.outputs[-1]
    if blocks.final_norm is not None:
        if trace.norm_input is None or trace.norm_output is None or not _equal(trace.norm_input, final):
            return "the output of the last block is not the input of the final norm"
        final = trace.norm_output
    if blocks.final_projection is not None:
        final = blocks.final_projection(final)
    if not _equal(trace.reported.last_hidden_state, final):
        return "the last block's output, after the final norm, is not the final hidden state that the model reports"
    return ""


def _zero_layer(trace: _Trace) -> int | None:
    """Return the first block that outputs only zeros; a distance relative to its norm has no value."""
    return next((layer for layer, states in enumerate(trace.outputs) if not states.any()), None)


def _batched_error(alone: list[States], together: States) -> float:
    """Return the largest effect of padding and batching over prompts and layers.

    The error of a prompt is the median over its tokens of |batched - alone| / |alone|. The median ignores a single
    token that a mixture of experts in half precision routes differently on a tie, while a padding error affects all
    tokens of a prompt.
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


def _refusal(
    model: PreTrainedModel,
    promise: str,
    expected: str = "deterministic code, and blocks that each output the residual stream",
) -> ModelError:
    added = find_alterations(model)
    if added:
        return ModelError(
            f"{type(model).__name__} fails the check with the code added to it: {promise}",
            expected=expected,
            next_step=f"remove the added code: {added[0]}",
        )
    return ModelError(
        f"{type(model).__name__} fails the load check: {promise}",
        expected="blocks that each output the residual stream, and states that padding does not change",
        next_step=Remedy.LOAD_IN_FLOAT32
        if model.dtype.itemsize < torch.float32.itemsize
        else "choose a model from another family: one that fails the check cannot be captured",
    )
