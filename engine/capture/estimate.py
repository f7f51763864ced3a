"""Estimate what a capture costs: exact counts before it is run, and on request the seconds, from a timed pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from engine.capture.batches import Limits
from engine.capture.prefixes import planned_tokens
from engine.capture.prepare import PreparedCapture
from engine.capture.prompts import TokenizedPrompt
from engine.capture.run import run_batches
from engine.capture.settings import Settings
from engine.concepts.text_files import PromptFile
from engine.models.forward import input_device
from engine.models.offload import is_offloaded
from engine.records.captures import CaptureEstimate
from engine.runtime import main_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TIMED_TOKENS = 128  # in memory on a CPU: fewer would cost nearly as much, since the weights are read all the same
_SAMPLE = 512  # prompts: as many as a shard holds, so that the sample shares prefixes as the shards will


def estimate_capture(prepared: PreparedCapture, *, timed: bool = False) -> CaptureEstimate:
    """Say what a capture will read and keep, and whether it is saved as shards.

    Args:
        prepared: From `prepare_capture`.
        timed: Also time a small pass, for the seconds.

    Returns:
        The estimate. Prompts, tokens and bytes of the states are exact. Seconds, only with `timed`, are those of
        tokenizing and capturing the first 512 prompts, scaled by the number of tokens. On a CPU 128 tokens or one
        prompt are timed; on a GPU, and for weights that are fetched, as many as will be run at once.

    Raises:
        CaptureError: With `timed`, states are unusable.

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
    """Whether a capture is saved as shards: files of prompts are, and what is too large for memory.

    The limit is the request's, or half of the free memory: the model and the ranking need some too.
    """
    request = prepared.request
    if request.shards or isinstance(request.source, PromptFile):
        return True
    return bytes_in_memory(prepared) > min(request.most_in_memory, main_memory().free // 2)


def bytes_in_memory(prepared: PreparedCapture) -> int:
    """Bytes of all states in memory: rows of several prompts are padded to the longest."""
    found = prepared.found
    rows = found["kept_in_all"] if found["pairs"] else found["kept"] * found["count"]
    return rows * prepared.state_bytes


def _seconds(prepared: PreparedCapture) -> float:
    """Time of the first prompts, scaled to all."""
    source, settings = prepared.source, prepared.settings
    begun = time.perf_counter()
    items = [*islice(source.items(), _SAMPLE // source.sides)]
    sample = source.tokenize(prepared.model, prepared.tokenizer, items, 0)
    tokenizing = time.perf_counter() - begun
    rows = [prompt.ids for prompt in sample]
    running = planned_tokens(settings.plan(rows), rows) * _seconds_per_token(prepared.model, sample, settings)
    return (tokenizing + running) * prepared.found["tokens"] / sum(map(len, rows))


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
