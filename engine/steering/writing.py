"""Generate one text, and read it with the unsteered model."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from engine.capture.generation import end_tokens, generation_settings
from engine.errors import RequestError
from engine.models.forward import TokenBatch, evaluating, input_device, read_blocks, run_decoder
from engine.models.structure import find_blocks
from engine.records.files import Direction

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Written(NamedTuple):
    """A generated text, see `SteeredText`."""

    text: str
    ids: list[int]
    ended: bool
    perplexity: float


@dataclass(frozen=True)
class Writer:
    """Continues a prompt and measures the new tokens.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        prompt: Token ids of the prompt.
        direction: The direction on which new tokens are projected.
        max_new_tokens: Maximum number of new tokens.
        sample: Whether to sample, with the model's own generation settings.
        seed: Seed for sampling.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt: list[int]
    direction: Direction
    max_new_tokens: int
    sample: bool
    seed: int

    def write(
        self, steering: AbstractContextManager[None], refusal: RequestError, report: Callable[[int], None]
    ) -> Written:
        """Generate a text under steering, then leave the steering and measure the text.

        Args:
            steering: Context for the generation.
            refusal: The error to raise if a prediction is not finite.
            report: Called with the number of new tokens after each.

        Raises:
            RequestError: A prediction is not finite.
        """
        decoder = find_blocks(self.model).decoder
        with evaluating(self.model, decoder):
            with steering:
                new = self._generate(refusal, report)
            ended = new[-1] in end_tokens(self.model, self.tokenizer)
            counted = new[:-1] if ended and len(new) > 1 else new
            return Written(
                text=str(self.tokenizer.decode(counted, skip_special_tokens=True)).strip(),
                ids=counted,
                ended=ended,
                perplexity=self._perplexity(counted),
            )

    def project(self, new: list[int]) -> list[float]:
        """Project new tokens, as the unsteered model reads them after the prompt.

        Args:
            new: Token ids.

        Returns:
            One value per token: 0 at the mean of the negative class, 1 at that of the positive class.
        """
        layer, direction, blocks = self.direction["layer"], self.direction, find_blocks(self.model)
        batch = TokenBatch.of([[*self.prompt, *new]], input_device(self.model))

        def keep(states: Tensor) -> Tensor:
            return states[0, len(self.prompt) :].to("cpu", torch.float64, copy=True)

        with evaluating(self.model, blocks.decoder):
            states = read_blocks(self.model, blocks, batch, [layer], keep)[layer]  # (new, hidden)
        gap = (
            direction["positive_mean"] - direction["negative_mean"] or 1.0
        )  # a direction made by hand may have no class means
        projected = (states @ direction["vector"].double().cpu() - direction["negative_mean"]) / gap
        values: list[float] = projected.tolist()
        return values

    def _generate(self, refusal: RequestError, report: Callable[[int], None]) -> list[int]:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        def require_finite(_ids: Tensor, scores: Tensor) -> Tensor:
            if not bool(scores.max().isfinite()):  # impossible tokens have -inf
                raise refusal
            return scores

        def after_token(ids: Tensor, _scores: Any, **_more: Any) -> Tensor:  # noqa: ANN401 - transformers' signature
            report(ids.shape[1] - len(self.prompt))
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        device = input_device(self.model)
        ids = torch.tensor([self.prompt], device=device)
        ends = end_tokens(self.model, self.tokenizer)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            output: Any = self.model.generate(  # type: ignore[operator]  # a mixin that type checkers do not see
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=LogitsProcessorList([require_finite]),
                stopping_criteria=StoppingCriteriaList([after_token]),
                generation_config=generation_settings(self.model, ends, self.max_new_tokens, sample=self.sample),
            )
        new: list[int] = output[0, len(self.prompt) :].tolist()
        return new

    def _perplexity(self, new: list[int]) -> float:
        """Perplexity of new tokens after the prompt."""
        batch = TokenBatch.of([[*self.prompt, *new]], input_device(self.model))
        logits = run_decoder(self.model, batch).logits  # (1, prompt + new, vocabulary)
        scores = logits[0, len(self.prompt) - 1 : -1].float()  # (new, vocabulary): each row predicts a new token
        targets = torch.tensor(new, device=scores.device)
        return math.exp(min(float(torch.nn.functional.cross_entropy(scores, targets)), 700.0))
