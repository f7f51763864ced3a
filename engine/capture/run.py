"""The run: prompts through the model in batches, the wanted states of each prompt out, in the caller's order.

Knows models and token ids, and does what settings say. Does not know what the prompts mean or what becomes of the
states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from engine.capture.passes import Passes, PassStates, Reading
from engine.capture.prompts import TokenizedPrompt
from engine.capture.settings import Settings
from engine.capture.sites import find_taps
from engine.errors import CaptureError, Remedy
from engine.models.alterations import take_snapshot
from engine.models.forward import TokenBatch, input_device, read_taps, turn_of
from engine.models.offload import gpu_count
from engine.models.products import onednn_products
from engine.models.structure import find_blocks
from engine.records.captures import ActivationData
from engine.runtime import Progress, untold

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.models.structure import Blocks


def run_capture(
    model: PreTrainedModel, prompts: Sequence[TokenizedPrompt], settings: Settings, progress: Progress = untold
) -> list[ActivationData]:
    """Capture prompts.

    Args:
        model: A checked model.
        prompts: What to run; at least one.
        settings: What to keep.
        progress: Told of each batch.

    Returns:
        One capture a prompt, in order, each with a batch of one; nothing in them refers to another prompt's memory.

    Raises:
        CaptureError: A state came out NaN, infinite or all zero; the message names the prompt and the layer.
        RequestError: A prompt does not have the positions asked for.
    """
    captured: list[dict[int, Tensor]] = [{} for _ in prompts]
    for batch in run_batches(model, prompts, settings, progress):
        for layer, states in batch.layers.items():
            for index, rows in zip(batch.prompts, torch.split(states, batch.kept), strict=True):
                captured[index][layer] = rows[None].clone()
    num_layers = len(find_blocks(model).blocks)
    return [
        ActivationData(
            activations=states,
            input_ids=torch.tensor([prompt.ids]),
            tokens=prompt.tokens,
            prompt=prompt.text,
            num_layers=num_layers,
            captured_layers=list(settings.layers),
        )
        for prompt, states in zip(prompts, captured, strict=True)
    ]


def run_batches(
    model: PreTrainedModel, prompts: Sequence[TokenizedPrompt], settings: Settings, progress: Progress = untold
) -> Iterator[PassStates]:
    """Run prompts and hand over what each pass came to, as it comes: for who does not want to hold all of it.

    Args:
        model: A checked model.
        prompts: What to run.
        settings: What to keep.
        progress: Told of each batch.

    Yields:
        What is kept of the prompts of one pass; every prompt once, in an order that saves time.

    Raises:
        CaptureError: As `run_capture`, or another thread changed the model meanwhile.
        RequestError: As `run_capture`, before anything is run.
    """
    positions = settings.positions
    spans = [positions.span(len(prompt.ids), prompt.name) for prompt in prompts]
    rows = [prompt.ids for prompt in prompts]
    blocks = find_blocks(model)
    _require_unchanged(model, blocks, settings)
    read = partial(_read, model, blocks, settings)
    passes = Passes(rows, spans, read, input_device(model), model.dtype, ahead=gpu_count(model))
    done = 0
    progress(done, len(prompts))
    for found in passes.run(settings.plan(rows)):
        kept = [1] * len(found.kept) if positions.mean else found.kept
        batch = PassStates(found.prompts, kept, positions.finish(found.layers, found.kept))
        _require_usable(batch, prompts)
        yield batch
        done += len(batch.prompts)
        progress(done, len(prompts))
    _require_unchanged(model, blocks, settings)


def _require_unchanged(model: PreTrainedModel, blocks: Blocks, settings: Settings) -> None:
    """Refuse a model that is no longer what it was when the capture began, for a shard before this one perhaps."""
    with turn_of(blocks.decoder):
        if take_snapshot(model) != settings.snapshot:
            raise CaptureError(
                "the model was changed while it was captured",
                expected="the same weights, hooks, modules and adapters until the capture ends",
                next_step="capture before or after the change, not in two threads at once",
            )


def _read(model: PreTrainedModel, blocks: Blocks, settings: Settings, tokens: TokenBatch, wanted: Tensor) -> Reading:
    places = wanted.to(tokens.input_ids.device)
    devices: set[torch.device] = set()

    def keep(states: Tensor) -> Tensor:
        devices.add(states.device)
        chosen = states.flatten(0, 1).index_select(0, places.to(states.device))
        return chosen.to("cpu", non_blocking=True)  # a GPU is not waited for: it goes on to the next block

    taps = find_taps(settings.site, settings.layers, blocks, settings.model.receipt)
    with turn_of(blocks.decoder), onednn_products(wanted=settings.onednn):  # in this order everywhere
        kept = read_taps(model, blocks, tokens, taps, keep, to_the_end=not settings.use_hooks)
    return Reading.begun_on(devices, kept)


def _require_usable(batch: PassStates, prompts: Sequence[TokenizedPrompt]) -> None:
    """Refuse states that are not finite, or all zero; first all states of a layer at once, then prompt by prompt."""
    for layer, states in batch.layers.items():
        largest = states.abs().amax(dim=-1)  # not a number, if one of them is not
        if bool((torch.isfinite(largest) & (largest > 0)).all()):
            continue
        for index, rows in zip(batch.prompts, torch.split(states, batch.kept), strict=True):
            _require_usable_prompt(rows, layer, prompts[index].name)


def _require_usable_prompt(states: Tensor, layer: int, name: str) -> None:
    finite = bool(torch.isfinite(states).all())
    if not finite or not bool(states.any()):
        raise CaptureError(
            f"{name} has {'only zeros' if finite else 'values that are not finite'} at layer {layer}",
            expected="finite states; only damaged weights give others in float32",
            next_step=Remedy.CAPTURE_IN_FLOAT32,
        )


@dataclass(frozen=True)
class StackedStates:
    """States of several prompts, one prompt after the other.

    Attributes:
        layers: Layer number to states, `(kept tokens of all prompts, hidden)`.
        kept: Number of kept tokens of each prompt.
        counted: Which kept tokens count in statistics: all but the first token of a prompt, unless it is kept alone.
    """

    layers: dict[int, Tensor]
    kept: list[int]
    counted: Tensor


def capture_stacked(
    model: PreTrainedModel,
    prompts: Sequence[TokenizedPrompt],
    settings: Settings,
    progress: Progress = untold,
    *,
    dtype: torch.dtype | None = None,
) -> StackedStates:
    """Run prompts and stack what is kept of them.

    Args:
        model: A checked model.
        prompts: What to run; at least one.
        settings: What to keep.
        progress: Told of each batch.
        dtype: Of the states in the result; None for that in which they come.

    Raises:
        CaptureError: As `run_capture`.
        RequestError: As `run_capture`.
    """
    starts = [settings.positions.span(len(prompt.ids), prompt.name)[0] for prompt in prompts]
    kept = [settings.positions.kept(len(prompt.ids), prompt.name) for prompt in prompts]
    begins = list(accumulate(kept, initial=0))
    layers: dict[int, Tensor] = {}
    for batch in run_batches(model, prompts, settings, progress):
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
    """Lay out rows that lie one after the other.

    Args:
        values: The values of all rows, `(values of all, ...)`.
        lengths: How many each row has; at least one row.

    Returns:
        `(rows, longest, ...)`, zeros in front of the shorter ones; where all are of one length the same memory.

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
    """Where `align_rows` puts values, `(rows, longest)`, booleans.

    Example:
        >>> aligned_mask([1, 2]).int().tolist()
        [[0, 1], [1, 1]]
    """
    longest = max(lengths)
    return torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
