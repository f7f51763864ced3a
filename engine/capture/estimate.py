"""What a capture will cost, told before it is run: prompts, tokens, seconds and bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.capture.batches import Limits
from engine.capture.prefixes import planned_tokens
from engine.capture.prompts import TokenizedPrompt, tokenize_prompts
from engine.capture.run import run_batches
from engine.capture.selection import DEFAULT_BATCH_SIZE, LayerSpec, PositionSpec
from engine.capture.settings import Settings
from engine.capture.sites import DEFAULT_SITE
from engine.errors import CaptureError
from engine.inputs import plain_texts
from engine.models.description import describe_model
from engine.models.forward import input_device
from engine.models.offload import is_offloaded
from engine.records.captures import CaptureEstimate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TIMED_TOKENS = 128  # in memory on a CPU: fewer would cost nearly as much, since the weights are read all the same


def estimate_capture(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str],
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
        The estimate. Prompts, tokens and bytes of the states are exact; seconds are those of tokenizing, and those
        of capturing the first prompts, scaled by the number of tokens that are run: on a CPU of 128 tokens or one
        prompt, on a GPU and for weights that are fetched of as many as will be run at once.

    Raises:
        RequestError: A site, layers or positions that do not exist.
        CaptureError: A prompt that is empty or too long, or states that are unusable.
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
    texts = plain_texts(prompts)
    if not texts:
        raise CaptureError("there are no prompts", expected="at least one")
    begun = time.perf_counter()
    tokenized = tokenize_prompts(model, tokenizer, texts, rendered=rendered)
    tokenizing = time.perf_counter() - begun
    lengths = [len(prompt.ids) for prompt in tokenized]
    spans = [settings.positions.span(len(prompt.ids), prompt.name) for prompt in tokenized]
    kept = len(texts) if settings.positions.mean else sum(stop - start for start, stop in spans)
    rows = [prompt.ids for prompt in tokenized]
    run = planned_tokens(settings.plan(rows), rows)
    width = describe_model(model).hidden_size
    return CaptureEstimate(
        prompts=len(texts),
        tokens=sum(lengths),
        seconds=round(tokenizing + run * _seconds_per_token(model, tokenized, settings), 2),
        bytes=kept * len(settings.layers) * width * (4 if settings.positions.mean else model.dtype.itemsize),
    )


def _seconds_per_token(model: PreTrainedModel, prompts: Sequence[TokenizedPrompt], settings: Settings) -> float:
    """Capture some prompts in one pass, and keep nothing.

    On a GPU, or where weights are fetched, a few tokens take as long as many: there it is as many as will be run at
    once, and on a GPU the second time counts, as the first makes it ready.
    """
    on_cpu, limits = input_device(model).type == "cpu", settings.limits
    if on_cpu and not is_offloaded(model):
        limits = replace(limits, tokens=min(_TIMED_TOKENS, limits.tokens))
    some, seconds = _of_one_pass(prompts, limits), 0.0
    for _ in range(1 if on_cpu else 2):
        begun = time.perf_counter()
        for _states in run_batches(model, some, settings):
            pass
        seconds = time.perf_counter() - begun
    rows = [prompt.ids for prompt in some]
    return seconds / planned_tokens(settings.plan(rows), rows)


def _of_one_pass(prompts: Sequence[TokenizedPrompt], limits: Limits) -> Sequence[TokenizedPrompt]:
    """The first prompts, as many as may go together in rows of their own."""
    longest = 0
    for count, prompt in enumerate(prompts, 1):
        longest = max(longest, len(prompt.ids))
        if not limits.allow(count, count * longest):
            return prompts[: count - 1]
    return prompts
