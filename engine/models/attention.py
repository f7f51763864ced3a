"""Block-sparse attention over a row of packed prompts.

PyTorch computes the full attention matrix and then applies the mask, which hides most of a packed row. Here, blocks of
queries attend only to the keys that some query in the block sees. The result is identical: masked keys had zero weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_LEAST_QUERIES = 64  # smaller blocks would compute fewer masked scores but use the processor less well
_MOST_BLOCKS = {"cpu": 32}
_MOST_BLOCKS_ON_GPU = 4  # each block is a separate kernel launch, whose cost does not shrink with its size
_LANES = 16  # SIMD width: padding the keys to a multiple of it is cheaper than a remainder


class _Block(NamedTuple):
    """A block of consecutive queries.

    Attributes:
        begin: Index of the first query.
        end: Index after the last query.
        keys: Indices of the keys that some query sees, padded with a few others, `(keys,)`.
        mask: Additive mask of the block, `(1, 1, queries, keys)`.
    """

    begin: int
    end: int
    keys: Tensor
    mask: Tensor


class VisibleOnly(TorchFunctionMode):
    """Context manager that computes attention under one mask in blocks.

    Other attention calls and other threads are unaffected. The mask is recognized by identity, or as the last copy made
    of it, for example for a block on another GPU. If a model derives a different mask from it, attention is computed in
    full.

    Args:
        mask: Additive attention mask, `(1, 1, queries, keys)`: 0 where a query sees a key.

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
        """Intercept each torch function call."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            mask = kwargs.get("attn_mask")
            return (self._attend if mask is self._mask or mask is self._copy else func)(*args, **kwargs)
        output = func(*args, **kwargs)
        if func is Tensor.to and args[0] is self._mask and output.dtype == self._mask.dtype:
            self._copy = output
        return output

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        if query.shape[-2] != self._mask.shape[-2]:  # for one token, transformers puts heads in the token dimension
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
