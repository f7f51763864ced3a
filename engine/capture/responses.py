"""Let a model respond to prompts, in batches whose responses do not depend on the other prompts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from engine.capture.batches import Batch, Limits, sorted_batches
from engine.capture.budget import token_budget
from engine.capture.generation import (
    Sampler,
    draw_numbers,
    end_tokens,
    generation_loop,
    generation_settings,
    places_tokens,
    require_settings,
)
from engine.capture.passes import free_failed_pass
from engine.capture.prefill import prefill
from engine.capture.prompts import longest_prompt
from engine.errors import CaptureError, out_of_memory
from engine.inputs import require_seed, require_whole
from engine.models.description import describe_model, examine_model
from engine.models.forward import evaluating, input_device
from engine.models.structure import find_blocks
from engine.remedies import Remedy
from engine.runtime import Progress, ignore_progress, main_memory

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

    from engine.records.models import ModelConfig

log = logging.getLogger(__name__)

# A batch may have this many times the tokens of a forward pass: after the prompts, a pass has one token per prompt.
_GENERATED = 8
_MOST_TOKENS = 4096  # of a forward pass: keys and values, not the prompts, fill the memory of a GPU
_CACHED = 8  # on a CPU, their keys and values may take 1/8 of all memory: the system would kill the process, not refuse


class Response(NamedTuple):
    """A model's response to a prompt.

    Attributes:
        ids: New token ids without the end token; may be empty.
        ended: Whether the model ended the response before the maximum number of tokens.
    """

    ids: list[int]
    ended: bool


def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    sample: bool = False,
    seed: int = 0,
    first: int = 0,
    names: Sequence[str] | None = None,
    limits: Limits | None = None,
    prefix_reuse: bool = True,
    progress: Progress = ignore_progress,
) -> list[Response]:
    """Let a model respond to tokenized prompts, in batches and with its key-value cache.

    Each response equals that to the prompt alone, unless two tokens are equally likely up to rounding. Prompts of
    different lengths share a batch only if the load check has shown that the model follows masks and token positions;
    others are batched by length, without padding.

    Args:
        model: Any causal language model that passes the load check. It is not modified.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        max_new_tokens: Maximum number of new tokens of each response.
        sample: Whether to sample, with the model's own generation settings, instead of taking the most likely token.
        seed: Seed for sampling. A sampled response depends on it, the prompt and the prompt's number.
        first: Number of the first prompt, if the prompts are a slice of a longer list.
        names: Names of the prompts in error messages; their numbers by default.
        limits: Maximum size of a forward pass, from which that of a batch follows; None for the model's token budget.
        prefix_reuse: Whether prefixes that prompts of a batch share are run once, where the model allows it.
        progress: Called with the number of finished responses and their total, after each token of a batch; an
            exception it raises stops the work.

    Returns:
        The responses, in the order of the prompts.

    Raises:
        RequestError: The number of tokens or the seed is not a whole number of the allowed range, or the model's
            generation settings cannot be followed.
        CaptureError: A prompt with its response would be longer than the model allows, or memory does not suffice for a
            single prompt.
        ModelError: The model fails the load check.

    Example:
        >>> prompts = [tokenizer("Once upon a time")["input_ids"], tokenizer("The sky is")["input_ids"]]
        >>> [len(response.ids) for response in generate_responses(model, tokenizer, prompts, 5)]
        [5, 5]
    """
    limit, seed = require_whole(max_new_tokens, "the number of new tokens", 1), require_seed(seed)
    require_settings(model)
    longest = longest_prompt(model, tokenizer)
    for place, ids in enumerate(prompts):
        require_room(len(ids), limit, longest, names[place] if names else f"prompt {first + place}")
    limits = limits or Limits(token_budget(model))
    plan = response_batches(model, prompts, limit, limits)
    generator = _Generator(
        model=model,
        prompts=prompts,
        limit=limit,
        shared=limits if prefix_reuse else None,
        draws=draw_numbers(seed, first, len(prompts), limit) if sample else None,
        ends=end_tokens(model, tokenizer),
        progress=progress,
    )
    progress(0, len(prompts))
    return generator.run(plan)


def response_batches(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, limits: Limits
) -> list[Batch]:
    """Group prompts into the batches in which a model responds to them.

    Args:
        model: The model.
        prompts: Token ids of each prompt.
        max_new_tokens: Maximum number of new tokens of each response.
        limits: Maximum size of a forward pass.

    Raises:
        ModelError: The model fails the load check.
    """
    known = examine_model(model).config
    most = 1 if known.added else limits.prompts  # added code may treat the rows of a batch differently
    allowed = Limits(min(_GENERATED * min(limits.tokens, _MOST_TOKENS), _most_cached(model, known)), most)
    lengths, window = [len(ids) + max_new_tokens for ids in prompts], known.receipt.get("window")
    fits = window is None or max(lengths, default=0) <= window
    if known.receipt.get("separate", "not checked") == "" and fits and places_tokens(model):
        return sorted_batches(lengths, allowed)
    plan: list[Batch] = []
    for length in sorted(set(lengths), reverse=True):
        same = [index for index, other in enumerate(lengths) if other == length]
        batches = sorted_batches([length] * len(same), allowed)
        plan += [Batch([same[place] for place in batch.prompts]) for batch in batches]
    return plan


def _most_cached(model: PreTrainedModel, known: ModelConfig) -> int:
    """Maximum number of tokens in the key-value cache of a model on a CPU; the same in every run on a machine."""
    if input_device(model).type != "cpu":
        return sys.maxsize  # a GPU says that memory ran out
    token_bytes = 2 * known.num_layers * known.hidden_size * model.dtype.itemsize
    return main_memory().total // _CACHED // token_bytes


def require_room(prompt: int, new: int, longest: int, name: object) -> None:
    """Refuse a prompt that leaves too little room for its response.

    Args:
        prompt: Number of tokens of the prompt.
        new: Maximum number of tokens of its response.
        longest: Maximum number of tokens of both, from `longest_prompt`.
        name: What the message calls the prompt.

    Raises:
        CaptureError: They are longer than the model allows.
    """
    if prompt >= longest:
        raise CaptureError(
            f"{name} has {prompt} tokens, which leave no room for a response within the model's {longest}",
            expected=f"at most {longest - new} tokens, to let it respond with {new}",
            next_step="shorten it; prompts are never truncated silently",
        )
    if prompt + new > longest:
        raise CaptureError(
            f"{name} has {prompt} tokens, so that {new} tokens of a response exceed the model's {longest}",
            expected=f"at most {longest - prompt} tokens for the response",
            next_step="shorten the prompt, or let the model respond with fewer tokens",
        )


@dataclass
class _Generator:
    """Runs batches of prompts and counts finished responses.

    Attributes:
        model: The model.
        prompts: Token ids of all prompts.
        limit: Maximum number of new tokens.
        shared: Maximum size of a forward pass in which prompts share their prefixes; None if they must not.
        draws: Random numbers for sampling, `(prompts, limit)`; None to take the most likely token.
        ends: Ids of the tokens that end a response.
        progress: Called with the number of finished responses and their total.
        done: Largest number of finished responses reported.
    """

    model: PreTrainedModel
    prompts: Sequence[Sequence[int]]
    limit: int
    shared: Limits | None
    draws: Tensor | None
    ends: list[int]
    progress: Progress
    done: int = 0

    def run(self, plan: Sequence[Batch]) -> list[Response]:
        """Run batches; return all responses in the order of the prompts."""
        responses: dict[int, Response] = {}
        waiting, most_tokens = [*reversed(plan)], None
        while waiting:
            batch = waiting.pop()
            tokens = len(batch.prompts) * max(len(self.prompts[index]) + self.limit for index in batch.prompts)
            if len(batch.prompts) > 1 and most_tokens is not None and tokens > most_tokens:
                waiting += reversed(batch.halves())
                continue
            found = None
            try:
                found = [*self._respond(batch.prompts, len(responses))]
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if len(batch.prompts) == 1:
                    raise _too_large(len(self.prompts[batch.prompts[0]]), self.limit) from error
            if found is None:  # outside of `except`, where the traceback would keep tensors alive
                most_tokens = tokens // 2
                log.info("out of memory in a batch of %d responses: continuing with fewer", len(batch.prompts))
                free_failed_pass(input_device(self.model))
                waiting.append(batch)
                continue
            responses |= dict(zip(batch.prompts, found, strict=True))
            self._report(len(responses))
        return [responses[index] for index in range(len(self.prompts))]

    def _report(self, done: int) -> None:
        self.done = max(self.done, done)  # a batch that ran out of memory starts again
        self.progress(self.done, len(self.prompts))

    def _respond(self, batch: Sequence[int], before: int) -> Iterator[Response]:
        """Respond to the prompts of one batch, after `before` responses of other batches."""
        rows = [self.prompts[index] for index in batch]
        width, device = max(map(len, rows)), input_device(self.model)
        # Padding is masked, so any id works; the first one is new to no setting that counts tokens.
        ids = torch.tensor([[*[row[0]] * (width - len(row)), *row] for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        ends = torch.tensor(self.ends, dtype=torch.long, device=device)

        def after_token(ids: Tensor, _scores: Any, **_more: Any) -> Tensor:  # noqa: ANN401 - transformers' signature
            self._report(before + int(torch.isin(ids[:, width:], ends).any(-1).sum()))
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        draws = None if self.draws is None else self.draws[torch.tensor(batch)]
        with evaluating(self.model, find_blocks(self.model).decoder):
            cache = None
            if self.shared is not None and len(rows) > 1 and places_tokens(self.model):
                cache = prefill(self.model, describe_model(self.model), rows, self.limit, self.shared)
            output = self._generate(ids, mask, cache, draws, after_token)
        for new in output[:, width:].tolist():
            stop = next((place for place, token in enumerate(new) if token in self.ends), None)
            yield Response(new[:stop], stop is not None)

    def _generate(
        self,
        ids: Tensor,
        mask: Tensor,
        cache: DynamicCache | None,
        draws: Tensor | None,
        after_token: Any,  # noqa: ANN401
    ) -> Tensor:
        """Continue padded prompts, `(rows, width)`; rows that end early are filled with an end token."""
        from transformers import StoppingCriteriaList

        with torch.random.fork_rng(devices=[ids.device] if ids.device.type == "cuda" else []):
            output: Tensor = self.model.generate(  # type: ignore[operator]  # a mixin that type checkers do not see
                input_ids=ids,
                attention_mask=mask,
                stopping_criteria=StoppingCriteriaList([after_token]),
                custom_generate=generation_loop(cache, None if draws is None else Sampler(draws, ids.shape[1])),
                generation_config=generation_settings(self.model, self.ends, self.limit, sample=draws is not None),
            )
        return output


def _too_large(prompt: int, new: int) -> CaptureError:
    return CaptureError(
        f"memory does not suffice to respond to a single prompt of {prompt} tokens with {new} tokens",
        next_step=Remedy.USE_LESS_MEMORY,
    )
