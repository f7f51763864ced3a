"""Attention over a row of packed prompts, without most of what its mask hides.

PyTorch computes attention whole and lets the mask throw away what a token does not see, in a packed row most of it.
Here a few tokens at a time attend to those that any of them sees. What comes out is the same, for what is left out had
no weight. Knows masks; knows no prompts and no models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_LEAST_QUERIES = 64  # fewer tokens at a time would see less in vain, and make less use of a processor
_MOST_BLOCKS = {"cpu": 32}
_MOST_BLOCKS_ON_GPU = 4  # each is operations of its own, which on a GPU cost the same however small they are
_LANES = 16  # numbers that a processor's units take at once; keys that fill them up cost less than a rest does


class _Block(NamedTuple):
    """Tokens that attend together.

    Attributes:
        begin: The first.
        end: The one after the last.
        keys: What any of them sees, and a few others.
        mask: What is added to their scores.
    """

    begin: int
    end: int
    keys: Tensor
    mask: Tensor


class VisibleOnly(TorchFunctionMode):
    """While entered, attention under one mask is computed in blocks; all else is as ever, in other threads too.

    It is the very tensor that is looked for, or the last copy that was made of it, as for a block on another GPU: where
    a model makes another mask out of it, attention is computed whole.

    Args:
        mask: What is added to the scores, `(1, 1, queries, keys)`: 0 where a token sees another.

    Example:
        >>> query, key, value = torch.ones(3, 1, 2, 5, 4)
        >>> mask = torch.full((1, 1, 5, 5), torch.finfo(torch.float32).min).triu(1)
        >>> with VisibleOnly(mask):
        ...     scaled_dot_product_attention(query, key, value, attn_mask=mask).shape
        torch.Size([1, 2, 5, 4])
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self._mask = self._copy = mask
        self._blocks = {mask.device: _find_blocks(mask)}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Any,  # noqa: ANN401 - torch's own signature
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """What torch calls in the place of each of its functions."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            mask = kwargs.get("attn_mask")
            return (self._attend if mask is self._mask or mask is self._copy else func)(*args, **kwargs)
        output = func(*args, **kwargs)
        if func is Tensor.to and args[0] is self._mask and output.dtype == self._mask.dtype:
            self._copy = output
        return output

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        if query.shape[-2] != self._mask.shape[-2]:  # of a single token transformers lays heads where tokens were
            return scaled_dot_product_attention(query, key, value, **options)
        parts = [
            scaled_dot_product_attention(
                query[..., block.begin : block.end, :],
                key.index_select(-2, block.keys),
                value.index_select(-2, block.keys),
                **(options | {"attn_mask": block.mask}),
            )
            for block in self._blocks_on(query.device)
        ]
        return torch.cat(parts, dim=-2)

    def _blocks_on(self, device: torch.device) -> list[_Block]:
        if device not in self._blocks:
            self._blocks[device] = [
                block._replace(keys=block.keys.to(device), mask=block.mask.to(device))
                for block in self._blocks[self._mask.device]
            ]
        return self._blocks[device]


def _find_blocks(mask: Tensor) -> list[_Block]:
    visible = (mask[0, 0] == 0).cpu()
    queries = len(visible)
    most = _MOST_BLOCKS.get(mask.device.type, _MOST_BLOCKS_ON_GPU)
    step = max(_LEAST_QUERIES, -(-queries // most))
    blocks = []
    for begin in range(0, queries, step):
        seen = visible[begin : begin + step].any(dim=0)
        more = -int(seen.sum()) % _LANES
        seen[(~seen).nonzero()[:more]] = True
        places = seen.nonzero().flatten().to(mask.device)
        end = min(begin + step, queries)
        blocks.append(_Block(begin, end, places, mask[:, :, begin:end].index_select(-1, places)))
    return blocks
