"""Plan batches that run each shared prefix once.

Prompts in lexicographic order form a tree: a prompt branches off its predecessor at the first token that differs.
Subtrees that fit into one batch are packed into one row, as many as fit. A prefix shared by several batches is a trunk,
which is run once before them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from engine.capture.batches import Batch, Limits

# A separate forward pass for a trunk reads all weights, which costs as much as this many tokens in another batch.
_PASS_TOKENS = 64
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


def shared_batches(rows: Sequence[list[int]], limits: Limits) -> Plan:
    """Plan packed batches that run almost every shared prefix once.

    Args:
        rows: Token ids of each prompt.
        limits: Maximum size of a batch; a shared token counts once.

    Returns:
        Packed batches, under trunks where that saves time.

    Example:
        >>> [plan] = shared_batches([[1, 2, 3], [1, 2, 4], [1, 2, 3]], Limits(8))
        >>> plan.prompts, plan.packed
        ([0, 2, 1], True)
    """
    planner = _Planner(rows, limits)
    return planner.filled(planner.branches(0, len(rows), 0))


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


def batch_tokens(batch: Batch, rows: Sequence[list[int]]) -> int:
    """Number of tokens that a batch runs, padding included."""
    if not batch.packed:
        return len(batch.prompts) * max(len(rows[index]) - batch.start for index in batch.prompts)
    ordered = sorted(rows[index] for index in batch.prompts)
    fresh = (len(row) - max(_common(before, row), batch.start) for before, row in pairwise(ordered))
    return len(ordered[0]) - batch.start + sum(fresh)


class _Planner:
    """Builds a plan over prompts in lexicographic order.

    `low` to `high` is a range of prompts in that order that share a prefix.
    """

    def __init__(self, rows: Sequence[list[int]], limits: Limits) -> None:
        self._rows = rows
        self._order = sorted(range(len(rows)), key=lambda index: rows[index])
        self._lengths = [len(rows[index]) for index in self._order]
        self._shared = [0, *(_common(rows[one], rows[other]) for one, other in pairwise(self._order))]
        fresh = (length - shared for length, shared in zip(self._lengths, self._shared, strict=True))
        self._fresh = list(accumulate(fresh, initial=0))
        self._limits = limits

    def branches(self, low: int, high: int, start: int, depth: int = 0) -> Plan:
        """Plan a range of prompts, `depth` forks down, with `start` tokens already run."""
        if self._fits(low, high, start):
            return [Batch(self._order[low:high], start, packed=True)]
        common = min(self._shared[low + 1 : high])
        stop = min(common, min(self._lengths[low:high]) - 1)
        passes = self._tokens(low, high, start) // self._limits.tokens
        if (stop - start) * passes > _PASS_TOKENS:
            below = self.filled(self.branches(low, high, stop, depth + 1))
            return [Trunk(self._order[low:high], start, stop, below)]
        if depth >= _MOST_FORKS:
            return self._merged([(i, i + 1) for i in range(low, high)], start, depth)
        return self._merged(self._forks(low, high, common), start, depth)

    def filled(self, plan: Plan) -> Plan:
        """Merge batches so that fewer are run.

        Each batch, largest first, joins the fullest batch with room for it. This is "best fit decreasing" (Johnson
        1973, "Near-Optimal Bin Packing Algorithms").
        """
        passes: list[Batch] = []
        room: list[tuple[int, int]] = []  # (tokens that still fit, index of the batch), ascending
        batches = [(batch_tokens(step, self._rows), step) for step in plan if isinstance(step, Batch)]
        for tokens, batch in sorted(batches, key=lambda entry: -entry[0]):
            place = bisect_left(room, (tokens, 0))
            while place < len(room) and not self._limits.allow(
                len(passes[room[place][1]].prompts) + len(batch.prompts), 0
            ):
                place += 1
            if place == len(room):
                insort(room, (self._limits.tokens - tokens, len(passes)))
                passes.append(batch)
                continue
            _, number = room.pop(place)
            passes[number] = replace(batch, prompts=passes[number].prompts + batch.prompts)
            # Counted again, because merged branches may share tokens, which are now run once.
            insort(room, (self._limits.tokens - batch_tokens(passes[number], self._rows), number))
        return [*(step for step in plan if isinstance(step, Trunk)), *passes]

    def _forks(self, low: int, high: int, common: int) -> list[tuple[int, int]]:
        """Split the range wherever two neighbors share only the prefix common to all."""
        cuts = [low, *(i for i in range(low + 1, high) if self._shared[i] == common), high]
        return list(pairwise(cuts))

    def _merged(self, forks: list[tuple[int, int]], start: int, depth: int) -> Plan:
        """Merge neighboring forks while they fit; split a fork that does not fit alone."""
        plan: Plan = []
        low, high = forks[0][0], forks[0][0]
        for fork_low, fork_high in forks:
            if self._fits(low, fork_high, start):
                high = fork_high
                continue
            if low < high:
                plan.append(Batch(self._order[low:high], start, packed=True))
            low, high = fork_low, fork_high
            if not self._fits(low, high, start):
                plan += self.branches(low, high, start, depth + 1)
                low = high
        if low < high:
            plan.append(Batch(self._order[low:high], start, packed=True))
        return plan

    def _fits(self, low: int, high: int, start: int) -> bool:
        return self._limits.allow(high - low, self._tokens(low, high, start))

    def _tokens(self, low: int, high: int, start: int) -> int:
        """Number of tokens to run for the range from `start`, shared ones counted once."""
        return self._lengths[low] - start + self._fresh[high] - self._fresh[low + 1]


def _common(one: list[int], other: list[int]) -> int:
    """Length of the prefix that two prompts share."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
