"""Estimate the size and duration of a capture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from engine.capture.prefixes import batch_tokens, batches_of, planned_tokens
from engine.capture.prepare import PreparedCapture
from engine.capture.prompts import TokenizedPrompt
from engine.capture.responses import generate_responses, response_batches
from engine.capture.run import run_batches
from engine.capture.run_settings import Settings
from engine.capture.selection import DEFAULT_POSITIONS, parse_positions
from engine.models.forward import input_device
from engine.models.offload import is_offloaded
from engine.records.captures import CaptureEstimate
from engine.runtime import main_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TIMED_TOKENS = 128  # for a model in memory on a CPU; fewer would take nearly as long, because all weights are read
_TIMED_STEPS = 4  # tokens of responses
# Prompts in a sample: as many as in a shard, so that the sample shares prefixes as much as the shards do. Like a shard,
# it grows with token budgets above 512, up to 16 times.
_SAMPLE = 512
_SAMPLE_BUDGET = 512
_LARGEST_SAMPLE = 16


def estimate_capture(prepared: PreparedCapture, *, timed: bool = False) -> CaptureEstimate:
    """Estimate the size of a capture and, on request, its duration.

    Args:
        prepared: From `prepare_capture`.
        timed: Also time a small forward pass, to estimate the seconds.

    Returns:
        The estimate. Prompts, tokens and bytes of the states are exact, or the maximum if the model responds first.
        Seconds, only with `timed`, are for tokenizing and capturing the first 512 prompts, scaled to all tokens. The
        timed pass has 128 tokens or one prompt on a CPU, and is the largest batch of the plan for them on a GPU or with
        offloaded weights. Responses of the maximum length are added, from a few timed tokens of one batch.

    Raises:
        CaptureError: With `timed`, states are not finite or all zero.

    Example:
        >>> prepared = prepare_capture(model, tokenizer, CaptureRequest(["Tell me a story"] * 1000, layers=[16]))
        >>> estimate_capture(prepared)
        {'prompts': 1000, 'tokens': 4000, 'bytes': 2304000, 'in_shards': False}
    """
    found = prepared.found
    estimate = CaptureEstimate(
        prompts=found["count"],
        tokens=found["tokens"],
        bytes=found["kept_in_all"] * prepared.state_bytes,
        in_shards=goes_into_shards(prepared),
    )
    if timed:
        estimate["seconds"] = round(_seconds(prepared), 2)
    return estimate


def goes_into_shards(prepared: PreparedCapture) -> bool:
    """Whether to save a capture as shards.

    This is the case on request, for files of prompts, and if the states are too large for memory. The limit is the
    request's `most_in_memory` or half of the free memory, whichever is less; the model and the ranking need the rest.
    """
    request = prepared.request
    return request.always_shards or bytes_in_memory(prepared) > min(request.most_in_memory, main_memory().free // 2)


def bytes_in_memory(prepared: PreparedCapture) -> int:
    """Bytes of all states in memory; several prompts are padded to the longest."""
    found = prepared.found
    rows = found["kept_in_all"] if found["pairs"] else found["kept"] * found["count"]
    return rows * prepared.state_bytes


def _seconds(prepared: PreparedCapture) -> float:
    """Time the first prompts and scale to all."""
    source, settings = prepared.source, prepared.settings
    if prepared.request.respond is not None:  # there are no responses yet to read
        settings = replace(settings, positions=parse_positions(DEFAULT_POSITIONS))
    started = time.perf_counter()
    most = _SAMPLE * min(max(settings.limits.tokens // _SAMPLE_BUDGET, 1), _LARGEST_SAMPLE)
    items = [*islice(source.items(), most // source.sides)]
    sample = source.tokenize(prepared.model, prepared.tokenizer, items, 0)
    tokenizing = time.perf_counter() - started
    rows = [prompt.ids for prompt in sample]
    running = planned_tokens(settings.plan(rows), rows) * _seconds_per_token(prepared.model, sample, settings)
    seconds = (tokenizing + running) * prepared.found["tokens"] / sum(map(len, rows))
    return seconds + _seconds_to_respond(prepared, rows) * prepared.found["count"] / len(rows)


def _seconds_to_respond(prepared: PreparedCapture, rows: Sequence[list[int]]) -> float:
    """Time a few tokens of the first batch of responses, and scale to all batches and tokens."""
    model, limit, limits = prepared.model, prepared.request.respond, prepared.settings.limits
    reuse = prepared.settings.prefix_reuse == "on"
    if limit is None:
        return 0.0
    batches = response_batches(model, rows, limit, limits)
    first = [rows[index] for index in batches[0].prompts]
    seconds: list[float] = []
    for tokens in (1, 1 + min(_TIMED_STEPS, limit)):  # the first token takes a pass over the prompts
        started = time.perf_counter()
        generate_responses(model, prepared.tokenizer, first, tokens, limits=limits, prefix_reuse=reuse)
        seconds.append(time.perf_counter() - started)
    per_token = max(seconds[1] - seconds[0], 0.0) / min(_TIMED_STEPS, limit)
    return len(batches) * (seconds[0] + per_token * (limit - 1))


def _seconds_per_token(model: PreTrainedModel, prompts: Sequence[TokenizedPrompt], settings: Settings) -> float:
    """Time one forward pass and discard its states.

    On a GPU or with offloaded weights, a few tokens take as long as many, so the largest batch is timed. On a GPU the
    second pass is timed, because the first includes warm-up.
    """
    on_cpu, limits = input_device(model).type == "cpu", settings.limits
    if on_cpu and not is_offloaded(model):
        limits = replace(limits, tokens=min(_TIMED_TOKENS, limits.tokens))
    some, seconds = _of_largest_batch(prompts, replace(settings, limits=limits)), 0.0
    for _ in range(1 if on_cpu else 2):
        started = time.perf_counter()
        for _states in run_batches(model, some, settings):
            pass
        seconds = time.perf_counter() - started
    rows = [prompt.ids for prompt in some]
    return seconds / planned_tokens(settings.plan(rows), rows)


def _of_largest_batch(prompts: Sequence[TokenizedPrompt], settings: Settings) -> Sequence[TokenizedPrompt]:
    rows = [prompt.ids for prompt in prompts]
    largest = max(batches_of(settings.plan(rows)), key=lambda batch: batch_tokens(batch, rows))
    return [prompts[index] for index in largest.prompts]
