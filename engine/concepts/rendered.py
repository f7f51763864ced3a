"""Pairs of a concept as the texts that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.concepts.chat import chat_template_hash, render_chat
from engine.concepts.pairs import draw_pairs
from engine.records.concepts import Concept, Factors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RenderedPairs:
    """Pairs as texts.

    Attributes:
        positive: Texts of one side.
        negative: Texts of the other, in the same order.
        factors: What each pair was made from.
        chat_template: Hash of the template that the texts went through; None for a base model, which has none.
    """

    positive: list[str]
    negative: list[str]
    factors: list[Factors]
    chat_template: str | None


def render_pairs(
    tokenizer: PreTrainedTokenizerBase, concept: Concept, max_samples: int | None, seed: int = 0
) -> RenderedPairs:
    """Draw pairs of a concept and write them as the model was trained to read them.

    Args:
        tokenizer: The model's tokenizer.
        concept: What to draw from.
        max_samples: Most pairs; None for every combination.
        seed: Of the draw.

    Raises:
        RequestError: `max_samples` is less than one.
        CaptureError: The chat template refuses even a single message of the user.
    """
    pairs = draw_pairs(concept, max_samples, seed)
    return RenderedPairs(
        positive=[render_chat(tokenizer, pair.positive) for pair in pairs],
        negative=[render_chat(tokenizer, pair.negative) for pair in pairs],
        factors=[pair.factors for pair in pairs],
        chat_template=chat_template_hash(tokenizer),
    )
