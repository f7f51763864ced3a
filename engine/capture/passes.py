"""States on their way from a device to the CPU, which need not be waited for at once.

Knows devices and tensors. Does not know what was run, or who waits.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from engine.capture.batches import Batch
from engine.capture.prefixes import Plan, Trunk, batch_tokens
from engine.errors import CaptureError, Remedy
from engine.models.forward import TokenBatch
from engine.models.shortcuts import continued, pack_prompts

if TYPE_CHECKING:
    from transformers import DynamicCache


Rows = dict[int, Tensor]
"""Layer to states, `(tokens, hidden)`, on the CPU."""


class Reading(NamedTuple):
    """States of a pass, which may still be on their way from a GPU.

    Attributes:
        rows: The states, not to be looked at before `arrive`.
        events: What is waited for.
    """

    rows: Rows
    events: list[torch.cuda.Event]

    @classmethod
    def begun_on(cls, devices: Iterable[torch.device], rows: Rows) -> Reading:
        """States whose copies have been ordered of these devices; only CUDA's can be gone on with meanwhile."""
        events = []
        for device in devices:
            if device.type == "cuda":
                with torch.cuda.device(device):
                    events.append(torch.cuda.current_stream().record_event())
            elif device.type != "cpu":
                torch.accelerator.synchronize(device)
        return cls(rows, events)

    def arrive(self) -> Rows:
        """Wait for the states."""
        for event in self.events:
            event.synchronize()
        return self.rows


log = logging.getLogger(__name__)

Read = Callable[[TokenBatch, "Tensor"], Reading]
"""Runs tokens; returns the states of the tokens wanted, by their place in the flattened batch."""


@dataclass(frozen=True)
class PassStates:
    """The wanted states of the prompts of one pass, those of all in one tensor a layer.

    Attributes:
        prompts: Places of the prompts in the list of all.
        kept: Number of states of each.
        layers: Layer to states, one prompt after the other, `(states of all, hidden)`.
    """

    prompts: list[int]
    kept: list[int]
    layers: Rows


class _Begun(NamedTuple):
    """A pass whose states may still be on their way.

    Attributes:
        prompts: As of what it becomes.
        spans: First wanted token of each prompt, and the one after the last.
        own: How many of them the pass itself reads.
        reading: Their states.
        trunks: Where the others are.
    """

    prompts: list[int]
    spans: list[tuple[int, int]]
    own: list[int]
    reading: Reading
    trunks: list[_Trunk]

    def finish(self) -> PassStates:
        """Wait for the states, and put those of trunks before them."""
        states = self.reading.arrive()
        if self.trunks:
            states = _with_past(states, self.spans, self.own, self.trunks)
        return PassStates(self.prompts, [stop - start for start, stop in self.spans], states)


class _Trunk(NamedTuple):
    """The wanted part of a trunk: its first token, how many they are, and their states."""

    first: int
    tokens: int
    rows: Rows


@dataclass(frozen=True)
class _Past:
    """What trunks have run of the prompts that are next.

    Attributes:
        cache: Keys and values of those tokens; None where there are none.
        kept: What is wanted of each, if anything is.
    """

    cache: DynamicCache | None = None
    kept: list[_Trunk] = field(default_factory=list)


class Passes:
    """Runs plans over prompts.

    Args:
        rows: Token ids of each prompt.
        spans: First wanted token of each prompt, and the one after the last.
        read: Runs one batch.
        device: Where tokens belong.
        dtype: Of the model.
        ahead: How many passes are begun before the states of one are waited for.
    """

    def __init__(
        self,
        rows: Sequence[list[int]],
        spans: Sequence[tuple[int, int]],
        read: Read,
        device: torch.device,
        dtype: torch.dtype,
        ahead: int = 0,
    ) -> None:
        self._rows, self._spans, self._read = rows, spans, read
        self._device, self._dtype, self._ahead = device, dtype, ahead
        self._most_tokens: int | None = None  # known once memory has run out

    def run(self, plan: Plan) -> Iterator[PassStates]:
        """Run a plan.

        A pass is handed over when as many others as run ahead are under way: while a GPU is at these, the caller does
        what it does with that one, and of several GPUs with a part of the model each, every one has a pass to work on.

        Args:
            plan: Trunks and batches.

        Yields:
            The states of each pass that ends prompts.

        Raises:
            CaptureError: There is too little memory for one prompt by itself.
        """
        begun = deque[_Begun]()
        for batch in self._begin(plan, _Past()):
            begun.append(batch)
            if len(begun) > self._ahead:
                yield begun.popleft().finish()
        for batch in begun:
            yield batch.finish()

    def _begin(self, plan: Plan, past: _Past) -> Iterator[_Begun]:
        for step in plan:
            if isinstance(step, Trunk):
                yield from self._begin(step.branches, self._run_trunk(step, past))
            else:
                yield from self._begin_batch(step, past)

    def _run_trunk(self, trunk: Trunk, past: _Past) -> _Past:
        ids = self._rows[trunk.prompts[0]][trunk.start : trunk.stop]
        cache = continued(past.cache)
        if trunk.start:
            batch = pack_prompts([ids], self._device, self._dtype, start=trunk.start, cache=cache).batch
        else:
            batch = TokenBatch.of([ids], self._device, cache)
        spans = [self._spans[index] for index in trunk.prompts]
        first = max(min(start for start, _ in spans), trunk.start)
        last = min(max(stop for _, stop in spans), trunk.stop)
        wanted = torch.arange(first, max(first, last)) - trunk.start
        try:
            rows = self._read(batch, wanted).rows  # which are there when those of a later pass are
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            raise self._too_large(trunk.prompts[0]) from error
        return _Past(cache, [*past.kept, _Trunk(first, len(wanted), rows)] if len(wanted) else past.kept)

    def _begin_batch(self, batch: Batch, past: _Past) -> Iterator[_Begun]:
        """One batch; in halves when memory runs out, as are then all later ones of that size."""
        waiting = [batch]
        while waiting:
            batch = waiting.pop()
            tokens = batch_tokens(batch, self._rows)
            if len(batch.prompts) > 1 and self._most_tokens is not None and tokens > self._most_tokens:
                waiting += reversed(batch.halves())
                continue
            try:
                begun = self._read_batch(batch, past)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if len(batch.prompts) == 1:
                    raise self._too_large(batch.prompts[0]) from error
                begun = None
            if begun is None:  # here, where the error holds on to no tensor any more
                self._most_tokens = tokens // 2
                log.info("out of memory with %d tokens at once: going on with %d", tokens, self._most_tokens)
                gc.collect()
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                waiting.append(batch)
            else:
                yield begun

    def _read_batch(self, batch: Batch, past: _Past) -> _Begun:
        tokens, places = self._lay_out(batch, past)
        spans = [self._spans[index] for index in batch.prompts]
        wanted = [
            where[max(start - batch.start, 0) : max(stop - batch.start, 0)]
            for (start, stop), where in zip(spans, places, strict=True)
        ]
        reading = self._read(tokens, torch.tensor(list(chain(*wanted)), dtype=torch.long))
        return _Begun(batch.prompts, spans, [len(where) for where in wanted], reading, past.kept)

    def _lay_out(self, batch: Batch, past: _Past) -> tuple[TokenBatch, list[list[int]]]:
        """The tokens of a batch, and for each prompt where they lie in the flattened batch."""
        ids = [self._rows[index][batch.start :] for index in batch.prompts]
        if batch.packed and (len(ids) > 1 or batch.start):
            cache = continued(past.cache) if batch.start else None
            packed = pack_prompts(ids, self._device, self._dtype, start=batch.start, cache=cache)
            return packed.batch, packed.places
        width = max(map(len, ids))
        places = [list(range(row * width, row * width + len(one))) for row, one in enumerate(ids)]
        return TokenBatch.of(ids, self._device), places

    def _too_large(self, index: int) -> CaptureError:
        return CaptureError(
            f"there is too little memory for one prompt of {len(self._rows[index])} tokens by itself",
            next_step=Remedy.USE_LESS_MEMORY,
        )


def _with_past(states: Rows, spans: Sequence[tuple[int, int]], own: Sequence[int], trunks: Sequence[_Trunk]) -> Rows:
    """The states of prompts, each behind those that trunks have read of it.

    Args:
        states: What the pass itself came to.
        spans: First wanted token of each prompt, and the one after the last.
        own: How many of them are in `states`.
        trunks: Where the others are.
    """
    begins = list(accumulate((trunk.tokens for trunk in trunks), initial=0))
    order: list[int] = []
    for (start, stop), count, begin in zip(spans, own, accumulate(own, initial=begins[-1]), strict=False):
        for trunk, offset in zip(trunks, begins, strict=False):
            low, high = (min(max(token - trunk.first, 0), trunk.tokens) for token in (start, stop))
            order += range(offset + low, offset + high)
        order += range(begin, begin + count)
    places = torch.tensor(order)
    return {
        layer: torch.cat([*(trunk.rows[layer] for trunk in trunks), last]).index_select(0, places)
        for layer, last in states.items()
    }


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether a device ran out of memory, or the CPU, for which PyTorch has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
