"""What is answered about concepts."""

from pydantic import BaseModel, Field

from engine.records.concepts import Concept
from server.replies.reply import Reply


class ConceptSummary(BaseModel):
    """A named contrast."""

    name: str
    positive: str
    negative: str
    description: str
    pairs: int = Field(description="How many pairs it can make")


class ConceptsReply(Reply):
    """The concepts."""

    concepts: list[ConceptSummary]


class ConceptReply(Reply):
    """One concept in full."""

    concept: ConceptSummary
    personas: list[dict[str, str]]
    templates: list[dict[str, str]]
    topics: list[str]


def summarise_concept(concept: Concept) -> ConceptSummary:
    """A concept as clients see it in a list."""
    return ConceptSummary(
        name=concept.name,
        positive=concept.positive,
        negative=concept.negative,
        description=concept.description,
        pairs=len(concept.personas) * len(concept.templates) * len(concept.topics),
    )


def describe_concept(concept: Concept) -> ConceptReply:
    """A concept in full."""
    return ConceptReply(
        concept=summarise_concept(concept),
        personas=[{"name": p.name, "positive": p.positive, "negative": p.negative} for p in concept.personas],
        templates=[{"name": t.name, "system": t.system, "user": t.user} for t in concept.templates],
        topics=list(concept.topics),
        next_step=f"capture_contrast(concept='{concept.name}')",
    )
