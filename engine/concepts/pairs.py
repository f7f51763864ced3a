"""The pairs a concept makes: every persona in every template on every topic, or an even draw from them.

Knows concepts and messages. Does not know chat templates or models.
"""

import random
import re
from collections import Counter
from itertools import product

from engine.plain import require_whole
from engine.records.concepts import Concept, Factors, Message, Pair, Persona, Template

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
