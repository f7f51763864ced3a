"""The run: prompts through the model in batches, the wanted states of each prompt out, in the caller's order.

Knows token ids, sites, layers, positions and batches. Does not know what the prompts mean or what becomes of the
states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from engine.capture.batches import sorted_batches
from engine.capture.layers import LayerSpec
from engine.capture.positions import Positions, PositionSpec, parse_positions
from engine.capture.prompts import TokenizedPrompt
from engine.capture.sites import DEFAULT_SITE, find_taps, parse_site, require_site, site_layers
from engine.errors import CaptureError, Remedy, RequestError
from engine.models.blocks import find_blocks
from engine.models.description import describe_model
from engine.models.forward import Keep, TokenBatch, input_device, read_hidden_states, read_taps
from engine.records.captures import ActivationData

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.models.blocks import Blocks

Progress = Callable[[int, int], None]
"""Called with the number of prompts done and their total."""

LayerStates = dict[int, "Tensor"]
"""Layer to the kept states of one prompt, `(1, kept tokens, hidden)`."""


@dataclass(frozen=True)
class Settings:
    """What a run keeps, and how.

    Attributes:
        site: What is read.
        layers: Layer numbers, ascending; of a site without layers the block that it adjoins.
        positions: Which tokens.
        use_hooks: Whether hooks read the states, or `output_hidden_states`. Both give the same bits; hooks hold less
            in memory, stop after the last layer wanted, and are the one way to sites other than `resid_post`.
        batch_size: Most prompts in one forward pass.
        progress: Told of each batch.
    """

    site: str
    layers: list[int]
    positions: Positions
    use_hooks: bool
    batch_size: int
    progress: Progress | None = None

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        layers: LayerSpec,
        positions: PositionSpec,
        *,
        site: str,
        use_hooks: bool,
        batch_size: int,
        progress: Progress | None,
    ) -> Settings:
        """Read what the user asked for, in the light of a model.

        Raises:
            RequestError: Site, layers, positions or batch size make no sense for it.
            ModelError: The model fails the check, or does not have the site.
        """
        if batch_size < 1:
            raise RequestError(f"a batch of {batch_size} prompts is not possible", expected="at least 1")
        parse_site(site, layers)
        receipt = describe_model(model).receipt
        require_site(site, receipt)
        numbers = site_layers(site, layers, receipt["num_layers"])
        hooks = use_hooks or site != DEFAULT_SITE
        return cls(site, numbers, parse_positions(positions), hooks, batch_size, progress)


def run_capture(model: PreTrainedModel, prompts: Sequence[TokenizedPrompt], settings: Settings) -> list[ActivationData]:
    """Capture prompts.

    Args:
        model: A checked model.
        prompts: What to run; at least one.
        settings: What to keep.

    Returns:
        One capture a prompt, in order, each with a batch of one; nothing in them refers to another prompt's memory.

    Raises:
        CaptureError: A state came out NaN, infinite or all zero; the message names the prompt and the layer.
        RequestError: A prompt does not have the positions asked for.
    """
    progress = settings.progress or (lambda _done, _total: None)
    progress(0, len(prompts))
    captured: dict[int, LayerStates] = {}
    for batch in run_batches(model, prompts, settings):
        captured.update(batch)
        progress(len(captured), len(prompts))
    num_layers = len(find_blocks(model).blocks)
    return [_activation_data(prompts[i], captured[i], num_layers) for i in range(len(prompts))]


def run_batches(
    model: PreTrainedModel, prompts: Sequence[TokenizedPrompt], settings: Settings
) -> Iterator[dict[int, LayerStates]]:
    """Run prompts and hand over what each batch came to, as it comes: for who does not want to hold all of it.

    Args:
        model: A checked model.
        prompts: What to run.
        settings: What to keep.

    Yields:
        Place of a prompt in `prompts` to its states, for the prompts of one batch; every prompt once, in an order that
        saves time.

    Raises:
        CaptureError: As `run_capture`.
        RequestError: As `run_capture`, before anything is run.
    """
    lengths = [len(prompt.ids) for prompt in prompts]
    for prompt in prompts:
        settings.positions.span(len(prompt.ids), prompt.name)
    blocks, device = find_blocks(model), input_device(model)
    for batch in sorted_batches(lengths, settings.batch_size):
        tokens = TokenBatch.of([prompts[index].ids for index in batch], device)
        keep = partial(settings.positions.take, lengths=[lengths[index] for index in batch])
        states = _read(model, blocks, tokens, settings, keep)
        captured = {
            index: {layer: states[layer][row][None] for layer in settings.layers} for row, index in enumerate(batch)
        }
        for index, kept in captured.items():
            _require_usable(kept, prompts[index].name)
        yield captured


def _read(
    model: PreTrainedModel, blocks: Blocks, tokens: TokenBatch, settings: Settings, keep: Keep[list[Tensor]]
) -> dict[int, list[Tensor]]:
    if not settings.use_hooks:
        return read_hidden_states(model, blocks, tokens, settings.layers, keep)
    taps = find_taps(settings.site, settings.layers, blocks, describe_model(model).receipt)
    return read_taps(model, blocks, tokens, taps, keep)


def _require_usable(states: LayerStates, name: str) -> None:
    for layer, kept in states.items():
        finite = bool(torch.isfinite(kept).all())
        if not finite or not bool(kept.any()):
            raise CaptureError(
                f"{name} has {'only zeros' if finite else 'values that are not finite'} at layer {layer}",
                expected="finite states; only damaged weights give others in float32",
                next_step=Remedy.CAPTURE_IN_FLOAT32,
            )


def _activation_data(prompt: TokenizedPrompt, states: LayerStates, num_layers: int) -> ActivationData:
    return ActivationData(
        activations=states,
        input_ids=torch.tensor([prompt.ids]),
        tokens=prompt.tokens,
        prompt=prompt.text,
        num_layers=num_layers,
        captured_layers=list(states),
    )
