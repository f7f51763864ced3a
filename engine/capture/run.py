"""The run: prompts through the model in batches, the wanted states of each prompt out, in the caller's order.

Knows token ids, sites, layers, positions and batches. Does not know what the prompts mean or what becomes of the
states.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from engine.capture.batches import Limits, sorted_batches
from engine.capture.budget import token_budget
from engine.capture.layers import LayerSpec
from engine.capture.passes import Passes, PassStates
from engine.capture.positions import Positions, PositionSpec, parse_positions
from engine.capture.prefixes import Plan, planned_tokens, shared_batches
from engine.capture.prompts import TokenizedPrompt
from engine.capture.sites import DEFAULT_SITE, find_taps, parse_site, require_site, site_layers
from engine.errors import CaptureError, Remedy, RequestError
from engine.models.blocks import find_blocks
from engine.models.description import describe_model
from engine.models.forward import TokenBatch, input_device, read_hidden_states, read_taps
from engine.models.products import onednn_products
from engine.models.shortcuts import ONEDNN_TOLERANCE
from engine.records.captures import ActivationData

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from engine.models.blocks import Blocks

log = logging.getLogger(__name__)

_WORTH_SHARING = (
    0.9  # share of the tokens that must at most be left: attention over a packed row costs more than padding
)

Progress = Callable[[int, int], None]
"""Called with the number of prompts done and their total."""


@dataclass(frozen=True)
class Settings:
    """What a run keeps, and how.

    Attributes:
        site: What is read.
        layers: Layer numbers, ascending; of a site without layers the block that it adjoins.
        positions: Which tokens.
        use_hooks: Whether hooks read the states, or `output_hidden_states`. Both give the same bits; hooks hold less
            in memory, stop after the last layer wanted, and are the one way to sites other than `resid_post`.
        limits: What goes through the model at once.
        prefix_reuse: Whether what prompts share at the beginning is run once; or why not.
        window: The longest prompt for which it can be, None for any.
        onednn: Whether float32 products go through oneDNN.
        progress: Told of each batch.
    """

    site: str
    layers: list[int]
    positions: Positions
    use_hooks: bool
    limits: Limits
    prefix_reuse: str = "off"
    window: int | None = None
    onednn: bool = False
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
        batch_size: int | None,
        prefix_reuse: bool,
        progress: Progress | None,
    ) -> Settings:
        """Read what the user asked for, in the light of a model.

        Raises:
            RequestError: Site, layers, positions or batch size make no sense for it.
            ModelError: The model fails the check, or does not have the site.
        """
        if batch_size is not None and batch_size < 1:
            raise RequestError(f"a batch of {batch_size} prompts is not possible", expected="at least 1")
        parse_site(site, layers)
        receipt = describe_model(model).receipt
        require_site(site, receipt)
        numbers = site_layers(site, layers, receipt["num_layers"])
        hooks = use_hooks or site != DEFAULT_SITE
        error, separate = receipt.get("onednn_error"), receipt.get("separate", "not checked")
        return cls(
            site=site,
            layers=numbers,
            positions=parse_positions(positions),
            use_hooks=hooks,
            limits=Limits(token_budget(model, every_layer=not hooks), batch_size),
            prefix_reuse="off" if not prefix_reuse or batch_size == 1 else f"no: {separate}" if separate else "on",
            window=receipt.get("window"),
            onednn=error is not None and error <= ONEDNN_TOLERANCE,
            progress=progress,
        )

    def plan(self, rows: Sequence[list[int]]) -> Plan:
        """In which passes to run prompts: packed where they share enough of their beginnings, else padded.

        Args:
            rows: Token ids of each prompt.
        """
        padded: Plan = [*sorted_batches([len(row) for row in rows], self.limits)]
        if self.prefix_reuse == "off" or len(rows) < 2:
            return padded
        shared = shared_batches(rows, self.limits)
        if planned_tokens(shared, rows) > _WORTH_SHARING * sum(map(len, rows)):
            return padded
        longest = max(len(row) for row in rows)
        if self.prefix_reuse != "on" or (self.window is not None and longest > self.window):
            log.info("what prompts share at the beginning is run for each: %s", self._why_separate(longest))
            return padded
        return shared

    def _why_separate(self, longest: int) -> str:
        if self.prefix_reuse != "on":
            return self.prefix_reuse.removeprefix("no: ")
        return f"the longest has {longest} tokens, and tokens of this model see {self.window} back"


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
    captured: list[dict[int, Tensor]] = [{} for _ in prompts]
    for batch in run_batches(model, prompts, settings):
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


def run_batches(model: PreTrainedModel, prompts: Sequence[TokenizedPrompt], settings: Settings) -> Iterator[PassStates]:
    """Run prompts and hand over what each pass came to, as it comes: for who does not want to hold all of it.

    Args:
        model: A checked model.
        prompts: What to run.
        settings: What to keep.

    Yields:
        What is kept of the prompts of one pass; every prompt once, in an order that saves time.

    Raises:
        CaptureError: As `run_capture`.
        RequestError: As `run_capture`, before anything is run.
    """
    progress = settings.progress or (lambda _done, _total: None)
    positions = settings.positions
    spans = [positions.span(len(prompt.ids), prompt.name) for prompt in prompts]
    rows = [prompt.ids for prompt in prompts]
    passes = Passes(rows, spans, partial(_read, model, find_blocks(model), settings), input_device(model), model.dtype)
    done = 0
    progress(done, len(prompts))
    for found in passes.run(settings.plan(rows)):
        kept = [1] * len(found.kept) if positions.mean else found.kept
        layers = {layer: positions.finish(states, found.kept) for layer, states in found.layers.items()}
        batch = PassStates(found.prompts, kept, layers)
        _require_usable(batch, prompts)
        yield batch
        done += len(batch.prompts)
        progress(done, len(prompts))


def _read(
    model: PreTrainedModel, blocks: Blocks, settings: Settings, tokens: TokenBatch, wanted: Tensor
) -> dict[int, Tensor]:
    places = wanted.to(tokens.input_ids.device)
    devices: set[torch.device] = set()

    def keep(states: Tensor) -> Tensor:
        devices.add(states.device)
        chosen = states.flatten(0, 1).index_select(0, places.to(states.device))
        return chosen.to("cpu", non_blocking=True)  # from a GPU into pinned memory, while the next block is run

    with onednn_products(wanted=settings.onednn):
        if settings.use_hooks:
            taps = find_taps(settings.site, settings.layers, blocks, describe_model(model).receipt)
            kept = read_taps(model, blocks, tokens, taps, keep)
        else:
            kept = read_hidden_states(model, blocks, tokens, settings.layers, keep)
    for device in devices - {torch.device("cpu")}:
        torch.accelerator.synchronize(device)
    return kept


def _require_usable(batch: PassStates, prompts: Sequence[TokenizedPrompt]) -> None:
    """Refuse states that are not finite, or all zero; first all states of a layer at once, then prompt by prompt."""
    for layer, states in batch.layers.items():
        if bool(torch.isfinite(states).all()) and bool(states.any(dim=-1).all()):
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
