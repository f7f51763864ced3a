"""Plan batches that run each shared prefix once.

Prompts in lexicographic order form a tree: a prompt branches off its predecessor at the first token that differs.
Subtrees that fit into one batch are packed into one row, as many as fit. A prefix shared by several batches is a trunk,
which is run once before them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from engine.capture.batches import Batch, Limits
from engine.models.token_tree import TokenRows, distinct_tokens

# A separate forward pass for a trunk costs as much as this many tokens in another batch: it reads all weights, and on a
# GPU it takes Python as long as any other. The token budget accounts for that, so it is a share of the budget there.
_PASS_TOKENS = 64
_PASS_SHARE = 8
_UNCOMPILED = 0.3  # the share of its time that a pass saves if it runs compiled, or a little more
_MOST_FORKS = 100  # limits the recursion: a text and all its prefixes fork at every token


@dataclass(frozen=True)
class Trunk:
    """A prefix shared by several batches, and the batches that continue it.

    Attributes:
        prompts: The prompts that share it; the first provides the token ids.
        start: Its first token; the parent trunk has run the tokens before.
        stop: The token after its last; every prompt is longer.
        branches: The steps to run after it.
    """

    prompts: list[int]
    start: int
    stop: int
    branches: list[Trunk | Batch]


Plan = list[Trunk | Batch]


def shared_batches(rows: Sequence[list[int]], limits: Limits, *, compiled: bool = False) -> Plan:
    """Plan packed batches that run almost every shared prefix once.

    Args:
        rows: Token ids of each prompt; at least one prompt, and one token each.
        limits: Maximum size of a batch; a shared token counts once.
        compiled: Whether batches without a trunk run compiled, so that a trunk has to save more.

    Returns:
        Packed batches, under trunks where that saves time.

    Example:
        >>> [plan] = shared_batches([[1, 2, 3], [1, 2, 4], [1, 2, 3]], Limits(8))
        >>> plan.prompts, plan.packed
        ([0, 2, 1], True)
    """
    return _Planner(rows, limits, _UNCOMPILED if compiled else 0.0).plan()


def planned_tokens(plan: Plan, rows: Sequence[list[int]]) -> int:
    """Number of tokens that a plan runs, padding included.

    Example:
        >>> rows = [[1, 2, 3], [1, 2, 4], [1, 2, 3]]
        >>> planned_tokens(shared_batches(rows, Limits(8)), rows)
        4
    """
    total = 0
    for step in plan:
        if isinstance(step, Trunk):
            total += step.stop - step.start + planned_tokens(step.branches, rows)
        else:
            total += batch_tokens(step, rows)
    return total


def share_of(plan: Plan, rows: Sequence[list[int]], rank: int, count: int) -> Plan:
    """The share of a plan that one of several processes runs: whole batches, and the trunks that they continue.

    Consecutive batches go to one process, with about as many tokens for each.

    Args:
        plan: The plan, the same in all processes.
        rows: Token ids of each prompt.
        rank: Index of the process.
        count: Number of processes.

    Example:
        >>> plan = shared_batches([[1, 2], [3, 4], [5, 6], [7, 8]], Limits(2))
        >>> [step.prompts for step in share_of(plan, [[1, 2], [3, 4], [5, 6], [7, 8]], 1, 2)]
        [[2], [3]]
    """
    tokens = [batch_tokens(batch, rows) for batch in batches_of(plan)]
    until = np.cumsum(tokens)
    owners = iter(((until - np.array(tokens) / 2) * count / until[-1]).astype(int).tolist())
    return _kept(plan, owners, rank)


def batches_of(plan: Plan) -> Iterator[Batch]:
    """The batches of a plan, in the order that they run in."""
    for step in plan:
        if isinstance(step, Trunk):
            yield from batches_of(step.branches)
        else:
            yield step


def _kept(plan: Plan, owners: Iterator[int], rank: int) -> Plan:
    """The steps of a plan that one owner runs; `owners` names the owner of each batch."""
    kept: Plan = []
    for step in plan:
        if not isinstance(step, Trunk):
            if next(owners) == rank:
                kept.append(step)
        elif branches := _kept(step.branches, owners, rank):
            kept.append(replace(step, branches=branches))
    return kept


def batch_tokens(batch: Batch, rows: Sequence[list[int]]) -> int:
    """Number of tokens that a batch runs, padding included."""
    if batch.tokens is not None:
        return batch.tokens
    if not batch.packed:
        return len(batch.prompts) * max(len(rows[index]) - batch.start for index in batch.prompts)
    return distinct_tokens([rows[index] for index in batch.prompts]) - batch.start


def can_be_compiled(batch: Batch, rows: Sequence[list[int]], length: int) -> bool:
    """Whether a batch may be padded to the length of compiled rows: if it is at least half as long, and needs no trunk.

    Args:
        batch: The batch.
        rows: Token ids of each prompt.
        length: Length of compiled rows.
    """
    alone = len(batch.prompts) == 1 and not batch.start
    return batch.packed and not alone and not batch.start and length / 2 <= batch_tokens(batch, rows) <= length


def some_compiled(plan: Plan, rows: Sequence[list[int]], length: int) -> bool:
    """Whether any batch of a plan can run compiled: see `can_be_compiled`."""
    return any(can_be_compiled(batch, rows, length) for batch in batches_of(plan))


class _Packed(NamedTuple):
    """Prompts that will share a row.

    Attributes:
        ranges: Ranges of prompts in lexicographic order.
        start: Number of tokens already run.
    """

    ranges: list[tuple[int, int]]
    start: int


_Step = Trunk | _Packed


class _Planner:
    """Builds a plan over prompts in lexicographic order.

    `low` to `high` is a range of prompts in that order that share a prefix.

    Args:
        rows: Token ids of each prompt.
        limits: Maximum size of a batch.
        least_share: Share of the tokens that a trunk has to save.
    """

    def __init__(self, rows: Sequence[list[int]], limits: Limits, least_share: float) -> None:
        prompts = TokenRows.of(rows)
        order = prompts.sorted()
        self._order: list[int] = order.tolist()
        self._lengths = prompts.lengths[order]
        self._shared = prompts.shared(order)
        own = (self._lengths - self._shared).cumsum()
        self._until: list[int] = [0, *own.tolist()]  # distinct tokens of all prompts before one
        self._limits, self._least_share = limits, least_share

    def plan(self) -> Plan:
        """Plan all prompts."""
        return self._filled(self._branches(0, len(self._order), 0))

    def _branches(self, low: int, high: int, start: int, depth: int = 0) -> list[_Step]:
        """Plan a range of prompts, `depth` forks down, with `start` tokens already run."""
        steps: list[_Step] = []
        for first, last, stop, forks in self._trunks(low, high, start, depth):
            steps += self._cut(low, first, start)
            below = self._filled(self._branches(first, last, stop, forks + 1))
            steps.append(Trunk(self._order[first:last], start, stop, below))
            low = last
        return [*steps, *self._cut(low, high, start)]

    def _trunks(self, low: int, high: int, start: int, depth: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield ranges whose common prefix is worth a pass, the token after it, and how many forks they are down."""
        if self._fits(low, high, start) or depth >= _MOST_FORKS:
            return
        common = int(self._shared[low + 1 : high].min())
        stop = min(common, int(self._lengths[low:high].min()) - 1)
        tokens = self._tokens(low, high, start)
        saved = (stop - start) * (tokens // self._limits.tokens)
        if saved > max(_PASS_TOKENS, self._limits.tokens // _PASS_SHARE, self._least_share * tokens):
            yield low, high, stop, depth
        else:
            for fork in self._forks(low, high, common):
                yield from self._trunks(*fork, start, depth + 1)

    def _cut(self, low: int, high: int, start: int) -> Iterator[_Packed]:
        """Cut a range into full batches; the first prompt of each repeats what it shares with the one before."""
        until, most = self._until, self._limits.most_prompts
        while low < high:
            room = self._limits.tokens - int(self._lengths[low]) + start + until[low + 1]  # in terms of `until`
            end = min(max(bisect_right(until, room, low + 1, high + 1) - 1, low + 1), low + most)
            if end < high:
                end = self._best_cut(low, end, room)
            yield _Packed([(low, end)], start)
            low = end

    def _best_cut(self, low: int, end: int, room: int) -> int:
        """The cut with the fewest repeated tokens, where a batch may stay a little emptier to repeat fewer.

        Passes cost more than their tokens, so each token of room costs a share of one.
        """
        until, shared = self._until, self._shared
        least = bisect_left(until, room - self._limits.tokens // _PASS_SHARE, low + 1, end)
        return min(range(end, least - 1, -1), key=lambda cut: int(shared[cut]) - until[cut] // _PASS_SHARE)

    def _filled(self, steps: list[_Step]) -> Plan:
        """Merge batches so that fewer are run.

        Each batch, largest first, joins the fullest batch with room for it. This is "best fit decreasing" (Johnson
        1973, "Near-Optimal Bin Packing Algorithms").
        """
        passes: list[_Packed] = []
        prompts: list[int] = []
        room: list[tuple[int, int]] = []  # (tokens that still fit, index of the batch), ascending
        batches = [(self._row_tokens(step), step) for step in steps if isinstance(step, _Packed)]
        for tokens, batch in sorted(batches, key=lambda entry: -entry[0]):
            count = sum(high - low for low, high in batch.ranges)
            place = bisect_left(room, (tokens, 0))
            while place < len(room) and not self._limits.allow(prompts[room[place][1]] + count, 0):
                place += 1
            if place == len(room):
                insort(room, (self._limits.tokens - tokens, len(passes)))
                passes.append(batch)
                prompts.append(count)
                continue
            _, number = room.pop(place)
            passes[number] = _Packed(passes[number].ranges + batch.ranges, batch.start)
            prompts[number] += count
            # Counted again, because merged branches may share tokens, which are now run once.
            insort(room, (self._limits.tokens - self._row_tokens(passes[number]), number))
        return [*(step for step in steps if isinstance(step, Trunk)), *map(self._batch, passes)]

    def _batch(self, packed: _Packed) -> Batch:
        prompts = [index for low, high in sorted(packed.ranges) for index in self._order[low:high]]
        return Batch(prompts, packed.start, packed=True, tokens=self._row_tokens(packed))

    def _forks(self, low: int, high: int, common: int) -> list[tuple[int, int]]:
        """Split the range wherever two neighbors share only the prefix common to all."""
        cuts = low + 1 + np.flatnonzero(self._shared[low + 1 : high] == common)
        return list(pairwise([low, *cuts.tolist(), high]))

    def _fits(self, low: int, high: int, start: int) -> bool:
        return self._limits.allow(high - low, self._tokens(low, high, start))

    def _tokens(self, low: int, high: int, start: int) -> int:
        """Number of tokens to run for the range from `start`, shared ones counted once."""
        return int(self._lengths[low]) - start + self._until[high] - self._until[low + 1]

    def _row_tokens(self, packed: _Packed) -> int:
        """Number of tokens to run for all ranges, shared ones counted once."""
        ranges = sorted(packed.ranges)
        repeated = (
            max(int(self._shared[before[1] : after[0] + 1].min()), packed.start) - packed.start
            for before, after in pairwise(ranges)
        )
        return sum(self._tokens(low, high, packed.start) for low, high in ranges) - sum(repeated)
