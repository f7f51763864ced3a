"""Run a decoder's forward pass and read inputs and outputs of its modules.

Both capture modes and the load check use these functions. Captures of one model take turns. A hook acts only in the
thread that registered it, so another thread's forward pass is neither captured nor stopped. The model is always
restored, even after an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock, RLock, get_ident
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import CaptureError, ModelError
from engine.models.devices import send
from engine.models.offload import each_module
from engine.models.thread_hooks import told_boundary

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import DynamicCache, PreTrainedModel

    from engine.models.structure import Blocks

Kept = TypeVar("Kept")
Keep = Callable[[Tensor], Kept]  # (batch, sequence, hidden) -> what the caller keeps of it, copied

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Names of the cache among the arguments of decoders, the newest first."""

_MARK = "_output_capturing_hooks_installed"  # transformers' marker on modules with its hooks
REPORTS = "transformers.utils.output_capturing"
"""The module that defines the hooks for `output_hidden_states`."""


_turns: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_turns_lock = Lock()


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of one forward pass.

    Attributes:
        input_ids: Token ids, `(batch, sequence)`.
        attention_mask: 1 for a real token, 0 for padding, `(batch, sequence)`; or the `PackedMask` of packed prompts,
            `(1, 1, sequence, cached tokens + sequence)`.
        position_ids: Position of each token in its prompt, `(1, sequence)`.
        cache: Keys and values of the preceding tokens. The pass appends its own.
        fixed_shape: Whether the row has the length and mask for which blocks can be compiled.
        boundary: Number of tokens of the prompt, if the others respond to it; None if all tokens are the prompt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    cache: DynamicCache | None = None
    fixed_shape: bool = False
    boundary: int | None = None

    @classmethod
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        device: torch.device,
        cache: DynamicCache | None = None,
        boundary: int | None = None,
    ) -> TokenBatch:
        """Pad rows of token ids on the right.

        Causal attention and recurrences cannot see padding there.

        Args:
            rows: Token ids of each prompt, from its first token on.
            device: Device of the tensors.
            cache: An empty cache to fill.
            boundary: Number of tokens of the prompt in the only row; None if all tokens are prompts.
        """
        width = max(len(row) for row in rows)
        # Padding is never read, so any valid id works: not every tokenizer has a pad token.
        ids, mask = np.zeros((2, len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        positions = torch.arange(width, device=device)[None]
        return cls(send(ids, device), send(mask, device), positions, cache, boundary=boundary)


@dataclass(frozen=True)
class Tap:
    """A point at which states are read.

    Attributes:
        module: A module inside the decoder.
        before: Read its input instead of its output.
        repeats: Whether it may run more than once in a pass, like a final norm that also normalizes the embedding. The
            last run counts.
    """

    module: nn.Module
    before: bool = False
    repeats: bool = False


class _AllSeen(Exception):  # noqa: N818 - it ends a forward pass and is not an error
    """Raised in a hook to stop a forward pass once every tap has been read."""


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device for token ids.

    That is the device of the embedding, or of the first weight that is not offloaded.
    """
    weight = next(model.get_input_embeddings().parameters())
    if weight.device.type != "meta":
        return weight.device
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def turn_of(decoder: nn.Module) -> RLock:
    """Return the lock that a thread holds while it captures or checks this decoder.

    Args:
        decoder: The decoder from `find_blocks`, which two wrappers around one model share.
    """
    with _turns_lock:
        return _turns.setdefault(decoder, RLock())


def read_taps(
    model: PreTrainedModel,
    blocks: Blocks,
    batch: TokenBatch,
    taps: Mapping[int, Tap],
    keep: Keep[Kept],
    *,
    to_the_end: bool = False,
    run: nn.Module | None = None,
) -> dict[int, Kept]:
    """Run the decoder until every tap is read, and keep part of each tap's states.

    Args:
        model: The model that contains `blocks`.
        blocks: Its blocks, from `find_blocks`.
        batch: The tokens.
        taps: Layer to tap; at least one.
        keep: Function called inside the hook with the states, `(batch, sequence, hidden)`. It must copy: a view would
            keep the whole tensor in memory, and some blocks write into it later.
        to_the_end: Run the whole decoder even after every tap has been read.
        run: Module to run instead of the decoder, such as the whole model.

    Returns:
        Layer to the return value of `keep`.

    Raises:
        ModelError: The pass did not reach a tap.
        CaptureError: Another thread put the model into training mode during the pass.
    """
    kept: dict[int, Kept] = {}
    to_the_end = to_the_end or any(tap.repeats for tap in taps.values())

    def see(layer: int, states: Tensor) -> None:
        # Experts may output (batch x sequence, hidden).
        kept[layer] = keep(states.reshape(len(batch.input_ids), -1, states.shape[-1]))
        if len(kept) == len(taps) and not to_the_end:
            raise _AllSeen

    with evaluating(model, blocks.decoder), ExitStack() as stack:
        prompt = batch.input_ids.shape[1] if batch.boundary is None else batch.boundary
        stack.enter_context(told_boundary(blocks.decoder, prompt))
        for layer, tap in taps.items():
            stack.callback(_hook(tap, partial(see, layer)).remove)
        with suppress(_AllSeen):
            run_decoder(run or blocks.decoder, batch)
    if missing := sorted(taps.keys() - kept.keys()):
        raise ModelError(
            f"the forward pass of {type(model).__name__} did not reach layer {missing[0]}",
            expected="a model that calls each of its blocks as a module, which a compiled model may not",
            next_step="capture the model before compiling or modifying it",
        )
    return kept


def _hook(tap: Tap, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Hook a tap for this thread, after all existing hooks, which may change states."""
    owner = get_ident()
    if tap.before:
        # While a hook is being removed, another thread's pass may call it without the keyword arguments.
        def look_before(_module: nn.Module, args: Any, kwargs: Any = None) -> None:  # noqa: ANN401 - torch's signature
            if get_ident() == owner:
                see(taken_in(args, kwargs))

        return tap.module.register_forward_pre_hook(look_before, with_kwargs=True)

    def look_after(_module: nn.Module, _args: Any, output: Any) -> None:  # noqa: ANN401 - torch's own signature
        if get_ident() == owner:
            see(residual(output))

    return tap.module.register_forward_hook(look_after)


def stream_tap(blocks: Blocks, layer: int) -> Tap:
    """Return the tap for the residual stream after a block.

    That is the input of the next block, after all hooks.

    For the last block it is the input of the final norm, or the block's output if there is no final norm.
    """
    if layer + 1 < len(blocks.blocks):
        return Tap(blocks.blocks[layer + 1], before=True)
    if blocks.final_norm is not None:
        return Tap(blocks.final_norm, before=True, repeats=True)
    return Tap(blocks.blocks[layer])


def read_blocks(
    model: PreTrainedModel,
    blocks: Blocks,
    batch: TokenBatch,
    layers: Sequence[int],
    keep: Keep[Kept],
    *,
    run: nn.Module | None = None,
) -> dict[int, Kept]:
    """Call `read_taps` for the residual stream after these layers.

    The pass stops at the last of them.
    """
    return read_taps(model, blocks, batch, {layer: stream_tap(blocks, layer) for layer in layers}, keep, run=run)


def residual(output: Any) -> Tensor:  # noqa: ANN401 - a tensor, or in older blocks a tuple that starts with it
    """Return the residual stream from a block's output, `(batch, sequence, hidden)`."""
    return cast("Tensor", output[0] if isinstance(output, tuple | list) else output)


def taken_in(args: Any, kwargs: Any) -> Tensor:  # noqa: ANN401 - the arguments of any block
    """Return the residual stream from a block's arguments.

    Its shape is `(batch, sequence, hidden)`.
    """
    return cast("Tensor", args[0] if args else kwargs["hidden_states"])


def run_decoder(decoder: nn.Module, batch: TokenBatch, *, logits_at: Tensor | None = None, **options: bool) -> Any:  # noqa: ANN401 - a model output
    """Run a decoder, or a whole model, without gradients and return its model output.

    Args:
        decoder: The decoder from `find_blocks`, which computes no logits, or the model.
        batch: The tokens.
        logits_at: Indices of the tokens whose logits are needed; models that cannot choose compute all.
        options: Further arguments for the decoder, such as `output_hidden_states`.
    """
    accepted = inspect.signature(decoder.forward).parameters
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "position_ids" in accepted:
        inputs["position_ids"] = batch.position_ids
    if batch.cache is not None:
        inputs[cache_name(decoder.forward)] = batch.cache
    if logits_at is not None and "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = logits_at
    if "use_cache" in accepted:
        inputs["use_cache"] = batch.cache is not None
    with torch.no_grad():
        return decoder(**inputs, **options, return_dict=True)


def cache_name(function: Callable[..., Any]) -> str:
    """Name of the argument that takes the cache; transformers 5.24 renamed it.

    Args:
        function: A forward, or a function that prepares its arguments.
    """
    accepted = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in accepted), "past_key_values")


@contextmanager
def evaluating(model: PreTrainedModel, decoder: nn.Module) -> Iterator[None]:
    """Lock a model and put it into eval mode; restore the training modes on exit.

    Raises:
        CaptureError: Another thread put the model into training mode, so dropout may have changed the states.
    """
    with turn_of(decoder):
        modules = each_module(model)
        training = [module for module in modules if module.training]
        if training:
            model.eval()
        try:
            yield
            if any(module.training for module in modules):
                raise CaptureError(
                    "the model was put into training mode while it was captured",
                    expected="eval mode until the capture ends",
                    next_step="train and capture in turn, not in two threads at once",
                )
        finally:
            for module in training:
                module.training = True


@contextmanager
def without_report_hooks(model: PreTrainedModel) -> Iterator[None]:
    """Remove the hooks that transformers leaves after `output_hidden_states`.

    Hooks that were there before stay.

    Args:
        model: The model. Hooks from other packages stay.
    """
    found = {handle for module in model.modules() for handle in module._forward_hooks}
    marked = {module for module in model.modules() if _MARK in module.__dict__}
    try:
        yield
    finally:
        for module in model.modules():
            for handle, hook in list(module._forward_hooks.items()):
                if handle not in found and getattr(hook, "__module__", "") == REPORTS:
                    del module._forward_hooks[handle]
            if module not in marked:
                module.__dict__.pop(_MARK, None)
