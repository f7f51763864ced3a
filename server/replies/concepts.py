"""What is answered about concepts."""

from pydantic import BaseModel, Field

from engine.records.captures import Concept
from server.replies.reply import Reply, shorten

MOST_DESCRIPTION = 160
_MOST_WORD = 40
_MOST_LINE = 80
_MOST_SHOWN = 12


class ConceptSummary(BaseModel):
    """A named contrast."""

    name: str
    positive: str
    negative: str
    description: str
    pairs: int = Field(description="How many pairs it can make")


class ConceptsReply(Reply):
    """A page of concepts."""

    concepts: list[ConceptSummary]
    total: int = Field(description="How many there are")
    next_offset: int | None = Field(default=None, description="Give this as offset for the next page")


class ConceptReply(Reply):
    """One concept."""

    concept: ConceptSummary
    personas: list[dict[str, str]]
    templates: list[dict[str, str]]
    topics: list[str]
    left_out: int = Field(description="Personas, templates and topics not shown; detail=full shows all")


def summarise_concept(concept: Concept) -> ConceptSummary:
    """A concept as clients see it in a list."""
    return ConceptSummary(
        name=concept.name,
        positive=shorten(concept.positive, _MOST_WORD),
        negative=shorten(concept.negative, _MOST_WORD),
        description=shorten(concept.description, MOST_DESCRIPTION),
        pairs=len(concept.personas) * len(concept.templates) * len(concept.topics),
    )


def describe_concept(concept: Concept, *, full: bool = False) -> ConceptReply:
    """A concept and what its prompts are made from: all of it, or as much as fits into a small answer."""
    personas = [{"name": p.name, "positive": p.positive, "negative": p.negative} for p in concept.personas]
    templates = [{"name": t.name, "system": t.system, "user": t.user} for t in concept.templates]
    topics, total = list(concept.topics), len(personas) + len(templates) + len(concept.topics)
    if not full:
        personas, templates = _shortened(personas[:_MOST_SHOWN]), _shortened(templates[: _MOST_SHOWN // 2])
        topics = [shorten(topic, _MOST_LINE) for topic in topics[: 2 * _MOST_SHOWN]]
    return ConceptReply(
        concept=summarise_concept(concept),
        personas=personas,
        templates=templates,
        topics=topics,
        left_out=total - len(personas) - len(templates) - len(topics),
        next_step=f"capture_contrast(concept='{concept.name}')",
    )


def _shortened(texts: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: shorten(text, _MOST_LINE) for key, text in entry.items()} for entry in texts]
