"""What a capture will cost, told before it is run: prompts, tokens, seconds and bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.capture.batches import DEFAULT_BATCH_SIZE
from engine.capture.layers import LayerSpec
from engine.capture.positions import PositionSpec
from engine.capture.prefixes import planned_tokens
from engine.capture.prompts import tokenize_prompts
from engine.capture.settings import Settings
from engine.capture.sites import DEFAULT_SITE
from engine.models.blocks import find_blocks
from engine.models.description import describe_model
from engine.models.forward import TokenBatch, input_device, read_blocks
from engine.models.products import onednn_products
from engine.records.captures import CaptureEstimate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TIMED_TOKENS = 128  # fewer would cost nearly as much: the weights are read all the same


def estimate_capture(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    layers: LayerSpec = None,
    *,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = "all",
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    rendered: bool = False,
) -> CaptureEstimate:
    """Count what a capture would read and keep, and time a small piece of it.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        prompts: All texts, of both sides if there are two; at least one.
        layers: See `parse_layers`; None for all.
        site: See `capture_activations`.
        positions: See `parse_positions`.
        batch_size: Most prompts in one forward pass, None for as many as run well.
        prefix_reuse: See `capture_activations`.
        rendered: Whether the texts went through a chat template and hold their special tokens.

    Returns:
        The estimate. Prompts, tokens and bytes of the states are exact; seconds are those of some prompts of middling
        length, 128 tokens or one prompt, scaled by the number of tokens that are run.

    Raises:
        RequestError: A site, layers or positions that do not exist.
        CaptureError: A prompt that is empty or too long.
        ModelError: The model fails the check, or does not have the site.

    Example:
        >>> estimate = estimate_capture(model, tokenizer, ["Tell me a story"] * 10, layers=[16], positions="last")
        >>> estimate["tokens"], estimate["bytes"]
        (40, 23040)
    """
    settings = Settings.for_model(
        model,
        layers,
        positions,
        site=site,
        use_hooks=True,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        progress=None,
    )
    tokenized = tokenize_prompts(model, tokenizer, prompts, rendered=rendered)
    lengths = [len(prompt.ids) for prompt in tokenized]
    spans = [settings.positions.span(len(prompt.ids), prompt.name) for prompt in tokenized]
    kept = len(prompts) if settings.positions.mean else sum(stop - start for start, stop in spans)
    rows = [prompt.ids for prompt in tokenized]
    run = planned_tokens(settings.plan(rows), rows)
    middling = sorted(tokenized, key=lambda prompt: len(prompt.ids))[len(prompts) // 2]
    width = describe_model(model).hidden_size
    return CaptureEstimate(
        prompts=len(prompts),
        tokens=sum(lengths),
        seconds=round(run * _seconds_per_token(model, middling.ids, len(prompts), settings), 2),
        bytes=kept * len(settings.layers) * width * (4 if settings.positions.mean else model.dtype.itemsize),
    )


def _seconds_per_token(model: PreTrainedModel, ids: list[int], most: int, settings: Settings) -> float:
    """Time a pass of at most so many prompts."""
    count = min(most, -(-_TIMED_TOKENS // len(ids)))
    batch = TokenBatch.of([ids] * count, input_device(model))
    begun = time.perf_counter()
    with onednn_products(wanted=settings.onednn):
        read_blocks(model, find_blocks(model), batch, [settings.layers[-1]], lambda _states: None)
    return (time.perf_counter() - begun) / (len(ids) * count)
