"""Run one forward pass and bring the requested states to the CPU; a GPU does not wait for the copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.capture.run_settings import Settings
from engine.capture.sites import find_taps
from engine.models.compiled import compiled_blocks
from engine.models.devices import send
from engine.models.forward import TokenBatch, read_taps, turn_of
from engine.models.products import onednn_products

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from engine.models.structure import Blocks

Rows = dict[int, Tensor]
"""Layer to states, `(tokens, hidden)`, on the CPU."""

Read = Callable[[TokenBatch, np.ndarray, Sequence[int] | None], "Reading"]
"""Runs a batch and reads the requested tokens: see `Reader`."""

_TOGETHER = 64 * 2**20  # bytes of states that are checked and copied together


class _Copy(NamedTuple):
    """States on their way from a GPU.

    Attributes:
        usable: Whether all are finite and none is all zero, a boolean scalar.
        event: CUDA event after which the values are valid.
    """

    usable: Tensor
    event: torch.cuda.Event


class Reading(NamedTuple):
    """States of a forward pass, possibly still being copied from a GPU.

    Attributes:
        rows: The states, or their sums; invalid until `arrive` returns.
        copies: Their copies from GPUs; empty if they are already there.
        all_copied: Whether all states came from GPUs.
    """

    rows: Rows
    copies: list[_Copy]
    all_copied: bool

    def arrive(self) -> Rows:
        """Wait for the copies and return the states."""
        for copy in self.copies:
            copy.event.synchronize()
        return self.rows

    def checked(self) -> bool:
        """Whether the GPU found every state finite and none all zero; False if nobody has checked.

        Valid after `arrive`.
        """
        return self.all_copied and all(bool(copy.usable) for copy in self.copies)


class Reader:
    """Runs the forward passes of a capture.

    Args:
        model: A checked model.
        blocks: Its blocks.
        settings: What to keep.
    """

    def __init__(self, model: PreTrainedModel, blocks: Blocks, settings: Settings) -> None:
        self._model, self._blocks, self._settings = model, blocks, settings
        self._taps = find_taps(settings.site, settings.layers, blocks, settings.model.receipt)
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._said: set[str] = set()

    def __call__(self, tokens: TokenBatch, wanted: np.ndarray, lengths: Sequence[int] | None) -> Reading:
        """Run a batch.

        Args:
            tokens: The batch.
            wanted: Indices of the tokens whose states are kept, in the flattened batch, `(kept tokens,)`.
            lengths: Number of those tokens of each prompt, to keep only the sum of their states, `(prompts, hidden)` in
                float64; None to keep each state.
        """
        places: dict[torch.device, tuple[Tensor, Tensor | None]] = {}
        outbox = _Outbox(self._streams)

        def keep(states: Tensor) -> int:
            device = states.device
            if device not in places:
                counts = None if lengths is None else send(np.array(lengths), _summing(device))
                places[device] = send(wanted, device), counts
            chosen, counts = places[device]
            kept = states.flatten(0, 1).index_select(0, chosen)
            return outbox.add(kept if counts is None else _sums(kept.to(counts.device), counts))

        settings, blocks = self._settings, self._blocks
        with (
            turn_of(blocks.decoder),  # the lock order used everywhere
            onednn_products(wanted=settings.onednn),
            compiled_blocks(blocks, wanted=tokens.fixed_shape, said=self._said),
        ):
            found = read_taps(self._model, blocks, tokens, self._taps, keep, to_the_end=not settings.use_hooks)
            outbox.flush()
        rows = {layer: outbox.states[number] for layer, number in found.items()}
        return Reading(rows, outbox.copies, outbox.all_copied)


class _Outbox:
    """Collects the kept states of a pass; checks those on a GPU there, and starts to copy them.

    A few large checks and copies take the place of one for each layer. Copies run on streams of their own, so that the
    next pass need not wait for them.

    Args:
        streams: Device to the stream for its copies; missing ones are added.
    """

    def __init__(self, streams: dict[torch.device, torch.cuda.Stream]) -> None:
        self.states: list[Tensor] = []
        self.copies: list[_Copy] = []
        self.all_copied = True
        self._streams = streams
        self._held: list[Tensor] = []

    def add(self, states: Tensor) -> int:
        """Add states, `(kept tokens, hidden)`, and return their index in `states` after `flush`."""
        if self._held and not _stackable(states, self._held[0]):
            self.flush()
        number = len(self.states) + len(self._held)
        if states.device.type == "cuda":
            self._hold(states)
        else:
            self.states.append(states.cpu())
            self.all_copied = False
        return number

    def flush(self) -> None:
        """Start to copy the states that were added."""
        if self._held:
            self._copy(self._held)
            self._held = []

    def _hold(self, states: Tensor) -> None:  # pragma: no cover - on a GPU, tested by test_gpu.py
        self._held.append(states)
        if len(self._held) * states.nbytes > _TOGETHER:
            self.flush()

    def _copy(self, held: list[Tensor]) -> None:  # pragma: no cover - on a GPU, tested by test_gpu.py
        states = torch.stack(held) if len(held) > 1 else held[0][None]  # (layers, kept tokens, hidden)
        device = states.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream, usable = self._streams[device], _usable(states)  # checked on the stream that has memory to use again
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            arrived = states.to("cpu", non_blocking=True)  # into pinned memory, which PyTorch keeps and uses again
            verdict = usable.to("cpu", non_blocking=True)
            event = stream.record_event()
        for sent in (states, usable):
            sent.record_stream(stream)
        self.states += arrived.unbind()
        self.copies.append(_Copy(verdict, event))


def _summing(device: torch.device) -> torch.device:
    """The device that adds states up: the CPU for Apple's GPUs, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _sums(states: Tensor, lengths: Tensor) -> Tensor:
    """Sums of consecutive states in float64, `(prompts, hidden)`; the same in every run, also on a GPU."""
    return torch.segment_reduce(states.double(), "sum", lengths=lengths, axis=0, unsafe=True)


def _stackable(one: Tensor, other: Tensor) -> bool:
    return (one.device, one.dtype, one.shape) == (other.device, other.dtype, other.shape)


def _usable(states: Tensor) -> Tensor:  # pragma: no cover - on a GPU
    """Whether all states are finite and none is all zero, a boolean scalar on their device."""
    largest: Tensor = torch.linalg.vector_norm(states, ord=torch.inf, dim=-1)  # NaN if any value is NaN
    return ((largest > 0) & (largest < torch.inf)).all()
