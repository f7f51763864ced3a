"""Run planned batches and shared prefixes."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.capture.batches import Batch
from engine.capture.prefixes import Plan, Trunk, batch_tokens, can_be_compiled
from engine.capture.reading import Read, Reading, Rows
from engine.errors import CaptureError, out_of_memory
from engine.models.forward import TokenBatch, input_device
from engine.models.shortcuts import Packed, continued, packer
from engine.remedies import Remedy

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

    from engine.models.structure import Blocks


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassStates:
    """The requested states of all prompts of one batch, concatenated per layer.

    Attributes:
        prompts: Indices of the prompts in the list of all prompts.
        kept: Number of states of each prompt; 1 for means.
        layers: Layer to states, prompt after prompt, `(states of all prompts, hidden)`.
        packed: Whether the prompts shared a row.
        checked: Whether a GPU found every state finite and none all zero; False if nobody has checked.
    """

    prompts: list[int]
    kept: list[int]
    layers: Rows
    packed: bool = False
    checked: bool = False


class _Pending(NamedTuple):
    """A started batch whose states may still be being copied.

    Attributes:
        batch: The batch.
        spans: First requested token of each prompt, and the one after the last.
        own: Number of requested tokens of each prompt that the batch itself reads.
        reading: Their states, or their sums.
        trunks: States of the other requested tokens.
        mean: Whether to average the states of each prompt.
    """

    batch: Batch
    spans: list[tuple[int, int]]
    own: list[int]
    reading: Reading
    trunks: list[_Trunk]
    mean: bool

    def finish(self) -> PassStates:
        """Wait for the states, and prepend those of the shared prefixes or average them with those."""
        states = self.reading.arrive()  # those of the prefixes, from earlier passes, have arrived then
        kept = [stop - start for start, stop in self.spans]
        if self.mean:
            states, kept = _means(states, self.spans, self.trunks), [1] * len(kept)
        elif self.trunks:
            states = _with_past(states, self.spans, self.own, self.trunks)
        checked = all(reading.checked() for reading in (self.reading, *(trunk.reading for trunk in self.trunks)))
        return PassStates(self.batch.prompts, kept, states, self.batch.packed, checked)


class _Trunk(NamedTuple):
    """Requested tokens of a shared prefix: the first, their number, their states."""

    first: int
    tokens: int
    reading: Reading


@dataclass(frozen=True)
class _Past:
    """The shared prefixes already run for the next prompts.

    Attributes:
        cache: Keys and values of their tokens; None without a prefix.
        kept: Requested states of each prefix that has any.
    """

    cache: DynamicCache | None = None
    kept: list[_Trunk] = field(default_factory=list)


class Passes:
    """Runs a plan: shared prefixes first, then the batches that continue them.

    Args:
        rows: Token ids of each prompt.
        spans: First requested token of each prompt, and the one after the last.
        read: Runs one batch.
        model: The model.
        blocks: Its blocks.
        mean: Whether to average the requested states of each prompt, where they are computed.
        ahead: Number of batches to start before waiting for the states of one.
        boundaries: Number of tokens of each prompt before its response; None for one without a response.
        compiled_tokens: Length to which batches that fill at least half of it are padded, for compiled blocks; None
            without those.
    """

    def __init__(
        self,
        rows: Sequence[list[int]],
        spans: Sequence[tuple[int, int]],
        read: Read,
        model: PreTrainedModel,
        blocks: Blocks,
        *,
        mean: bool = False,
        ahead: int = 0,
        boundaries: Sequence[int | None],
        compiled_tokens: int | None = None,
    ) -> None:
        self._rows, self._spans, self._read = rows, spans, read
        self._device, self._mean = input_device(model), mean
        self._ahead, self._compiled_tokens = ahead, compiled_tokens
        self._model, self._blocks = model, blocks
        self._most_tokens: int | None = None  # set once memory has run out
        self._boundaries = boundaries

    def run(self, plan: Plan) -> Iterator[PassStates]:
        """Run a plan.

        A batch is yielded once `ahead` later batches have started. The GPU works on those while the caller processes
        this one, and if a model is split over several GPUs, each of them has a batch to work on.

        Args:
            plan: Shared prefixes and batches.

        Yields:
            The states of each batch.

        Raises:
            CaptureError: Memory does not suffice for a single prompt.
        """
        pending = deque[_Pending]()
        for batch in self._start(plan, _Past()):
            pending.append(batch)
            if len(pending) > self._ahead:
                yield pending.popleft().finish()
        for batch in pending:
            yield batch.finish()

    def _start(self, plan: Plan, past: _Past) -> Iterator[_Pending]:
        for step in plan:
            if isinstance(step, Trunk):
                yield from self._start(step.branches, self._run_trunk(step, past))
            else:
                yield from self._start_batch(step, past)

    @cached_property
    def _pack(self) -> Callable[..., Packed]:
        return packer(self._model, self._blocks)

    def _run_trunk(self, trunk: Trunk, past: _Past) -> _Past:
        ids = self._rows[trunk.prompts[0]][trunk.start : trunk.stop]
        cache = continued(past.cache)
        if trunk.start:
            batch = self._pack([ids], start=trunk.start, cache=cache, multiple=1).batch
        else:
            batch = TokenBatch.of([ids], self._device, cache)
        spans = [self._spans[index] for index in trunk.prompts]
        first = max(min(start for start, _ in spans), trunk.start)
        last = min(max(stop for _, stop in spans), trunk.stop)
        wanted = np.arange(first, max(first, last)) - trunk.start
        try:
            reading = self._read(batch, wanted, None)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise self._too_large(trunk.prompts[0]) from error
        return _Past(cache, [*past.kept, _Trunk(first, len(wanted), reading)] if len(wanted) else past.kept)

    def _start_batch(self, batch: Batch, past: _Past) -> Iterator[_Pending]:
        """Start a batch; halve it, and later ones of that size, if memory runs out."""
        waiting = [batch]
        while waiting:
            batch = waiting.pop()
            tokens = batch_tokens(batch, self._rows)
            if len(batch.prompts) > 1 and self._most_tokens is not None and tokens > self._most_tokens:
                waiting += reversed(batch.halves())
                continue
            try:
                pending = self._read_batch(batch, past)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if len(batch.prompts) == 1:
                    raise self._too_large(batch.prompts[0]) from error
                pending = None
            if pending is None:  # outside of `except`, where the traceback would keep tensors alive
                self._most_tokens = tokens // 2
                log.info("out of memory in a batch of %d tokens: continuing with %d", tokens, self._most_tokens)
                free_failed_pass(self._device)
                waiting.append(batch)
            else:
                yield pending

    def _read_batch(self, batch: Batch, past: _Past) -> _Pending:
        tokens, places = self._lay_out(batch, past)
        spans = [self._spans[index] for index in batch.prompts]
        wanted = [
            where[max(start - batch.start, 0) : max(stop - batch.start, 0)]
            for (start, stop), where in zip(spans, places, strict=True)
        ]
        own = [len(where) for where in wanted]
        reading = self._read(tokens, np.concatenate(wanted), own if self._mean else None)
        return _Pending(batch, spans, own, reading, past.kept, self._mean)

    def _lay_out(self, batch: Batch, past: _Past) -> tuple[TokenBatch, list[np.ndarray]]:
        """The tokens of a batch, and each prompt's indices into the flattened batch."""
        ids = [self._rows[index][batch.start :] for index in batch.prompts]
        if batch.packed and (len(ids) > 1 or batch.start):
            cache = continued(past.cache) if batch.start else None
            length = self._compiled_tokens
            if length is not None and not can_be_compiled(batch, self._rows, length):
                length = None
            how = partial(self._pack, multiple=length, fixed_shape=length is not None, ordered=True)
            packed = how(ids, start=batch.start, cache=cache)
            return packed.batch, packed.places
        width = max(map(len, ids))
        places = [np.arange(row * width, row * width + len(one)) for row, one in enumerate(ids)]
        boundary = self._boundaries[batch.prompts[0]] if len(ids) == 1 else None  # added code sees prompts one by one
        return TokenBatch.of(ids, self._device, boundary=boundary), places

    def _too_large(self, index: int) -> CaptureError:
        return CaptureError(
            f"memory does not suffice for a single prompt of {len(self._rows[index])} tokens",
            next_step=Remedy.USE_LESS_MEMORY,
        )


def _with_past(states: Rows, spans: Sequence[tuple[int, int]], own: Sequence[int], trunks: Sequence[_Trunk]) -> Rows:
    """Prepend the states of shared prefixes to the states of each prompt.

    Args:
        states: States read by the batch itself.
        spans: First requested token of each prompt, and the one after the last.
        own: Number of states of each prompt in `states`.
        trunks: States of the shared prefixes.
    """
    begins = list(accumulate((trunk.tokens for trunk in trunks), initial=0))
    order: list[np.ndarray] = []
    for (start, stop), count, begin in zip(spans, own, accumulate(own, initial=begins[-1]), strict=False):
        for trunk, offset in zip(trunks, begins, strict=False):
            low, high = (min(max(token - trunk.first, 0), trunk.tokens) for token in (start, stop))
            order.append(np.arange(offset + low, offset + high))
        order.append(np.arange(begin, begin + count))
    places = torch.from_numpy(np.concatenate(order))
    return {
        layer: torch.cat([*(trunk.reading.rows[layer] for trunk in trunks), last]).index_select(0, places)
        for layer, last in states.items()
    }


def _means(sums: Rows, spans: Sequence[tuple[int, int]], trunks: Sequence[_Trunk]) -> Rows:
    """Average the states of each prompt, `(prompts, hidden)` in float32.

    Args:
        sums: Sums of the states read by the batch itself, in float64.
        spans: First requested token of each prompt, and the one after the last.
        trunks: States of the shared prefixes.
    """
    whole = torch.tensor(spans)
    parts = [((whole - trunk.first).clamp(0, trunk.tokens), trunk.reading.rows) for trunk in trunks]
    counts = whole[:, 1:] - whole[:, :1]

    def mean(layer: int, total: Tensor) -> Tensor:
        for part, rows in parts:
            until = torch.nn.functional.pad(rows[layer].double().cumsum(0), (0, 0, 1, 0))  # sums of the first tokens
            total = total + until[part[:, 1]] - until[part[:, 0]]
        return (total / counts).float()

    return {layer: mean(layer, total) for layer, total in sums.items()}


def free_failed_pass(device: torch.device) -> None:
    """Free the memory of a forward pass that ran out of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
