"""Refuse states that are not finite or all zero, and name the prompt that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from engine.errors import CaptureError
from engine.remedies import Remedy

if TYPE_CHECKING:
    from engine.capture.passes import PassStates
    from engine.capture.prompts import TokenizedPrompt

log = logging.getLogger(__name__)


def only_usable(
    batches: Iterable[PassStates],
    prompts: Sequence[TokenizedPrompt],
    again: Callable[[list[int]], Iterable[PassStates]],
) -> Iterator[PassStates]:
    """Yield batches whose states are all usable.

    In a packed row, a value that is not finite spreads to prompts that do not see it, because 0 times NaN is NaN. The
    prompts of such a row run again unpacked, which shows whose it is.

    Args:
        batches: The batches.
        prompts: All prompts.
        again: Runs some prompts unpacked.

    Raises:
        CaptureError: States of a prompt are not finite or all zero.
    """
    for batch in batches:
        fault = None if batch.checked else _find_fault(batch)
        if fault is None:
            yield batch
        elif not batch.packed or len(batch.prompts) == 1:
            raise _refusal(prompts[fault.prompt], fault)
        else:
            log.info("%d prompts run again unpacked: %s in their row", len(batch.prompts), fault.what)
            yield from only_usable(again(batch.prompts), prompts, again)


class _Fault(NamedTuple):
    """Unusable states of a prompt, given by its index, at a layer."""

    prompt: int
    layer: int
    what: str


def _find_fault(batch: PassStates) -> _Fault | None:
    """Find states that are not finite or all zero.

    Prompts are checked one by one only if a check of all states fails.
    """
    largest = torch.cat([states.abs().amax(dim=-1) for states in batch.layers.values()])  # NaN if any value is NaN
    if bool(((largest > 0) & (largest < torch.inf)).all()):
        return None
    for layer, states in batch.layers.items():
        for index, own in zip(batch.prompts, torch.split(states, batch.kept), strict=True):
            if not bool(torch.isfinite(own).all()):
                return _Fault(index, layer, "states that are not finite")
            if not bool(own.any()):
                return _Fault(index, layer, "all-zero states")
    return None


def _refusal(prompt: TokenizedPrompt, fault: _Fault) -> CaptureError:
    return CaptureError(
        f"{prompt.name} has {fault.what} at layer {fault.layer}",
        expected="finite, non-zero states; in float32, only damaged weights give others",
        next_step=Remedy.CAPTURE_IN_FLOAT32,
    )
