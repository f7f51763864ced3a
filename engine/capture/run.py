"""Run tokenized prompts in batches and return their states in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from engine.capture.passes import Passes, PassStates
from engine.capture.prefixes import share_of
from engine.capture.prompts import TokenizedPrompt
from engine.capture.reading import Reader
from engine.capture.run_settings import Settings
from engine.errors import CaptureError
from engine.models.alterations import take_snapshot
from engine.models.forward import input_device, turn_of
from engine.models.offload import gpu_count
from engine.models.structure import find_blocks
from engine.records.captures import ActivationData
from engine.remedies import Remedy
from engine.runtime import ALONE, Processes, Progress, ignore_progress

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
        for layer, states in batch.layers.items():
            for index, rows in zip(batch.prompts, torch.split(states, batch.kept), strict=True):
                captured[index][layer] = rows[None].clone()
    num_layers, data = len(find_blocks(model).blocks), []
    for prompt, layers in zip(prompts, captured, strict=True):
        one = ActivationData(
            activations=layers,
            input_ids=torch.tensor([prompt.ids]),
            tokens=prompt.tokens,
            prompt=prompt.text,
            num_layers=num_layers,
            captured_layers=list(settings.layers),
        )
        if prompt.response is not None:
            one["response"] = prompt.response
        data.append(one)
    return data


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
    _require_unchanged(model, blocks, settings)
    read = Reader(model, blocks, settings)
    passes = Passes(rows, spans, read, input_device(model), model.dtype, gpu_count(model), settings.compiled_tokens)
    done = 0
    progress(done, len(prompts))
    plan = settings.plan(rows)
    if processes.count > 1:
        plan = share_of(plan, rows, processes.rank, processes.count)
    for found in passes.run(plan):
        kept = [1] * len(found.kept) if positions.mean else found.kept
        batch = PassStates(found.prompts, kept, positions.finish(found.layers, found.kept), found.checked)
        if not batch.checked:
            _require_usable(batch, prompts)
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


def _require_usable(batch: PassStates, prompts: Sequence[TokenizedPrompt]) -> None:
    """Refuse states that are not finite or all zero.

    Prompts are checked one by one only if a check of the whole layer fails.
    """
    for layer, states in batch.layers.items():
        largest = states.abs().amax(dim=-1)  # NaN if any value is NaN
        if bool((torch.isfinite(largest) & (largest > 0)).all()):
            continue
        for index, rows in zip(batch.prompts, torch.split(states, batch.kept), strict=True):
            _require_usable_prompt(rows, layer, prompts[index].name)


def _require_usable_prompt(states: Tensor, layer: int, name: str) -> None:
    finite = bool(torch.isfinite(states).all())
    if not finite or not bool(states.any()):
        raise CaptureError(
            f"{name} has {'all-zero states' if finite else 'states that are not finite'} at layer {layer}",
            expected="finite, non-zero states; in float32, only damaged weights give others",
            next_step=Remedy.CAPTURE_IN_FLOAT32,
        )


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
    starts = [prompt.span(settings.positions)[0] for prompt in prompts]
    kept = [prompt.kept(settings.positions) for prompt in prompts]
    begins = list(accumulate(kept, initial=0))
    layers: dict[int, Tensor] = {}
    for batch in batches:
        places = torch.cat([torch.arange(begins[index], begins[index + 1]) for index in batch.prompts])
        for layer, states in batch.layers.items():
            if layer not in layers:
                layers[layer] = states.new_empty((begins[-1], states.shape[-1]), dtype=dtype or states.dtype)
            layers[layer].index_copy_(0, places, states.to(layers[layer].dtype))
    counted = torch.ones(begins[-1], dtype=torch.bool)
    for start, number, begin in zip(starts, kept, begins, strict=False):
        counted[begin] = number == 1 or start > 0
    return StackedStates({layer: layers[layer] for layer in settings.layers}, kept, counted)


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
    mask = aligned_mask(lengths)
    if len(values) == mask.numel():
        return values.view(*mask.shape, *values.shape[1:])
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
