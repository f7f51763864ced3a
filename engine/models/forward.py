"""One forward pass of a decoder, and the states that its parts take in and put out.

Both capture modes and the check at load run through here. Passes on one model take turns, and a hook acts only in the
thread that set it: a forward pass of another thread is neither captured nor stopped. The model is left as it was found,
whatever happens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from threading import Lock, RLock, get_ident
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from engine.errors import CaptureError, ModelError
from engine.models.attention import VisibleOnly

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import DynamicCache, PreTrainedModel

    from engine.models.structure import Blocks

Kept = TypeVar("Kept")
Keep = Callable[[Tensor], Kept]  # (batch, sequence, hidden) -> whatever the caller wants of it, copied

_MARK = "_output_capturing_hooks_installed"  # by which transformers knows where it left hooks
_REPORTS = "transformers.utils.output_capturing"  # where these hooks are defined

_turns: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_turns_lock = Lock()


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of one forward pass.

    Attributes:
        input_ids: Token ids, `(batch, sequence)`.
        attention_mask: 1 for a real token, `(batch, sequence)`; or what is added to the scores of attention, `(1, 1,
            sequence, tokens in the cache + sequence)`.
        position_ids: Where in its prompt each token is, `(1, sequence)`.
        cache: Keys and values of the tokens before these, to which the pass adds those of its own.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    cache: DynamicCache | None = None

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device, cache: DynamicCache | None = None) -> TokenBatch:
        """Pad rows of token ids on the right, where causal attention and recurrences cannot see the padding.

        Args:
            rows: Token ids of each prompt, from its beginning.
            device: Where they belong.
            cache: An empty one, to be filled.
        """
        width = max(len(row) for row in rows)
        # Padding is never read, so any id that the embedding knows will do: not every tokenizer has a pad token.
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return cls(ids.to(device), mask.to(device), torch.arange(width, device=device)[None], cache)


@dataclass(frozen=True)
class Tap:
    """A place where states are read.

    Attributes:
        module: A part of the decoder.
        before: Whether what it takes in is read, or what it puts out.
        repeats: Whether it may run more than once in a pass, as a final norm may that is the embedding's too; the last
            time counts.
    """

    module: nn.Module
    before: bool = False
    repeats: bool = False


class _AllSeen(Exception):  # noqa: N818 - it ends a forward pass, it reports no error
    """Raised in a hook to stop a forward pass once all that was wanted has been seen."""


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids belong: the device of the embedding, or of the first weight that is not offloaded."""
    weight = next(model.get_input_embeddings().parameters())
    if weight.device.type != "meta":
        return weight.device
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def turn_of(decoder: nn.Module) -> RLock:
    """The lock that a thread holds while it runs this decoder for a capture or a check.

    Args:
        decoder: Of `find_blocks`: two wrappers around one model share it.
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
    """Run the decoder until every tap has been read, and keep something of what is read there.

    Args:
        model: The model `blocks` was found in.
        blocks: Its parts.
        batch: The tokens.
        taps: Layer to where its states are read, at least one.
        keep: Called inside the hook with the states, `(batch, sequence, hidden)`. It must copy: a view would hold the
            whole tensor in memory, and some blocks write into it later.
        to_the_end: Run the whole decoder, even if every tap has been read before.
        run: What is given the tokens in place of the decoder: the model around it.

    Returns:
        Layer to what `keep` returned.

    Raises:
        ModelError: The pass did not reach a tap.
        CaptureError: Another thread put the model into training mode meanwhile.
    """
    kept: dict[int, Kept] = {}
    to_the_end = to_the_end or any(tap.repeats for tap in taps.values())

    def see(layer: int, states: Tensor) -> None:
        # Experts may put out (batch x sequence, hidden).
        kept[layer] = keep(states.reshape(len(batch.input_ids), -1, states.shape[-1]))
        if len(kept) == len(taps) and not to_the_end:
            raise _AllSeen

    with evaluating(model, blocks.decoder), ExitStack() as stack:
        for layer, tap in taps.items():
            stack.callback(_hook(tap, partial(see, layer)).remove)
        with suppress(_AllSeen):
            run_decoder(run or blocks.decoder, batch)
    if missing := sorted(taps.keys() - kept.keys()):
        raise ModelError(
            f"the forward pass of {type(model).__name__} did not reach layer {missing[0]}",
            expected="a model that calls each of its blocks as a module; a compiled one may not",
            next_step="capture the model before it is compiled or changed",
        )
    return kept


def _hook(tap: Tap, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Hook a tap for this thread's passes, behind the hooks that are there already: they may change the states."""
    owner = get_ident()
    if tap.before:
        # torch may call a hook that is being removed without the keyword arguments, in a pass of another thread.
        def look_before(_module: nn.Module, args: Any, kwargs: Any = None) -> None:  # noqa: ANN401 - torch's signature
            if get_ident() == owner:
                see(taken_in(args, kwargs))

        return tap.module.register_forward_pre_hook(look_before, with_kwargs=True)

    def look_after(_module: nn.Module, _args: Any, output: Any) -> None:  # noqa: ANN401 - torch's own signature
        if get_ident() == owner:
            see(residual(output))

    return tap.module.register_forward_hook(look_after)


def stream_tap(blocks: Blocks, layer: int) -> Tap:
    """Where the residual stream after a block is read: where the next block takes it in, behind all hooks.

    For the last block that is the final norm; where there is none, what the block puts out.
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
    """`read_taps` of the residual stream after blocks; it ends with the last of these layers."""
    return read_taps(model, blocks, batch, {layer: stream_tap(blocks, layer) for layer in layers}, keep, run=run)


def residual(output: Any) -> Tensor:  # noqa: ANN401 - a block returns a tensor, or in older code a tuple that begins with it
    """The residual stream in what a block returned, `(batch, sequence, hidden)`."""
    return cast("Tensor", output[0] if isinstance(output, tuple | list) else output)


def taken_in(args: Any, kwargs: Any) -> Tensor:  # noqa: ANN401 - whatever a block is called with
    """The residual stream in what a block was called with, `(batch, sequence, hidden)`."""
    return cast("Tensor", args[0] if args else kwargs["hidden_states"])


def run_decoder(decoder: nn.Module, batch: TokenBatch, **options: bool) -> Any:  # noqa: ANN401 - a model output
    """A forward pass of a decoder, as transformers returns it; no logits, no gradients.

    Args:
        decoder: Of `find_blocks`.
        batch: The tokens.
        options: More that the decoder is told, such as `output_hidden_states`.
    """
    accepted = inspect.signature(decoder.forward).parameters
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "position_ids" in accepted:
        inputs["position_ids"] = batch.position_ids
    if batch.cache is not None:
        inputs["past_key_values"] = batch.cache
    if "use_cache" in accepted:
        inputs["use_cache"] = batch.cache is not None
    packed = batch.attention_mask.dim() == 4
    with torch.no_grad(), VisibleOnly(batch.attention_mask) if packed else nullcontext():
        return decoder(**inputs, **options, return_dict=True)


@contextmanager
def evaluating(model: PreTrainedModel, decoder: nn.Module) -> Iterator[None]:
    """Take this thread's turn with a model, in eval mode; then put training modes back.

    Raises:
        CaptureError: Another thread put the model into training mode meanwhile: dropout may have changed the states.
    """
    with turn_of(decoder):
        training = [module for module in model.modules() if module.training]
        if training:
            model.eval()
        try:
            yield
            if any(module.training for module in decoder.modules()):
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
    """Remove the hooks that transformers leaves on a model after `output_hidden_states`, unless they were there before.

    Args:
        model: The model, of which hooks of other origin stay.
    """
    found = {handle for module in model.modules() for handle in module._forward_hooks}
    marked = {module for module in model.modules() if _MARK in module.__dict__}
    try:
        yield
    finally:
        for module in model.modules():
            for handle, hook in list(module._forward_hooks.items()):
                if handle not in found and getattr(hook, "__module__", "") == _REPORTS:
                    del module._forward_hooks[handle]
            if module not in marked:
                module.__dict__.pop(_MARK, None)
