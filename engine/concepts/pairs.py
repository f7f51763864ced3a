"""Draw pairs from a concept, all or a balanced sample, and render them."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from engine.concepts.chat import chat_template_hash, reads_clock, render_chats, time_now
from engine.inputs import require_whole
from engine.records.captures import Concept, Factors, Message, Pair, Persona, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DEFAULT_SAMPLES = 288
"""Pairs of a capture of a concept: one for every persona with every template of a built-in concept."""

QUICK_SAMPLES = 72
"""Pairs of a quick capture, which finds strong concepts only."""


def draw_pairs(concept: Concept, max_samples: int | None = None, seed: int = 0) -> list[Pair]:
    """Draw pairs balanced over personas, templates and topics.

    All values of a factor occur about equally often, and so do the combinations of persona with template and of topic
    with either. Holding out one value of a factor therefore does not hold out a value of another.

    Args:
        concept: The concept to draw from.
        max_samples: Maximum number of pairs; None for every combination.
        seed: Seed for sampling pairs. The same seed gives the same pairs in the same order, and a smaller sample is
            the start of a larger one.

    Returns:
        Distinct pairs: `max_samples` of them, or every combination if there are fewer.

    Raises:
        RequestError: `max_samples` is less than one.

    Example:
        >>> from engine.concepts.catalog import load_concept
        >>> [pair.factors["persona"] for pair in draw_pairs(load_concept("honesty"), 2)]
        ['critic', 'villager']
    """
    if max_samples is not None:
        max_samples = require_whole(max_samples, "the number of pairs to draw (max_samples)", least=1)
    shuffle = random.Random(require_whole(seed, "the seed"))  # noqa: S311 - reproducible sampling, not cryptography
    personas = shuffle.sample(concept.personas, len(concept.personas))
    templates = shuffle.sample(concept.templates, len(concept.templates))
    topics = shuffle.sample(concept.topics, len(concept.topics))
    settings = _in_turn(personas, templates)
    rows, columns = len(personas), len(templates)  # weights: a combination with a topic is rarer than the topic alone
    total = len(settings) * len(topics)
    used: Counter[object] = Counter()
    pairs = []
    for i in range(min(total, max_samples or total)):
        persona, template = settings[i % len(settings)]
        unused = (topic for topic in topics if not used[persona, template, topic])
        topic = min(unused, key=lambda t: used[t] + rows * used[persona, t] + columns * used[template, t])
        used.update([topic, (persona, topic), (template, topic), (persona, template, topic)])
        pairs.append(_pair(persona, template, topic))
    return pairs


def _in_turn(personas: list[Persona], templates: list[Template]) -> list[tuple[Persona, Template]]:
    """Every persona with every template; the first few already cover all of both."""
    more, fewer = max(len(personas), len(templates)), min(len(personas), len(templates))
    # Diagonals that wrap around the shorter axis: each covers the longer axis completely.
    places = [(i, (i + shift) % fewer) for shift, i in product(range(fewer), range(more))]
    if len(personas) < len(templates):
        places = [(j, i) for i, j in places]
    return [(personas[i], templates[j]) for i, j in places]


def _pair(persona: Persona, template: Template, topic: str) -> Pair:
    return Pair(
        positive=_messages(template, persona.positive, topic),
        negative=_messages(template, persona.negative, topic),
        factors=Factors(template=template.name, persona=persona.name, topic=topic),
    )


def _messages(template: Template, persona: str, topic: str) -> tuple[Message, ...]:
    # A single substitution instead of str.format: personas and topics may contain braces.
    values = {"{persona}": persona, "{topic}": topic}
    system, user = (
        re.sub(r"\{(?:persona|topic)\}", lambda match: values[match[0]], text)
        for text in (template.system, template.user)
    )
    messages = (Message(role="system", content=system), Message(role="user", content=user))
    return tuple(message for message in messages if message["content"])


@dataclass(frozen=True)
class RenderedPairs:
    """Pairs rendered as texts.

    Attributes:
        positive: Positive prompts.
        negative: Negative prompts, in the same order.
        factors: Factors of each pair.
        chat_template: SHA-256 of the chat template; None for a base model, which has none.
        moment: Time given to the chat template, in ISO 8601; None if it does not read the clock.
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
    """Draw pairs from a concept and render them with the model's chat template.

    Args:
        tokenizer: The model's tokenizer.
        concept: The concept to draw from.
        max_samples: Maximum number of pairs; None for every combination.
        seed: Seed for sampling pairs.
        moment: Time for templates that read the clock, in ISO 8601. Defaults to the current time.

    Raises:
        RequestError: `max_samples` is less than one.
        CaptureError: The chat template cannot render user messages in full.
    """
    pairs = draw_pairs(concept, max_samples, seed)
    moment = (moment or time_now()) if reads_clock(tokenizer) else None
    texts = render_chats(tokenizer, [chat for pair in pairs for chat in (pair.positive, pair.negative)], moment)
    return RenderedPairs(
        positive=texts[0::2],
        negative=texts[1::2],
        factors=[pair.factors for pair in pairs],
        chat_template=chat_template_hash(tokenizer),
        moment=moment,
    )
