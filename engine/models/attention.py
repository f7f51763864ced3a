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
_MOST_BLOCKS = {"cpu": 32}
_MOST_BLOCKS_ELSEWHERE = 4  # each block is a separate kernel launch, whose cost does not shrink with its size
BATCHED_QUERIES = 128
"""Queries in a block on a CUDA GPU, where blocks are batched. Rows are padded to a multiple of it."""
_MOST_BATCHES = 4  # each is several kernels, whose launches do not shrink with their size
_WASTE = (1.5, 2.0, 4.0)  # keys of a batch per key that its blocks need: the first that gives few enough batches
_MOST_KEYS = 512  # for products: oneDNN keeps up to some megabytes for every number of keys,
_MOST_QUERIES = 1024  # and rows larger than a usual batch have more of them
_LANES = 16  # SIMD width: padding the keys to a multiple of it is cheaper than a remainder
_GPU_LANES = 64  # also the width of a kernel's tile


class _Batch(NamedTuple):
    """Blocks of queries that are computed together.

    Attributes:
        begin: Index of the first query.
        places: Indices of the blocks in the row if they are not consecutive, `(blocks,)`; else None.
        queries: Number of queries in each block.
        keys: Indices of the keys of each block: those that some query sees, padded, `(blocks, keys)`.
        mask: Additive mask of each block, `(blocks, 1, queries, keys)`.
    """

    begin: int
    places: Tensor | None
    queries: int
    keys: Tensor
    mask: Tensor

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
        rows, heads, tokens, size = query.shape
        begin, count = (self.begin, len(self.keys)) if self.places is None else (0, tokens // self.queries)
        part = query[:, :, begin : begin + count * self.queries].view(rows, heads, count, self.queries, size)
        part = part if self.places is None else part.index_select(2, self.places)
        return part.transpose(1, 2).flatten(0, 1)

    def hiding(self, rows: int) -> Tensor:
        """The mask of each block in so many rows, `(rows x blocks, 1, queries, keys)`, or one that broadcasts to it."""
        return self.mask if rows == 1 or len(self.mask) == 1 else self.mask.repeat(rows, 1, 1, 1)


class PackedMask(Tensor):
    """Additive attention mask of a packed row, `(1, 1, queries, cached tokens + queries)`.

    It is 0 where a query sees a key, else the lowest number. Attention under it is computed in blocks. For all other
    operations it becomes an ordinary tensor, which is built on the device when it is first needed. Copies for other
    devices, such as accelerate makes for blocks on another GPU, and masks of several equal rows stay of this class.

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
    _fixed_shape: bool
    _copies: dict[torch.device, PackedMask]
    _batches: list[_Batch]
    _back: Tensor | None  # where each query is in the batches, if they are not in the order of the row
    _dense: dict[torch.device, Tensor]  # shared with its copies

    @classmethod
    def of(
        cls,
        ends: np.ndarray,
        device: torch.device,
        dtype: torch.dtype,
        *,
        cached: int = 0,
        groups: int = 1,
        fixed_shape: bool = False,
    ) -> PackedMask:
        """Make the mask of a row.

        Args:
            ends: For each token, the index after the last token that sees it: see `TokenTree`.
            device: Device of the mask.
            dtype: Dtype of the mask.
            cached: Number of preceding tokens, which all tokens see.
            groups: Number of heads of queries for which the model repeats each head of keys and values.
            fixed_shape: Whether to give rows of equal length batches of few different shapes, for compiled code.
        """
        shape = (1, 1, len(ends), cached + len(ends))
        mask: PackedMask = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        mask._ends, mask._cached, mask._groups, mask._fixed_shape = ends, cached, groups, fixed_shape
        mask._copies, mask._dense = {}, {}
        mask._batches, mask._back = mask._batched()  # now: between the states of a pass, they would fragment memory
        return mask

    @property
    def was_dense(self) -> bool:
        """Whether an operation needed this mask, or a copy of it, as an ordinary tensor."""
        return bool(self._dense)

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
            of = partial(PackedMask.of, cached=self._cached, groups=self._groups, fixed_shape=self._fixed_shape)
            self._copies[device] = of(self._ends, device, self.dtype)._for_rows(len(self))
            self._copies[device]._dense = self._dense
        return self._copies[device]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        if query.shape[-2] != self.shape[-2]:  # for one token, transformers puts heads in the token dimension
            return scaled_dot_product_attention(query, key, value, **options | {"attn_mask": self._ordinary()})
        parts, gpu = [], batches_blocks(query.device)
        # The compiler takes products for a kind of attention that it then cannot compile (torch 2.13).
        favored = _favor_products(query, key, options) and not self._fixed_shape
        # Heads that the model repeated are taken once, so that fewer keys and values are copied.
        every = self._groups if query.shape[1] == key.shape[1] else 1
        if gpu and every > 1:
            options["enable_gqa"] = True
        for batch in self._batches:
            products = favored and len(batch.keys) == 1 and batch.keys.shape[1] <= _MOST_KEYS
            by, step = (_by_products if products else scaled_dot_product_attention), (every if products or gpu else 1)
            states = batch.asking(query), batch.chosen(key[:, ::step]), batch.chosen(value[:, ::step])
            found = by(*states, **(options | {"attn_mask": batch.hiding(len(query))}))
            found = found.transpose(1, 2)  # (rows x blocks, queries, heads, size)
            parts.append(found.reshape(len(query), -1, *found.shape[2:]))  # (rows, queries of all blocks, heads, size)
        found = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return (found if self._back is None else found.index_select(1, self._back)).transpose(1, 2)

    def _ordinary(self) -> Tensor:
        if self.device not in self._dense:
            keys = np.arange(self.shape[-1])[None]
            self._dense[self.device] = self._mask_of(np.zeros(1, dtype=np.int64), self.shape[-2], keys)
        return self._dense[self.device].expand(self.shape)

    def _for_rows(self, rows: int) -> PackedMask:
        """The mask of equal rows, `(rows, 1, queries, keys)`."""
        mask: PackedMask = Tensor._make_wrapper_subclass(
            type(self), (rows, *self.shape[1:]), dtype=self.dtype, device=self.device
        )
        mask.__dict__ |= self.__dict__ | {"_copies": {}}
        return mask

    def _batched(self) -> tuple[list[_Batch], Tensor | None]:
        """Cut the row into blocks and batch them; also returns where each query is then, if the order changed."""
        queries, batched = self.shape[-2], batches_blocks(self.device) or self._fixed_shape
        most = _MOST_BLOCKS.get(self.device.type, _MOST_BLOCKS_ELSEWHERE)
        step = BATCHED_QUERIES if batched else max(_LEAST_QUERIES, -(-queries // most))
        seen = [*self._seen(step)]
        groups = [[block] for block in range(len(seen))]
        if batched:
            whole = queries // step  # a smaller last block is a batch of its own
            sizes = np.array([len(keys) for keys in seen[:whole]])
            groups = [*_with_similar_sizes(sizes, 1 if self._fixed_shape else _MOST_BATCHES), *groups[whole:]]
        batches = [self._batch_of(group, seen, step, _GPU_LANES if batched else _LANES) for group in groups]
        blocks = [block for group in groups for block in group]
        if blocks == [*range(len(seen))]:
            return batches, None
        order = np.concatenate([np.arange(block * step, min(block * step + step, queries)) for block in blocks])
        return batches, send(order.argsort(), self.device)

    def _seen(self, step: int) -> Iterator[np.ndarray]:
        """The keys that some query of each block sees: all cached ones, open ones before it, and its own."""
        queries, cached = len(self._ends), np.arange(self._cached)
        before = np.zeros(0, dtype=np.int64)
        for begin in range(0, queries, step):
            end = min(begin + step, queries)
            own = np.concatenate([before[self._ends[before] > begin], np.arange(begin, end)])
            yield np.concatenate([cached, self._cached + own])
            before = own[self._ends[own] > end]

    def _batch_of(self, blocks: list[int], seen: list[np.ndarray], step: int, lanes: int) -> _Batch:
        """Make a batch of some blocks, in ascending order, whose keys are padded to the same number."""
        width = -(-max(len(seen[block]) for block in blocks) // lanes) * lanes
        if self._fixed_shape:
            width = 1 << (width - 1).bit_length()  # a power of two
        keys = np.full((len(blocks), width), -1)
        for row, block in zip(keys, blocks, strict=True):
            row[: len(seen[block])] = seen[block]
        begins = step * np.array(blocks)
        queries = min(step, self.shape[-2] - int(begins[0]))
        scattered = blocks[-1] - blocks[0] + 1 > len(blocks)
        places = send(np.array(blocks), self.device) if scattered else None
        chosen = send(np.maximum(keys, 0).astype(np.int32), self.device)
        return _Batch(int(begins[0]), places, queries, chosen, self._mask_of(begins, queries, keys))

    def _mask_of(self, begins: np.ndarray, queries: int, keys: np.ndarray) -> Tensor:
        """The mask of some blocks, built on the device, `(blocks, 1, queries, keys)`.

        Args:
            begins: Index of the first query of each block.
            queries: Number of queries in each block.
            keys: Indices of the keys of each block, -1 for padding, `(blocks, keys)`.
        """
        own = keys - self._cached
        ends = np.where(own < 0, len(self._ends), self._ends[np.maximum(own, 0)])
        ends[keys < 0] = 0  # no query sees padding
        first, end, begin = (send(part, self.device) for part in (own[:, None], ends[:, None], begins[:, None, None]))
        query = begin + torch.arange(queries, device=self.device)[:, None]  # (blocks, queries, 1)
        hidden = (query < first) | (query >= end)  # (blocks, queries, keys)
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(self.dtype).min)[:, None]


def batches_blocks(device: torch.device) -> bool:
    """Whether blocks are batched on a device."""
    return device.type == "cuda"


def _with_similar_sizes(sizes: np.ndarray, most: int) -> list[list[int]]:
    """Group blocks with about as many keys.

    Args:
        sizes: Number of keys of each block.
        most: Maximum number of groups.

    Returns:
        The blocks of each group, in ascending order.
    """
    order = np.argsort(-sizes, kind="stable")
    for waste in (*_WASTE, np.inf) if len(sizes) else ():
        cuts, total = [0], 0
        for place, size in enumerate(sizes[order].tolist()):
            total += size
            if sizes[order[cuts[-1]]] * (place + 1 - cuts[-1]) > waste * total:
                cuts.append(place)
                total = size
        if len(cuts) <= most:
            return [sorted(order[low:high].tolist()) for low, high in pairwise([*cuts, len(sizes)])]
    return []


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
    """Attention of one block in some rows, `(rows, heads, queries, head size)`.

    Heads of queries that share keys and values are one product, `(rows x heads of keys, their queries, head size)`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    asking = (query * scale).reshape(len(keys), -1, query.shape[-1])
    scores = torch.bmm(asking, keys.transpose(1, 2))
    scores.view(*query.shape[:3], -1).add_(attn_mask)
    return torch.bmm(scores.softmax(dim=-1), values).view(*query.shape[:3], -1)
