"""Find the modules in a block that compute its attention output and MLP output.

Candidates are found by name and accepted only if the sum is exact: block input + attention output + MLP output equals
the block output bit for bit. A tolerance would not work: in bfloat16, many blocks change the stream by less than
rounding does.
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
_DEPTH = 2  # children and grandchildren: if a child adds to the stream itself, the tap is its last child


class Sublayers(NamedTuple):
    """Names of the modules in a block whose outputs are added to the stream.

    They are dotted; None if there is no such module.

    Attributes:
        attention: Module with the attention output: the attention, or the norm after it.
        feed_forward: Module with the MLP output: the MLP or the experts, or the norm after them.
    """

    attention: str | None
    feed_forward: str | None


class SublayerSearch:
    """Watch the modules of blocks during one forward pass.

    The outputs of a block's modules are held until the block returns.
    """

    def __init__(self) -> None:
        self._found: list[Sublayers] = []

    def watch(self, block: nn.Module) -> list[RemovableHandle]:
        """Hook a block and its modules.

        Args:
            block: A decoder block that runs once in the pass.

        Returns:
            The hooks; the caller removes them.
        """
        parts = {
            name: module
            for name, module in block.named_modules()
            if name and name.count(".") < _DEPTH and not isinstance(module, nn.Dropout | nn.Identity)
        }
        done: dict[str, Tensor | None] = {}  # in the order in which the modules returned
        own = get_ident()

        def watch_part(name: str) -> Any:  # noqa: ANN401 - torch's own signature
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:  # noqa: ANN401
                if get_ident() != own:
                    return
                states = output[0] if isinstance(output, tuple | list) and output else output
                # A module that runs twice has no single output. Clone, because some blocks add in place.
                done[name] = states.clone() if isinstance(states, Tensor) and name not in done else None

            return hook

        def watch_block(_module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:  # noqa: ANN401
            if get_ident() == own:
                self._found.append(_find_pair(parts, done, taken_in(args, kwargs), residual(output)))
                done.clear()

        hooks = [module.register_forward_hook(watch_part(name)) for name, module in parts.items()]
        return [*hooks, block.register_forward_hook(watch_block, with_kwargs=True)]

    def found(self) -> Sublayers:
        """Return the sublayers that have the same name in every watched block."""
        attention, feed_forward = ({pair[i] for pair in self._found} for i in range(2))
        return Sublayers(
            attention.pop() if len(attention) == 1 else None, feed_forward.pop() if len(feed_forward) == 1 else None
        )


def _find_pair(
    parts: Mapping[str, nn.Module], done: Mapping[str, Tensor | None], before: Tensor, after: Tensor
) -> Sublayers:
    """Find two modules of a block whose outputs add up from its input to its output.

    Pairs with a module named like attention come first, then the outermost. The second module must be named like an
    MLP. The first need not be named like attention, so that the MLP is found in a block that mixes tokens by
    convolution or recurrence; but only attention is returned.
    """
    kinds, before = _kinds(parts, done), before.to(after.device)
    added = {
        name: states.to(after.device).reshape(after.shape)  # experts may output (batch x sequence, hidden)
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
    """Classify modules by name as attention, feed-forward or neither.

    A norm next to them takes the kind of the module before it.
    """
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
    """Whether three tensors sum exactly to a fourth in any common order.

    All have shape `(batch, sequence, hidden)`.
    """
    if before.shape != after.shape:
        return False
    sums = (before + one + other, one + other + before, before + other + one)
    return any(torch.equal(total.to(after.dtype), after) for total in sums)
