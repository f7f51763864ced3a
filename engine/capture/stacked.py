"""Capture some prompts into one tensor a layer, without padding: what a shard on disk holds.

Knows prompts and their states. Does not know files, or how the prompts were cut into parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from engine.capture.prompts import TokenizedPrompt
from engine.capture.run import run_batches
from engine.capture.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


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
    *,
    dtype: torch.dtype | None = None,
) -> StackedStates:
    """Run prompts and stack what is kept of them.

    Args:
        model: A checked model.
        prompts: What to run; at least one.
        settings: What to keep.
        dtype: Of the states in the result; None for that in which they come.

    Raises:
        CaptureError: As `run_capture`.
        RequestError: As `run_capture`.
    """
    starts = [settings.positions.span(len(prompt.ids), prompt.name)[0] for prompt in prompts]
    kept = [settings.positions.kept(len(prompt.ids), prompt.name) for prompt in prompts]
    begins = list(accumulate(kept, initial=0))
    layers: dict[int, Tensor] = {}
    for batch in run_batches(model, prompts, settings):
        places = torch.cat([torch.arange(begins[index], begins[index + 1]) for index in batch.prompts])
        for layer, states in batch.layers.items():
            if layer not in layers:
                layers[layer] = states.new_empty((begins[-1], states.shape[-1]), dtype=dtype or states.dtype)
            layers[layer].index_copy_(0, places, states.to(layers[layer].dtype))
    counted = torch.ones(begins[-1], dtype=torch.bool)
    for start, number, begin in zip(starts, kept, begins, strict=False):
        counted[begin] = number == 1 or start > 0
    return StackedStates({layer: layers[layer] for layer in settings.layers}, kept, counted)
