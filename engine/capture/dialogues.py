"""Let the model respond to the prompts of a capture, and say where responses come from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engine.capture.generation import sampling_settings
from engine.capture.responses import generate_responses
from engine.records.captures import ResponseSource, ResponseText
from engine.runtime import Progress, Steps, ignore_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.capture.prompts import TokenizedPrompt
    from engine.capture.request import CaptureRequest
    from engine.capture.run_settings import Settings

log = logging.getLogger(__name__)

RESPONDING = "generating responses"
"""Step name reported while the model responds."""

# Endings of names in the generation config that do not change responses here.
_NO_SETTINGS = (
    "_id",
    "_version",
    "_config",
    "_cache",
    "_implementation",
    "max_length",
    "_attentions",
    "_hidden_states",
)


def respond_to(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[TokenizedPrompt],
    request: CaptureRequest,
    settings: Settings,
    first: int = 0,
    progress: Progress = ignore_progress,
) -> list[TokenizedPrompt]:
    """Append responses of the model to prompts; return them unchanged if the request wants none.

    Args:
        model: A checked model.
        tokenizer: Its tokenizer.
        prompts: The prompts.
        request: How to respond.
        settings: How the capture runs.
        first: Number of the first prompt.
        progress: Called with the number of finished responses and their total.

    Raises:
        CaptureError: See `generate_responses`.
    """
    if request.respond is None:
        return prompts
    responses = generate_responses(
        model,
        tokenizer,
        [prompt.ids for prompt in prompts],
        request.respond,
        sample=request.sample,
        seed=request.seed,
        first=first,
        limits=settings.limits,
        prefix_reuse=settings.prefix_reuse == "on",
        progress=progress,
    )
    return [
        prompt.followed_by(
            response.ids,
            _spelt(tokenizer, response.ids),
            ResponseText(text=str(tokenizer.decode(response.ids)), tokens=len(response.ids), ended=response.ended),
        )
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def _spelt(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Token strings; a model may generate ids beyond the vocabulary of its tokenizer."""
    known: Sequence[str | None] = tokenizer.convert_ids_to_tokens(ids)
    return [f"<token {one}>" if token is None else token for one, token in zip(ids, known, strict=True)]


def tell_unusual(responses: Iterable[ResponseText], most: int) -> None:
    """Log how many responses of a capture are empty or were cut.

    Args:
        responses: All of its generated responses.
        most: Maximum number of tokens of each.
    """
    count = empty = cut = 0
    for response in responses:
        count += 1
        empty += not response["tokens"]
        cut += response["ended"] is False
    if empty:
        log.warning("%d of %d responses are empty: the last token of the prompt stands for each of them", empty, count)
    if cut:
        log.info("%d of %d responses were cut at the maximum of %d tokens", cut, count, most)


def response_source(model: PreTrainedModel, request: CaptureRequest) -> ResponseSource | None:
    """Where the responses of a capture come from; None without responses."""
    if request.respond is not None:
        return ResponseSource(
            origin="generated",
            max_new_tokens=request.respond,
            sampled=request.sample,
            seed=request.seed if request.sample else None,
            settings=_generation_settings(model, sample=request.sample),
        )
    if request.gives_responses:
        return ResponseSource(origin="given", max_new_tokens=None, sampled=False, seed=None, settings="")
    return None


def _generation_settings(model: PreTrainedModel, *, sample: bool) -> str:
    """The generation settings that may change the responses of a model, in words; empty if there are none."""
    settings: Any = model.generation_config
    named = {name: value for name, value in settings.to_diff_dict().items() if not name.endswith(_NO_SETTINGS)}
    named |= sampling_settings(model) if sample else {}
    return ", ".join(f"{name} {value}" for name, value in sorted(named.items()))


def response_progress(progress: Progress, steps: Steps | None, total: int, start: int = 0) -> Progress:
    """Progress of the responses of a capture, reported as a step of its own.

    Args:
        progress: Progress of the captured prompts; without `steps` it is called too, so that it can stop the work.
        steps: See `capture_in_memory`.
        total: Number of all prompts.
        start: Number of the first prompt.
    """

    def report(done: int, _of_part: int) -> None:
        if steps in (None, ignore_progress):
            progress(start, total)
        else:
            steps(RESPONDING, start + done, total)

    return report
