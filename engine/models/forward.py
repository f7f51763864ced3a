"""One forward pass of a decoder, and what its parts take in and put out.

Both capture modes and the check at load go through here. Knows token ids and modules; knows nothing of prompts,
positions, sites or what is done with the states. Leaves the model as it found it, whatever happens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from engine.models.attention import VisibleOnly

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import DynamicCache, PreTrainedModel

    from engine.models.blocks import Blocks

Kept = TypeVar("Kept")
Keep = Callable[[Tensor], Kept]  # (batch, sequence, hidden) -> whatever the caller wants of it, copied

_MARK = "_output_capturing_hooks_installed"  # by which transformers knows where it left hooks


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


def read_taps(
    model: PreTrainedModel, blocks: Blocks, batch: TokenBatch, taps: Mapping[int, Tap], keep: Keep[Kept]
) -> dict[int, Kept]:
    """Run the decoder until every tap has been read, and keep something of what is read there.

    Args:
        model: The model `blocks` was found in.
        blocks: Its parts.
        batch: The tokens.
        taps: Layer to where its states are read, at least one.
        keep: Called inside the hook with the states, `(batch, sequence, hidden)`. It must copy: a view would hold the
            whole tensor in memory, and some blocks write into it later.

    Returns:
        Layer to what `keep` returned.
    """
    kept: dict[int, Kept] = {}
    to_the_end = any(tap.repeats for tap in taps.values())

    def see(layer: int, states: Tensor) -> None:
        kept[layer] = keep(states.reshape(*batch.input_ids.shape, -1))  # experts may put out (batch x sequence, hidden)
        if len(kept) == len(taps) and not to_the_end:
            raise _AllSeen

    with left_as_found(model), ExitStack() as stack:
        for layer, tap in taps.items():
            stack.callback(_hook(tap, partial(see, layer)).remove)
        with suppress(_AllSeen):
            _run(blocks.decoder, batch)
    return kept


def _hook(tap: Tap, see: Callable[[Tensor], None]) -> RemovableHandle:
    if tap.before:
        return tap.module.register_forward_pre_hook(
            lambda _module, args, kwargs: see(taken_in(args, kwargs)), with_kwargs=True
        )
    return tap.module.register_forward_hook(lambda _module, _args, output: see(residual(output)))


def read_blocks(
    model: PreTrainedModel, blocks: Blocks, batch: TokenBatch, layers: Sequence[int], keep: Keep[Kept]
) -> dict[int, Kept]:
    """`read_taps` of the residual stream after blocks; it ends with the last of these layers."""
    return read_taps(model, blocks, batch, {layer: Tap(blocks.blocks[layer]) for layer in layers}, keep)


def read_hidden_states(
    model: PreTrainedModel, blocks: Blocks, batch: TokenBatch, layers: Sequence[int], keep: Keep[Kept]
) -> dict[int, Kept]:
    """The same as `read_blocks` through `output_hidden_states`: every layer is held in memory until the pass ends.

    The last of the reported states has been through the final norm; the last block is read by a hook instead.
    """
    last = len(blocks.blocks) - 1
    raw: list[Tensor] = []
    with left_as_found(model), ExitStack() as stack:
        stack.callback(blocks.blocks[last].register_forward_hook(lambda _m, _a, out: raw.append(residual(out))).remove)
        hidden_states = _run(blocks.decoder, batch, output_hidden_states=True).hidden_states
        return {layer: keep(raw[0] if layer == last else hidden_states[layer + blocks.first_state]) for layer in layers}


def run_decoder(model: PreTrainedModel, blocks: Blocks, batch: TokenBatch) -> Any:  # noqa: ANN401 - a model output
    """A whole pass with `output_hidden_states`, as transformers returns it; nothing is kept back."""
    with left_as_found(model):
        return _run(blocks.decoder, batch, output_hidden_states=True)


def residual(output: Any) -> Tensor:  # noqa: ANN401 - a block returns a tensor, or in older code a tuple that begins with it
    """The residual stream in what a block returned, `(batch, sequence, hidden)`."""
    return cast("Tensor", output[0] if isinstance(output, tuple | list) else output)


def taken_in(args: Any, kwargs: Any) -> Tensor:  # noqa: ANN401 - whatever a block is called with
    """The residual stream in what a block was called with, `(batch, sequence, hidden)`."""
    return cast("Tensor", args[0] if args else kwargs["hidden_states"])


def _run(decoder: nn.Module, batch: TokenBatch, **options: bool) -> Any:  # noqa: ANN401 - a model output
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
def left_as_found(model: PreTrainedModel) -> Iterator[None]:
    """Put training mode and hooks back as they were: transformers leaves hooks behind after `output_hidden_states`."""
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    hooks = {m: (set(m._forward_hooks), set(m._forward_pre_hooks)) for m in modules if _is_hooked(m)}
    marked = {module for module in modules if _MARK in module.__dict__}
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module in modules:
            if _is_hooked(module):
                after, before = hooks.get(module, (set(), set()))
                _restore(module._forward_hooks, after)
                _restore(module._forward_pre_hooks, before)
            if module not in marked:
                module.__dict__.pop(_MARK, None)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _restore(now: dict[int, Any], found: set[int]) -> None:
    for handle in now.keys() - found:
        del now[handle]
