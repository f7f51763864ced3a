"""Pairs of a concept as the texts that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.concepts.chat import chat_template_hash, reads_clock, render_chats, time_now
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
        moment: The time that the template was told, in ISO 8601; None if it does not read the clock.
    """

    positive: list[str]
    negative: list[str]
    factors: list[Factors]
    chat_template: str | None
    moment: str | None = None


def render_pairs(
    tokenizer: PreTrainedTokenizerBase,
    concept: Concept,
    max_samples: int | None,
    seed: int = 0,
    moment: str | None = None,
) -> RenderedPairs:
    """Draw pairs of a concept and write them as the model was trained to read them.

    Args:
        tokenizer: The model's tokenizer.
        concept: What to draw from.
        max_samples: Most pairs; None for every combination.
        seed: Of the draw.
        moment: The time that a template is told if it reads the clock, in ISO 8601; that of the call unless given.

    Raises:
        RequestError: `max_samples` is less than one.
        CaptureError: The chat template renders no message of the user as it is.
    """
    pairs = draw_pairs(concept, max_samples, seed)
    told = (moment or time_now()) if reads_clock(tokenizer) else None
    texts = render_chats(tokenizer, [side for pair in pairs for side in (pair.positive, pair.negative)], told)
    return RenderedPairs(
        positive=texts[0::2],
        negative=texts[1::2],
        factors=[pair.factors for pair in pairs],
        chat_template=chat_template_hash(tokenizer),
        moment=told,
    )
