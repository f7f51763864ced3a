"""Arrange prompts as a tree of tokens, with NumPy and without a loop over tokens.

The tokens stand in depth-first order: those that continue token `k` directly follow it and end before `ends[k]`. Token
`q` therefore sees token `k` exactly if `k <= q < ends[k]`. The packed row, its positions and its attention mask all
follow from this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

_AT_ONCE = 4096  # rows compared at once, to bound memory


@dataclass(frozen=True)
class TokenRows:
    """Token ids of many prompts in one array.

    Attributes:
        ids: The token ids of all prompts, `(tokens of all prompts,)`.
        lengths: Number of tokens of each prompt, at least one, `(prompts,)`.
        begins: Index of the first token of each prompt, `(prompts,)`.
    """

    ids: np.ndarray
    lengths: np.ndarray
    begins: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> TokenRows:
        """Copy lists of token ids into one array."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        stops = lengths.cumsum()
        ids = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
        return cls(ids, lengths, stops - lengths)

    def sorted(self) -> np.ndarray:
        """Indices of the prompts in lexicographic order; identical prompts keep their order."""
        content = self.ids.astype(">u4").tobytes()  # big-endian, so that bytes sort like numbers
        begins = (4 * self.begins).tolist()
        keys = [content[begin : begin + 4 * size] for begin, size in zip(begins, self.lengths.tolist(), strict=True)]
        return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)

    def shared(self, order: np.ndarray) -> np.ndarray:
        """Number of leading tokens that each prompt shares with the one before it; 0 for the first.

        Args:
            order: Indices of the prompts, in the order to compare them.
        """
        found = np.zeros(len(order), dtype=np.int64)
        for low in range(1, len(order), _AT_ONCE):
            before, after = order[low - 1 : low - 1 + _AT_ONCE], order[low : low + _AT_ONCE]
            found[low : low + _AT_ONCE] = self._common(before[: len(after)], after)
        return found

    def _common(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Length of the prefix that two prompts share, for many pairs of prompts."""
        shorter = np.minimum(self.lengths[ones], self.lengths[others])
        begins = shorter.cumsum() - shorter
        tokens = np.arange(int(shorter.sum())) - np.repeat(begins, shorter)  # index in its own prompt
        same = self.ids[np.repeat(self.begins[ones], shorter) + tokens]
        differ = same != self.ids[np.repeat(self.begins[others], shorter) + tokens]
        return np.minimum.reduceat(np.where(differ, tokens, np.repeat(shorter, shorter)), begins)


@dataclass(frozen=True)
class TokenTree:
    """The distinct tokens of some prompts in depth-first order.

    Attributes:
        ids: Token ids, `(tokens,)`.
        depths: Index of each token in its prompt, `(tokens,)`.
        ends: Index after the last token that sees a token, `(tokens,)`.
        places: For each prompt, the indices of its tokens.
    """

    ids: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    places: list[np.ndarray]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], *, ordered: bool = False) -> TokenTree:
        """Arrange prompts, in their own order if it is depth-first, else in lexicographic order.

        Args:
            rows: Token ids of each prompt, at least one token each.
            ordered: Whether they are known to be in lexicographic order, which saves half of the time.

        Example:
            >>> tree = TokenTree.of([[5, 6, 7], [5, 6, 8, 9], [5, 4]])
            >>> tree.ids.tolist(), tree.ends.tolist()
            ([5, 6, 7, 8, 9, 4], [6, 5, 3, 5, 5, 6])
        """
        prompts = TokenRows.of(rows)
        order = np.arange(len(rows))
        shared = prompts.shared(order)
        if not ordered:
            other = prompts.sorted()
            most = prompts.shared(other)
            if shared.sum() < most.sum():  # a prefix would be repeated
                order, shared = other, most
        own = prompts.lengths[order] - shared
        begins = own.cumsum() - own
        count = int(own.sum())
        first = np.repeat(prompts.begins[order], own)
        chosen = first + np.repeat(shared - begins, own) + np.arange(count)
        ends, places = _follow(order, shared, prompts.lengths[order], begins, count)
        return cls(prompts.ids[chosen], chosen - first, ends, places)

    def padded(self, multiple: int) -> TokenTree:
        """Append tokens that no prompt has and no other token sees, up to a multiple of some length.

        Args:
            multiple: The length.

        Example:
            >>> TokenTree.of([[5, 6, 7]]).padded(4).ends.tolist()
            [3, 3, 3, 4]
        """
        more = -len(self.ids) % multiple
        if not more:
            return self
        nothing = np.zeros(more, dtype=self.ids.dtype)
        ends = np.concatenate([self.ends, len(self.ids) + np.arange(1, more + 1)])
        depths = np.concatenate([self.depths, nothing.astype(self.depths.dtype)])
        return TokenTree(np.concatenate([self.ids, nothing]), depths, ends, self.places)


def _follow(
    order: np.ndarray, shared: np.ndarray, lengths: np.ndarray, begins: np.ndarray, count: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The ends of all tokens, and the places of each prompt's tokens.

    `path` holds the tokens of the last prompt. Those that the next prompt does not share end where it begins.
    """
    every = np.arange(count)
    ends = np.full(count, count)
    path = np.zeros(int(lengths.max()), dtype=np.int64)
    places = [path[:0]] * len(order)
    before = 0
    steps = zip(order.tolist(), shared.tolist(), lengths.tolist(), begins.tolist(), strict=True)
    for prompt, common, length, begin in steps:
        ends[path[common:before]] = begin
        path[common:length] = every[begin : begin + length - common]
        places[prompt] = path[:length].copy()
        before = length
    return ends, places


def distinct_tokens(rows: Sequence[Sequence[int]]) -> int:
    """Number of distinct prefixes of some prompts, which is the number of tokens that a packed row holds.

    Args:
        rows: Token ids of each prompt, at least one token each.

    Example:
        >>> distinct_tokens([[5, 6, 7], [5, 4], [5, 6, 8, 9]])
        6
    """
    prompts = TokenRows.of(rows)
    return int(prompts.lengths.sum() - prompts.shared(prompts.sorted()).sum())
