"""Hooks that change the output of decoder blocks in one thread."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.errors import CaptureError, ModelError
from engine.models.adapters import inner_model
from engine.models.forward import CACHE_NAMES, REPORTS, residual
from engine.models.structure import find_blocks
from engine.models.thread_hooks import PromptHook, ThreadHook
from engine.records.steering import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Change = Callable[[Tensor], Tensor]
"""Changes the states of any tokens, `(..., hidden)`, in float32 or more."""


class Addition:
    """Adds a vector to states.

    Args:
        vector: `(hidden,)`.
    """

    def __init__(self, vector: Tensor) -> None:
        self._vector = vector

    def __call__(self, states: Tensor) -> Tensor:
        """Return the states plus the vector."""
        self._vector = self._vector.to(states.device)  # the block's device, known at its first pass
        return states + self._vector.to(states.dtype)


class Projection:
    """Projects vectors out of states.

    Args:
        vectors: Orthonormal, `(vectors, hidden)`.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    def __call__(self, states: Tensor) -> Tensor:
        """Return the states without their parts along the vectors."""
        self._vectors = self._vectors.to(states.device)
        vectors = self._vectors.to(states.dtype)
        return states - (states @ vectors.T) @ vectors


class _Phase(PromptHook):
    """A hook before the decoder that finds out which tokens are the prompt and which are generated.

    A capture says where the response begins, and its tokens count as generated. In other passes the cache tells: if it
    holds tokens, the new ones are generated.

    Args:
        decoder: The decoder.
        tokens: `prompt` or `generated`.
    """

    def __init__(self, decoder: nn.Module, tokens: Tokens) -> None:
        super().__init__(generated=tokens == "generated")
        self._signature = inspect.signature(decoder.forward)
        self.chosen = slice(None)  # of the tokens of the running pass

    # While a hook is being removed, another thread's pass may call it without the keyword arguments.
    def __call__(self, _module: nn.Module, args: Any, kwargs: Any = None) -> None:  # noqa: ANN401 - torch's own signature
        if self.acts_here:
            # Deprecated names of the cache are no longer parameters, but still accepted.
            given = self._signature.bind_partial(*args, **(kwargs or {})).arguments | dict(kwargs or {})
            caches = [given[name] for name in CACHE_NAMES if given.get(name) is not None]
            prompt = self.boundary
            if prompt is None:
                prompt = 0 if any(map(_holds_tokens, caches)) else sys.maxsize
            self.chosen = slice(prompt, None) if self.generated else slice(prompt)


def _holds_tokens(cache: Any) -> bool:  # noqa: ANN401 - any cache of transformers
    """Whether a cache holds tokens in any layer; a layer with linear attention or recurrence keeps a state, no keys.

    Raises:
        CaptureError: The cache does not say.
    """
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    if layers is None:
        raise CaptureError(
            f"a cache of type {type(cache).__name__} does not say whether it holds tokens",
            next_step="steer with tokens='all'",
        )
    return any(_is_filled(layer) for layer in layers)


def _is_filled(layer: Any) -> bool:  # noqa: ANN401 - as above
    states = getattr(layer, "has_previous_state", False)
    if any(states.values()) if isinstance(states, dict) else states:
        return True
    return hasattr(layer, "get_seq_length") and int(layer.get_seq_length()) > 0


class _CacheNeeded(ThreadHook):
    """A hook before the model that refuses a pass without a cache.

    Those of a capture are not refused: it says which tokens are the prompt.

    Args:
        phase: The hook before the decoder.
    """

    def __init__(self, phase: _Phase) -> None:
        super().__init__()
        self._phase = phase

    def __call__(self, _module: nn.Module, _args: Any, kwargs: Any = None) -> None:  # noqa: ANN401 - torch's own signature
        if self.acts_here and self._phase.boundary is None and (kwargs or {}).get("use_cache") is False:
            raise CaptureError(
                "without a key-value cache, the prompt cannot be told from generated tokens",
                expected="use_cache=True",
                next_step="generate with the cache, or steer with tokens='all'",
            )


class _SteeredBlock(ThreadHook):
    """A hook after a block that changes its output."""

    def __init__(self, change: Change, phase: _Phase | None, alteration: str) -> None:
        super().__init__(alteration)
        self._change, self._phase = change, phase

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:  # noqa: ANN401 - torch's own signature
        if not self.acts_here:
            return None
        states = residual(output)
        chosen = states[..., self._phase.chosen, :] if self._phase else states
        if not chosen.numel():
            return None
        precise = chosen.to(torch.promote_types(states.dtype, torch.float32))
        changed = self._change(precise).to(states.dtype)
        if self._phase and chosen.shape != states.shape:
            part, changed = changed, states.clone()
            changed[..., self._phase.chosen, :] = part
        return type(output)([changed, *output[1:]]) if isinstance(output, tuple | list) else changed


@contextmanager
def hooked(
    model: PreTrainedModel, changes: Mapping[int, Change], alterations: Mapping[int, str], tokens: Tokens = "all"
) -> Iterator[None]:
    """Change the output of blocks in this thread, and remove the hooks on exit.

    The hooks run after those of outer contexts, and before those with which transformers reports hidden states.

    Args:
        model: A checked model.
        changes: Layer to what happens to its states.
        alterations: Layer to a phrase that says so, for provenance.
        tokens: Which tokens are changed.

    Raises:
        ModelError: Tokens are to be told apart, and the model has no key-value cache.
    """
    blocks = find_blocks(model)
    with ExitStack() as stack:
        phase = None
        if tokens != "all":
            _require_cache(model, blocks.decoder)
            phase = _Phase(blocks.decoder, tokens)
            needed = _CacheNeeded(phase)
            hook = blocks.decoder.register_forward_pre_hook(phase, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(inner_model(model).register_forward_pre_hook(needed, with_kwargs=True).remove)
        for layer, change in changes.items():
            block = blocks.blocks[layer]
            steered = _SteeredBlock(change, phase, alterations[layer])
            stack.callback(block.register_forward_hook(steered).remove)
            _report_last(block)
        yield


def _report_last(block: nn.Module) -> None:
    """Move the hooks that report hidden states behind all others, so that they report what the next block gets."""
    hooks: Any = block._forward_hooks  # an ordered dictionary
    for number, hook in list(hooks.items()):
        if getattr(hook, "__module__", "") == REPORTS:
            hooks.move_to_end(number)


def require_uncompiled(model: PreTrainedModel) -> None:
    """Refuse a compiled model.

    Raises:
        ModelError: The model, or a module in it, is compiled.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()  # anything else fails the load check
    if any(hasattr(module, "_compiled_call") or module._compiled_call_impl is not None for module in modules):
        raise ModelError(
            "the model is compiled, and its compiled graphs may run without the steering hooks",
            expected="an uncompiled model",
            next_step="load the model again, and steer it without compiling it or generating with a static cache",
        )


def _require_cache(model: PreTrainedModel, decoder: nn.Module) -> None:
    if not inspect.signature(decoder.forward).parameters.keys() & set(CACHE_NAMES):
        raise ModelError(
            f"{type(model).__name__} has no key-value cache that tells the prompt from generated tokens",
            next_step="steer with tokens='all'",
        )
