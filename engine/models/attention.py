"""Block-sparse attention over a row of packed prompts.

PyTorch computes the full attention matrix and then applies the mask, which hides most of a packed row. Here, blocks of
queries attend only to the keys that some query in the block sees. The result is identical: masked keys had zero weight.
On a GPU, where starting a kernel costs more than a few masked scores, blocks with about as many keys are one batch.

The mask brings this with it, as a tensor that PyTorch asks before it computes attention. Nothing is registered with
PyTorch or transformers, no setting changes, and other forward passes in the process are not affected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only

from engine.models.devices import send

_LEAST_QUERIES = 64  # smaller blocks would compute fewer masked scores but use the processor less well
_MOST_BLOCKS = 32
BATCHED_QUERIES = 128
"""Queries in a block on a GPU, where blocks are batched. Rows are padded to a multiple of it."""
_MOST_BATCHES = 4  # each is several kernels, whose launches do not shrink with their size
_WASTE = (1.5, 2.0, 4.0)  # keys of a batch per key that its blocks need: the first that gives few enough batches
_MOST_KEYS = 512  # for products: oneDNN keeps up to some megabytes for every number of keys,
_MOST_QUERIES = 1024  # and rows larger than a usual batch have more of them
_LANES = 16  # SIMD width: padding the keys to a multiple of it is cheaper than a remainder
_GPU_LANES = 64  # also the width of a kernel's tile


class _Batch(NamedTuple):
    """Consecutive blocks of queries that are computed together.

    Attributes:
        begin: Index of the first query.
        queries: Number of queries in each block.
        keys: Indices of the keys of each block: those that some query sees, padded, `(blocks, keys)`.
        mask: Additive mask of each block, `(blocks, 1, queries, keys)`.
    """

    begin: int
    queries: int
    keys: Tensor
    mask: Tensor

    @property
    def end(self) -> int:
        """Index after the last query."""
        return self.begin + len(self.keys) * self.queries

    def chosen(self, states: Tensor) -> Tensor:
        """The keys or values of each block, `(rows x blocks, heads, keys, size)`.

        Args:
            states: Those of all tokens, `(rows, heads, all keys, size)`.
        """
        found = states.index_select(2, self.keys.flatten())
        return found.view(*found.shape[:2], *self.keys.shape, found.shape[3]).transpose(1, 2).flatten(0, 1)

    def asking(self, query: Tensor) -> Tensor:
        """The queries of each block, `(rows x blocks, heads, queries, size)`.

        Args:
            query: All queries, `(rows, heads, all queries, size)`.
        """
        rows, heads, _, size = query.shape
        part = query[:, :, self.begin : self.end].view(rows, heads, len(self.keys), self.queries, size)
        return part.transpose(1, 2).flatten(0, 1)

    def hiding(self, rows: int) -> Tensor:
        """The mask of each block in so many rows, `(rows x blocks, 1, queries, keys)`, or one that broadcasts to it."""
        return self.mask if rows == 1 or len(self.mask) == 1 else self.mask.repeat(rows, 1, 1, 1)


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
    _groups: int
    _alike: bool
    _copies: dict[torch.device, PackedMask]
    _batches: list[_Batch]
    _dense: Tensor | None

    @classmethod
    def of(
        cls,
        ends: np.ndarray,
        device: torch.device,
        dtype: torch.dtype,
        *,
        cached: int = 0,
        groups: int = 1,
        alike: bool = False,
    ) -> PackedMask:
        """Make the mask of a row.

        Args:
            ends: For each token, the index after the last token that sees it: see `TokenTree`.
            device: Device of the mask.
            dtype: Dtype of the mask.
            cached: Number of preceding tokens, which all tokens see.
            groups: Number of heads of queries for which the model repeats each head of keys and values.
            alike: Whether rows of equal length shall have batches of few different shapes, for compiled code.
        """
        shape = (1, 1, len(ends), cached + len(ends))
        mask: PackedMask = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        mask._ends, mask._cached, mask._groups, mask._alike = ends, cached, groups, alike
        mask._copies, mask._dense = {}, None
        mask._batches = [*mask._batched()]  # now: between the states of a forward pass, they would fragment memory
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
        """Copy the mask to another device or repeat it, or run any other operation on an ordinary tensor."""
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype", args[0].dtype) == args[0].dtype:
            return args[0]._on(torch.device(kwargs.get("device") or args[0].device))
        if func is torch.ops.aten.expand.default and args[1][0] > 0 and [*args[1][1:]] == [*args[0].shape[1:]]:
            return args[0]._for_rows(args[1][0])
        return func(*tree_map_only(PackedMask, cls._ordinary, args), **tree_map_only(PackedMask, cls._ordinary, kwargs))

    def _on(self, device: torch.device) -> PackedMask:
        """The mask on a device; the same object for each, so that its blocks are found once."""
        if device == self.device:
            return self
        if device not in self._copies:
            of = partial(PackedMask.of, cached=self._cached, groups=self._groups, alike=self._alike)
            self._copies[device] = of(self._ends, device, self.dtype)._for_rows(len(self))
        return self._copies[device]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        if query.shape[-2] != self.shape[-2]:  # for one token, transformers puts heads in the token dimension
            return scaled_dot_product_attention(query, key, value, **options | {"attn_mask": self._ordinary()})
        if self._groups > 1 and query.shape[1] == key.shape[1] and batches_blocks(query.device):
            # The kernels take each head once, so that fewer keys and values are copied.
            key, value = key[:, :: self._groups], value[:, :: self._groups]
            options["enable_gqa"] = True
        favored, parts = _favor_products(query, key, options), []
        for batch in self._batches:
            products = favored and len(batch.keys) == 1 and batch.keys.shape[1] <= _MOST_KEYS
            by = _by_products if products else scaled_dot_product_attention
            states = batch.asking(query), batch.chosen(key), batch.chosen(value)
            found = by(*states, **(options | {"attn_mask": batch.hiding(len(query))}))
            found = found.transpose(1, 2)  # (rows x blocks, queries, heads, size)
            parts.append(found.reshape(len(query), -1, *found.shape[2:]))  # (rows, queries of all blocks, heads, size)
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).transpose(1, 2)

    def _ordinary(self) -> Tensor:
        if self._dense is None:
            keys = np.arange(self.shape[-1])[None]
            self._dense = self._batch_of(0, self.shape[-2], keys, np.array([keys.size])).mask.expand(self.shape)
        return self._dense

    def _for_rows(self, rows: int) -> PackedMask:
        """The mask of equal rows, `(rows, 1, queries, keys)`."""
        mask: PackedMask = Tensor._make_wrapper_subclass(
            type(self), (rows, *self.shape[1:]), dtype=self.dtype, device=self.device
        )
        mask.__dict__ |= self.__dict__ | {"_copies": {}, "_dense": None}
        return mask

    def _batched(self) -> Iterator[_Batch]:
        """Cut the row into blocks, and batch those next to each other on a GPU."""
        queries, alone = self.shape[-2], not (batches_blocks(self.device) or self._alike)
        step = max(_LEAST_QUERIES, -(-queries // _MOST_BLOCKS)) if alone else BATCHED_QUERIES
        seen = [*self._seen(step)]
        sizes = np.array([len(keys) for keys in seen])
        whole = queries // step  # a smaller last block is a batch of its own
        cuts = [*range(whole + 1)] if alone else _cuts(sizes[:whole], most=1 if self._alike else _MOST_BATCHES)
        lanes = _LANES if alone else _GPU_LANES
        for first, last in pairwise([*cuts, *([whole + 1] if queries % step else [])]):
            width = -(-int(sizes[first:last].max()) // lanes) * lanes
            if self._alike:
                width = 1 << (width - 1).bit_length()  # a power of two
            keys = np.zeros((last - first, width), dtype=np.int32)
            for row, block in zip(keys, seen[first:last], strict=True):
                row[: len(block)] = block
            yield self._batch_of(first * step, min(step, queries - first * step), keys, sizes[first:last])

    def _seen(self, step: int) -> Iterator[np.ndarray]:
        """The keys that some query of each block sees: all cached ones, open ones before it, and its own."""
        queries, cached = len(self._ends), np.arange(self._cached)
        before = np.zeros(0, dtype=np.int64)
        for begin in range(0, queries, step):
            end = min(begin + step, queries)
            own = np.concatenate([before[self._ends[before] > begin], np.arange(begin, end)])
            yield np.concatenate([cached, self._cached + own])
            before = own[self._ends[own] > end]

    def _batch_of(self, begin: int, queries: int, keys: np.ndarray, sizes: np.ndarray) -> _Batch:
        """A batch with its mask, which is built on the device.

        Args:
            begin: Index of the first query.
            queries: Number of queries in each block.
            keys: Indices of the keys of each block, `(blocks, keys)`.
            sizes: How many of them are not padding, `(blocks,)`.
        """
        own = keys - self._cached
        ends = np.where(own < 0, len(self._ends), self._ends[np.maximum(own, 0)])
        ends[np.arange(keys.shape[1]) >= sizes[:, None]] = 0  # no query sees padding
        places, first, end = (send(part, self.device) for part in (keys, own[:, None], ends[:, None]))
        query = torch.arange(begin, begin + len(keys) * queries, device=self.device).view(len(keys), queries, 1)
        hidden = (query < first) | (query >= end)  # (blocks, queries, keys)
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(hidden, torch.finfo(self.dtype).min)
        return _Batch(begin, queries, places, mask[:, None])


def batches_blocks(device: torch.device) -> bool:
    """Whether blocks are batched on a device: on all but a CPU."""
    return device.type != "cpu"


def _cuts(sizes: np.ndarray, most: int) -> list[int]:
    """Where to cut consecutive blocks into few batches without many more keys than the blocks need.

    Args:
        sizes: Number of keys of each block.
        most: Maximum number of batches.
    """
    for waste in (*_WASTE, np.inf) if len(sizes) else ():
        cuts, largest, total = [0], 0, 0
        for place, size in enumerate(sizes.tolist()):
            largest, total = max(largest, size), total + size
            if largest * (place + 1 - cuts[-1]) > waste * total:
                cuts.append(place)
                largest = total = size
        if len(cuts) <= most:
            return [*cuts, len(sizes)]
    return [0]


def _favor_products(query: Tensor, key: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether to write attention as products: for full precision on a CPU.

    PyTorch's kernel makes many small products there, which are slow if they go through oneDNN; here they are batched
    over the heads.
    """
    exact = query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64)
    small = query.shape[-2] <= _MOST_QUERIES
    return exact and small and query.shape[1] == key.shape[1] and not options.get("dropout_p")


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor, scale: float | None = None, **_unused: object
) -> Tensor:
    """Attention of one block in some rows, `(rows, heads, queries, head size)`."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    one, other, values = (states.flatten(0, 1) for states in (query, key, value))  # (rows x heads, tokens, head size)
    scores = torch.baddbmm(attn_mask[0], one, other.transpose(1, 2), alpha=scale)  # (rows x heads, queries, keys)
    return torch.bmm(scores.softmax(dim=-1), values).view(*query.shape[:3], value.shape[-1])
