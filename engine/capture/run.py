"""Run tokenized prompts in batches and return their states in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.capture.batches import Batch, Limits, sorted_batches
from engine.capture.faults import only_usable
from engine.capture.passes import Passes, PassStates
from engine.capture.prefixes import share_of
from engine.capture.prompts import TokenizedPrompt
from engine.capture.reading import Reader
from engine.capture.run_settings import Settings
from engine.errors import CaptureError
from engine.models.alterations import take_snapshot
from engine.models.forward import turn_of
from engine.models.offload import gpu_count
from engine.models.structure import find_blocks
from engine.records.captures import ActivationData
from engine.runtime import ALONE, Processes, Progress, ignore_progress, paused_collection

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.models.structure import Blocks


def run_capture(
    model: PreTrainedModel, prompts: Sequence[TokenizedPrompt], settings: Settings, progress: Progress = ignore_progress
) -> list[ActivationData]:
    """Capture tokenized prompts, one result per prompt.

    Args:
        model: A checked model.
        prompts: The prompts; at least one.
        settings: What to keep.
        progress: Called with the number of finished prompts and their total.

    Returns:
        One capture per prompt, in order, each with batch size 1 and tensors that share no memory.

    Raises:
        CaptureError: A state is NaN, infinite or all zero; the message names the prompt and the layer. Or the model was
            changed during the capture.
        RequestError: A prompt does not have the requested positions.
    """
    captured: list[dict[int, Tensor]] = [{} for _ in prompts]
    for batch in run_batches(model, prompts, settings, progress):
        with paused_collection():
            for layer, states in batch.layers.items():
                for index, own in zip(batch.prompts, split_copied(states, batch.kept), strict=True):
                    captured[index][layer] = own
    rows = [prompt.ids for prompt in prompts]
    ids = split_copied(flat_ids(rows), [*map(len, rows)])
    num_layers, data = len(find_blocks(model).blocks), []
    for prompt, layers, input_ids in zip(prompts, captured, ids, strict=True):
        one = ActivationData(
            activations=layers,
            input_ids=input_ids,
            tokens=prompt.tokens,
            prompt=prompt.text,
            num_layers=num_layers,
            captured_layers=list(settings.layers),
        )
        if prompt.response is not None:
            one["response"] = prompt.response
        data.append(one)
    return data


def split_copied(values: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Copy the values of each prompt into a tensor of its own; one call for all prompts saves most of the time.

    Args:
        values: Values of all prompts, prompt after prompt, `(values of all prompts, ...)`.
        lengths: Number of values of each prompt.

    Returns:
        One tensor per prompt, `(1, values, ...)`.

    Example:
        >>> [part.tolist() for part in split_copied(torch.tensor([1, 2, 3]), [1, 2])]
        [[[1]], [[2, 3]]]
    """
    split: Any = torch.split_with_sizes_copy  # its type stub says that it returns None
    return [*split(values[None], [*lengths], dim=1)]


def flat_ids(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids of all prompts, prompt after prompt; much faster than `torch.tensor` of a list.

    Example:
        >>> flat_ids([[5, 6], [7]])
        tensor([5, 6, 7])
    """
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), dtype=np.int64))


def run_batches(
    model: PreTrainedModel,
    prompts: Sequence[TokenizedPrompt],
    settings: Settings,
    progress: Progress = ignore_progress,
    *,
    processes: Processes = ALONE,
) -> Iterator[PassStates]:
    """Run prompts and yield each batch, without holding everything in memory.

    Args:
        model: A checked model.
        prompts: The prompts.
        settings: What to keep.
        progress: Called with the number of finished prompts and their total.
        processes: The processes that share the batches; each runs its own. Batches do not depend on their number.

    Yields:
        The kept states of one batch. Each prompt appears once, in the order that is fastest to run.

    Raises:
        CaptureError: See `run_capture`.
        RequestError: See `run_capture`; raised before the first forward pass.
    """
    positions = settings.positions
    spans = [prompt.span(positions) for prompt in prompts]
    rows = [prompt.ids for prompt in prompts]
    blocks = find_blocks(model)
    read = Reader(model, blocks, settings)
    passes = Passes(
        rows,
        spans,
        read,
        model,
        blocks,
        mean=positions.mean,
        ahead=gpu_count(model),
        boundaries=[prompt.boundary for prompt in prompts],
        compiled_tokens=settings.compiled_tokens,
    )
    done = 0
    progress(done, len(prompts))
    plan = settings.plan(rows)
    if len(plan) > 1:  # a single pass takes no longer than to find out now
        _require_unchanged(model, blocks, settings)
    if processes.count > 1:
        plan = share_of(plan, rows, processes.rank, processes.count)
    for batch in only_usable(passes.run(plan), prompts, partial(_run_unpacked, passes, rows, settings.limits)):
        yield batch
        done += len(batch.prompts)
        progress(done, len(prompts))
    _require_unchanged(model, blocks, settings)


def _require_unchanged(model: PreTrainedModel, blocks: Blocks, settings: Settings) -> None:
    """Refuse a model that changed since the capture started."""
    with turn_of(blocks.decoder):
        if take_snapshot(model) != settings.snapshot:
            raise CaptureError(
                "the model was changed during the capture",
                expected="the same weights, hooks, modules and adapters until the capture ends",
                next_step="change the model before or after the capture, not from another thread during it",
            )


def _run_unpacked(
    passes: Passes, rows: Sequence[list[int]], limits: Limits, prompts: list[int]
) -> Iterator[PassStates]:
    batches = sorted_batches([len(rows[index]) for index in prompts], limits)
    return passes.run([Batch([prompts[place] for place in batch.prompts]) for batch in batches])


@dataclass(frozen=True)
class StackedStates:
    """States of several prompts, concatenated.

    Attributes:
        layers: Layer number to states, `(kept tokens of all prompts, hidden)`.
        kept: Number of kept tokens of each prompt.
        counted: Mask of the kept tokens that count in statistics: all but the first token of a prompt, unless it is the
            only one kept.
    """

    layers: dict[int, Tensor]
    kept: list[int]
    counted: Tensor


def capture_stacked(
    model: PreTrainedModel,
    prompts: Sequence[TokenizedPrompt],
    settings: Settings,
    progress: Progress = ignore_progress,
    *,
    dtype: torch.dtype | None = None,
) -> StackedStates:
    """Run prompts and concatenate their kept states.

    Args:
        model: A checked model.
        prompts: The prompts; at least one.
        settings: What to keep.
        progress: Called with the number of finished prompts and their total.
        dtype: Dtype of the returned states; None for the captured dtype.

    Raises:
        CaptureError: See `run_capture`.
        RequestError: See `run_capture`.
    """
    return stack_states(run_batches(model, prompts, settings, progress), prompts, settings, dtype)


def stack_states(
    batches: Iterable[PassStates],
    prompts: Sequence[TokenizedPrompt],
    settings: Settings,
    dtype: torch.dtype | None = None,
) -> StackedStates:
    """Concatenate the states of batches that together hold every prompt once.

    Args:
        batches: The batches, in any order.
        prompts: The prompts.
        settings: What was kept.
        dtype: Dtype of the returned states; None for the captured dtype.
    """
    spans = np.array([prompt.span(settings.positions) for prompt in prompts])  # (prompts, 2)
    kept = np.ones(len(spans), dtype=np.int64) if settings.positions.mean else spans[:, 1] - spans[:, 0]
    ends = kept.cumsum()
    begins, count = ends - kept, int(ends[-1])
    layers: dict[int, Tensor] = {}
    for batch in batches:
        places = _places(begins[batch.prompts], kept[batch.prompts])
        if len(places) == count and np.array_equal(places, np.arange(count)):  # already complete and in order
            layers = {layer: _own(states, dtype or states.dtype) for layer, states in batch.layers.items()}
            continue
        rows = torch.from_numpy(places)
        for layer, states in batch.layers.items():
            if layer not in layers:
                layers[layer] = states.new_empty((count, states.shape[-1]), dtype=dtype or states.dtype)
            layers[layer].index_copy_(0, rows, states.to(layers[layer].dtype))
    counted = torch.ones(count, dtype=torch.bool)
    counted[torch.from_numpy(begins)] = torch.from_numpy((kept == 1) | (spans[:, 0] > 0))
    return StackedStates({layer: layers[layer] for layer in settings.layers}, kept.tolist(), counted)


def _places(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices of the values of some rows, row after row; each row is a range."""
    offsets = lengths.cumsum() - lengths
    return np.repeat(begins - offsets, lengths) + np.arange(int(lengths.sum()))


def _own(states: Tensor, dtype: torch.dtype) -> Tensor:
    """The states in a dtype and in memory of their own, that of no other layer and not pinned."""
    shared = states.is_pinned() or states.untyped_storage().nbytes() > states.nbytes
    return states.to(dtype, copy=shared)


def align_rows(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Left-pad concatenated rows to equal length.

    Args:
        values: The concatenated rows, `(values of all rows, ...)`.
        lengths: Number of values of each row; at least one row.

    Returns:
        `(rows, longest, ...)`, shorter rows left-padded with zeros; a view of the input if all lengths are equal.

    Example:
        >>> align_rows(torch.tensor([1, 2, 3]), [1, 2]).tolist()
        [[0, 1], [2, 3]]
    """
    longest = max(lengths)
    if len(values) == longest * len(lengths):
        return values.view(len(lengths), longest, *values.shape[1:])
    mask = aligned_mask(lengths)
    aligned = values.new_zeros(*mask.shape, *values.shape[1:])
    aligned[mask] = values
    return aligned


def aligned_mask(lengths: Sequence[int]) -> Tensor:
    """Boolean mask of the values that `align_rows` does not pad, `(rows, longest)`.

    Example:
        >>> aligned_mask([1, 2]).int().tolist()
        [[0, 1], [1, 1]]
    """
    longest = max(lengths)
    return torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
