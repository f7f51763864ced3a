"""Hooks that act only in the thread that made them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

from torch import nn


class ThreadHook:
    """A hook that acts only in the thread that made it, so that it does not alter the model for other threads.

    Attributes:
        alteration: What it does to its module, as a phrase that follows the module's name; empty if it only reads.
    """

    def __init__(self, alteration: str = "") -> None:
        self.alteration = alteration
        self._owner = get_ident()

    @property
    def acts_here(self) -> bool:
        """Whether this is the thread that made the hook."""
        return get_ident() == self._owner


class PromptHook(ThreadHook):
    """A hook before a decoder. Captures tell it where the response begins.

    Attributes:
        generated: Whether it acts on generated tokens, instead of those of the prompt.
        boundary: Number of tokens of the prompt; None in passes of others.
    """

    def __init__(self, *, generated: bool) -> None:
        super().__init__()
        self.generated = generated
        self.boundary: int | None = None


def prompt_hooks(decoder: nn.Module) -> list[PromptHook]:
    """The hooks before a decoder that this thread made and that need to know where the response begins."""
    hooks: list[object] = [*decoder._forward_pre_hooks.values()]
    return [hook for hook in hooks if isinstance(hook, PromptHook) and hook.acts_here]


@contextmanager
def told_boundary(decoder: nn.Module, boundary: int) -> Iterator[None]:
    """Tell the hooks of this thread how many tokens of a pass are the prompt.

    Args:
        decoder: The decoder.
        boundary: That number.
    """
    told = prompt_hooks(decoder)
    for hook in told:
        hook.boundary = boundary
    try:
        yield
    finally:
        for hook in told:
            hook.boundary = None
