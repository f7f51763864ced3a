"""The pairs a concept makes: every persona in every template on every topic, or an even draw from them.

Knows concepts and messages. Does not know chat templates or models.
"""

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


DEFAULT_SAMPLES = 72


def draw_pairs(concept: Concept, max_samples: int | None = None, seed: int = 0) -> list[Pair]:
    """Draw pairs evenly over personas, templates and topics.

    Each factor's values occur about equally often, and so do persona with template, and topic with either: a factor
    that is left out later takes no other factor with it.

    Args:
        concept: What to draw from.
        max_samples: Most pairs to draw; None for every combination.
        seed: The same seed gives the same pairs in the same order, and fewer of them are the first of more.

    Returns:
        Distinct pairs, as many as asked for or as there are.

    Raises:
        RequestError: `max_samples` is less than one.

    Example:
        >>> from engine.concepts.catalog import load_concept
        >>> [pair.factors["persona"] for pair in draw_pairs(load_concept("honesty"), 2)]
        ['boat-dealer', 'politician']
    """
    if max_samples is not None:
        max_samples = require_whole(max_samples, "the number of pairs to draw (max_samples)", least=1)
    shuffle = random.Random(require_whole(seed, "the seed"))  # noqa: S311 - a reproducible draw, not a secret
    personas = shuffle.sample(concept.personas, len(concept.personas))
    templates = shuffle.sample(concept.templates, len(concept.templates))
    topics = shuffle.sample(concept.topics, len(concept.topics))
    settings = _in_turn(personas, templates)
    rows, columns = len(personas), len(templates)  # a topic meets each so much more rarely than it occurs
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
    """Every persona with every template, so ordered that the first few use all of both."""
    more, fewer = max(len(personas), len(templates)), min(len(personas), len(templates))
    # Along diagonals that wrap around the shorter side: each uses every one of the longer.
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
    # In one pass, and not with str.format: personas and topics may hold braces themselves.
    values = {"{persona}": persona, "{topic}": topic}
    system, user = (
        re.sub(r"\{(?:persona|topic)\}", lambda match: values[match[0]], text)
        for text in (template.system, template.user)
    )
    messages = (Message(role="system", content=system), Message(role="user", content=user))
    return tuple(message for message in messages if message["content"])


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
