"""Block-sparse attention over a row of packed prompts.

PyTorch computes the full attention matrix and then applies the mask, which hides most of a packed row. Here, blocks of
queries attend only to the keys that some query in the block sees. The result is identical: masked keys had zero weight.

The mask brings this with it, as a tensor that PyTorch asks before it computes attention. Nothing is registered with
PyTorch or transformers, no setting changes, and other forward passes in the process are not affected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only

_LEAST_QUERIES = 64  # smaller blocks would compute fewer masked scores but use the processor less well
_MOST_BLOCKS = {"cpu": 32}
_MOST_BLOCKS_ON_GPU = 4  # each block is a separate kernel launch, whose cost does not shrink with its size
_MOST_KEYS = 512  # for products: oneDNN keeps up to some megabytes for every number of keys,
_MOST_QUERIES = 1024  # and rows larger than a usual batch have more of them
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


class PackedMask(Tensor):
    """Additive attention mask of a packed row, `(1, 1, queries, cached tokens + queries)`.

    It is 0 where a query sees a key, else the lowest number. Attention under it is computed in blocks. For all other
    operations it becomes an ordinary tensor, which is built on the device when it is first needed; copies for other
    devices, such as accelerate makes for blocks on another GPU, stay masks of this class.

    Example:
        >>> query, key, value = torch.ones(3, 1, 2, 5, 4)
        >>> mask = PackedMask.of(np.array([5, 5, 3, 5, 5]), torch.device("cpu"), torch.float32)
        >>> scaled_dot_product_attention(query, key, value, attn_mask=mask).shape
        torch.Size([1, 2, 5, 4])
        >>> (mask == 0)[0, 0].int().tolist()
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    """

    _ends: np.ndarray
    _cached: int
    _copies: dict[torch.device, PackedMask]
    _blocks: list[_Block]
    _dense: Tensor | None

    @classmethod
    def of(cls, ends: np.ndarray, device: torch.device, dtype: torch.dtype, *, cached: int = 0) -> PackedMask:
        """Make the mask of a row.

        Args:
            ends: For each token, the index after the last token that sees it: see `TokenTree`.
            device: Device of the mask.
            dtype: Dtype of the mask.
            cached: Number of preceding tokens, which all tokens see.
        """
        shape = (1, 1, len(ends), cached + len(ends))
        mask: PackedMask = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        mask._ends, mask._cached, mask._copies, mask._dense = ends, cached, {}, None
        mask._blocks = mask._find_blocks()  # now: between the states of a forward pass, they would fragment memory
        return mask

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own signature
        """Compute attention in blocks; leave every other function as it is."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            mask = kwargs.get("attn_mask")
            if func is scaled_dot_product_attention and isinstance(mask, cls):
                return mask._attend(*args, **kwargs)
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a function, and asks for a class method
        cls,
        func: Any,  # noqa: ANN401 - torch's own signature
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Copy the mask to another device, or run any other operation on an ordinary tensor."""
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype", args[0].dtype) == args[0].dtype:
            return args[0]._on(torch.device(kwargs.get("device") or args[0].device))
        return func(*tree_map_only(PackedMask, cls._ordinary, args), **tree_map_only(PackedMask, cls._ordinary, kwargs))

    def _on(self, device: torch.device) -> PackedMask:
        """The mask on a device; the same object for each, so that its blocks are found once."""
        if device == self.device:
            return self
        if device not in self._copies:
            self._copies[device] = PackedMask.of(self._ends, device, self.dtype, cached=self._cached)
        return self._copies[device]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        if query.shape[-2] != self.shape[-2]:  # for one token, transformers puts heads in the token dimension
            return scaled_dot_product_attention(query, key, value, **options | {"attn_mask": self._ordinary()})
        favored = _favor_products(query, key, options)
        parts = [
            (_by_products if favored and len(block.keys) <= _MOST_KEYS else scaled_dot_product_attention)(
                query[..., block.begin : block.end, :],
                key.index_select(-2, block.keys),
                value.index_select(-2, block.keys),
                **(options | {"attn_mask": block.mask}),
            )
            for block in self._blocks
        ]
        return torch.cat(parts, dim=-2)

    def _ordinary(self) -> Tensor:
        if self._dense is None:
            self._dense = self._part(0, self.shape[-2], np.arange(self.shape[-1]))
        return self._dense

    def _find_blocks(self) -> list[_Block]:
        queries, keys = self.shape[-2:]
        most = _MOST_BLOCKS.get(self.device.type, _MOST_BLOCKS_ON_GPU)
        step = max(_LEAST_QUERIES, -(-queries // most))
        blocks = []
        for begin in range(0, queries, step):
            end = min(begin + step, queries)
            # Some query of the block sees a key that is not after the block and ends after its first query.
            seen = np.ones(keys, dtype=bool)
            seen[self._cached :] = self._ends > begin
            seen[self._cached + end :] = False
            more = -int(seen.sum()) % _LANES
            seen[np.flatnonzero(~seen)[:more]] = True
            places = np.flatnonzero(seen)
            blocks.append(_Block(begin, end, torch.from_numpy(places).to(self.device), self._part(begin, end, places)))
        return blocks

    def _part(self, begin: int, end: int, keys: np.ndarray) -> Tensor:
        """The mask of some queries and keys, built on the device, `(1, 1, queries, keys)`."""
        queries = len(self._ends)
        first = np.concatenate([np.zeros(self._cached, dtype=np.int64), np.arange(queries)])[keys]
        last = np.concatenate([np.full(self._cached, queries), self._ends])[keys]
        query = torch.arange(begin, end, device=self.device)[:, None]
        hidden = (query < torch.from_numpy(first).to(self.device)) | (query >= torch.from_numpy(last).to(self.device))
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(self.dtype).min)[None, None]


def _favor_products(query: Tensor, key: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether to write attention as products: for full precision on a CPU.

    PyTorch's kernel makes many small products there, which are slow if they go through oneDNN; here they are batched
    over the heads.
    """
    exact = query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64)
    small = len(query) == 1 and query.shape[-2] <= _MOST_QUERIES
    return exact and small and query.shape[1] == key.shape[1] and not options.get("dropout_p")


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor, scale: float | None = None, **_unused: object
) -> Tensor:
    """Attention of one batch row, `(1, heads, queries, head size)`."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.baddbmm(attn_mask[0], query[0], key[0].transpose(1, 2), alpha=scale)  # (heads, queries, keys)
    return torch.bmm(scores.softmax(dim=-1), value[0])[None]
