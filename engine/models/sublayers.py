"""Which parts of a block put out what its attention and its feed-forward add to the residual stream.

Found by what the parts are called, and believed only where the sum comes out to the bit: what the block takes in, plus
what the two put out, is what the block puts out. A tolerance would not do: in bfloat16 many a block changes the stream
by less than rounding. Knows blocks and tensors; knows no families, and refuses none.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.models.forward import residual, taken_in

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_ATTENTION, _FEED_FORWARD = "attention", "feed-forward"
_WORDS = {
    _ATTENTION: ("attn", "attention"),
    _FEED_FORWARD: ("mlp", "ffn", "feed_forward", "feedforward", "moe", "fc2"),
}
_DEPTH = 2  # children of the block and their children: where a child adds the stream by itself, its last part is read


class Sublayers(NamedTuple):
    """Names inside a block, dotted, of the parts whose outputs are added to the stream; None where there is none.

    Attributes:
        attention: What attention adds: the attention, or the norm after it.
        feed_forward: What the feed-forward adds: the MLP or the experts, or the norm after them.
    """

    attention: str | None
    feed_forward: str | None


class SublayerSearch:
    """Watches the parts of blocks during one pass; what a block's parts put out is held until that block ends."""

    def __init__(self) -> None:
        self._found: list[Sublayers] = []

    def watch(self, block: nn.Module) -> list[RemovableHandle]:
        """Hook a block and its parts.

        Args:
            block: A decoder block that runs once in the pass.

        Returns:
            The hooks, for the caller to remove.
        """
        parts = {
            name: module
            for name, module in block.named_modules()
            if name and name.count(".") < _DEPTH and not isinstance(module, nn.Dropout | nn.Identity)
        }
        done: dict[str, Tensor | None] = {}  # in the order in which the parts ended
        own = get_ident()

        def watch_part(name: str) -> Any:  # noqa: ANN401 - torch's own signature
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:  # noqa: ANN401
                if get_ident() != own:
                    return
                states = output[0] if isinstance(output, tuple | list) and output else output
                # A part that runs twice does not put out one thing; a copy, because some blocks add in place.
                done[name] = states.clone() if isinstance(states, Tensor) and name not in done else None

            return hook

        def watch_block(_module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:  # noqa: ANN401
            if get_ident() == own:
                self._found.append(_find_pair(parts, done, taken_in(args, kwargs), residual(output)))
                done.clear()

        hooks = [module.register_forward_hook(watch_part(name)) for name, module in parts.items()]
        return [*hooks, block.register_forward_hook(watch_block, with_kwargs=True)]

    def found(self) -> Sublayers:
        """The sublayers that have the same name in every block watched."""
        attention, feed_forward = ({pair[i] for pair in self._found} for i in range(2))
        return Sublayers(
            attention.pop() if len(attention) == 1 else None, feed_forward.pop() if len(feed_forward) == 1 else None
        )


def _find_pair(
    parts: Mapping[str, nn.Module], done: Mapping[str, Tensor | None], before: Tensor, after: Tensor
) -> Sublayers:
    """The parts of one block that lead from its input to its output: those called attention first, the outermost first.

    The feed-forward must be called one. The other need not, so that the feed-forward is found in a block that mixes
    tokens by convolution or recurrence; only attention is named in the result.
    """
    kinds, before = _kinds(parts, done), before.to(after.device)
    added = {
        name: states.to(after.device).reshape(after.shape)  # experts may put out (batch x sequence, hidden)
        for name, states in done.items()
        if states is not None and states.shape[-1:] == after.shape[-1:] and states.numel() == after.numel()
    }
    pairs = [
        (one, other)
        for one in added
        for other in added
        if kinds[one] != _FEED_FORWARD and kinds[other] == _FEED_FORWARD
    ]
    pairs.sort(key=lambda pair: (kinds[pair[0]] != _ATTENTION, ".".join(pair).count(".")))
    for one, other in pairs:
        if _adds_up(before, added[one], added[other], after):
            return Sublayers(one if kinds[one] == _ATTENTION else None, other)
    return Sublayers(None, None)


def _kinds(parts: Mapping[str, nn.Module], done: Mapping[str, Tensor | None]) -> dict[str, str]:
    """Attention, feed-forward or neither, by name; a norm beside them is of the kind of what ran before it."""
    kinds: dict[str, str] = {}
    latest = ""
    for name in done:
        beside = "." not in name
        if beside and "norm" in type(parts[name]).__name__.lower():
            kinds[name] = latest
            continue
        kinds[name] = next((kind for kind, words in _WORDS.items() if any(word in name for word in words)), "")
        latest = kinds[name] if beside else latest
    return kinds


def _adds_up(before: Tensor, one: Tensor, other: Tensor, after: Tensor) -> bool:
    """Whether the three tensors, `(batch, sequence, hidden)`, add up to a fourth in one of the orders there are."""
    if before.shape != after.shape:
        return False
    sums = (before + one + other, one + other + before, before + other + one)
    return any(torch.equal(total.to(after.dtype), after) for total in sums)
