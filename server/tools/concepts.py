"""Tools for concepts: list them, show one, define one."""

from typing import Annotated, Any, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from engine.concepts import catalog
from engine.records.captures import Concept
from server.tools.answer import Outline, Page, Reply, rounded, send, shorten
from server.tools.spec import LONGEST_NAME, Offset, ToolSpec
from server.workbench import Ctx, workbench

_PAGE = 20
_LONGEST = 2000
_MOST_DESCRIPTION = 160
_MOST_WORD = 40
_MOST_LINE = 80
_MOST_SHOWN = 12


class PersonaText(BaseModel):
    """The two roles of a contrast, in the same words except for the contrast."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Short name, e.g. witness", max_length=LONGEST_NAME)
    positive: str = Field(description="e.g. a witness who reports each fact as it was", max_length=_LONGEST)
    negative: str = Field(description="e.g. a witness who twists each fact to suit the story", max_length=_LONGEST)


class TemplateText(BaseModel):
    """A prompt with {persona} and {topic}, each once in user and system together."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Short name, e.g. act-as", max_length=LONGEST_NAME)
    user: str = Field(description="e.g. Act as {persona}. {topic}", max_length=_LONGEST)
    system: str = Field(default="", description="System message, if any", max_length=_LONGEST)


class ConceptSummary(BaseModel):
    """A concept in short."""

    name: str
    positive: str
    negative: str
    description: str
    pairs: int = Field(description="Number of pairs it can make")


class ConceptReply(Reply):
    """One concept, with the first of its texts."""

    counted: ClassVar[tuple[str, ...]] = ("personas", "templates", "topics")
    concept: Annotated[ConceptSummary, WithJsonSchema({"type": "object", "description": "As in list_concepts"})]
    personas: list[dict[str, str]]
    templates: list[dict[str, str]]
    topics: list[str]
    left_out: int = Field(description="Number of texts not shown")
    check: Outline | None = Field(default=None, description="From define_concept")

    def rest(self) -> str:
        """All texts, in pages."""
        return f"list_concepts(name='{self.concept.name}', detail='full') pages through every text"


class TextCheck(BaseModel):
    """What the texts of a concept show before a model runs; see `ConceptCheck`."""

    pairs: int
    smallest_p: dict[str, float]
    pairs_in_order: dict[str, float]
    negations: dict[str, int]
    repeated_words: list[str]
    advice: list[str]
    unchecked: list[str]


class ConceptTexts(Page):
    """One concept, with a page of its texts in full."""

    paged: ClassVar[tuple[str, ...]] = ("personas", "templates", "topics")
    counted: ClassVar[tuple[str, ...]] = paged
    concept: ConceptSummary
    personas: list[dict[str, str]]
    templates: list[dict[str, str]]
    topics: list[str]
    left_out: int

    def rest(self) -> str:
        """The next page, and the resource for texts that alone exceed the limit."""
        whole = f"the resource concept://{self.concept.name} has every text"
        return "; ".join(filter(None, [super().rest(), whole]))


class ConceptsReply(Page):
    """A page of concepts, or the fields of `ConceptReply` or `ConceptTexts`."""

    paged: ClassVar[tuple[str, ...]] = ("concepts",)
    concepts: list[ConceptSummary] | None = None
    concept: Outline | None = Field(default=None, description="As in concepts")
    personas: list[dict[str, str]] | None = None
    templates: list[dict[str, str]] | None = None
    topics: list[str] | None = None
    left_out: int | None = Field(default=None, description="Number of texts not shown")


def list_concepts(
    ctx: Ctx,
    name: Annotated[
        str | None, Field(description="Show the texts of this concept instead, e.g. honesty", max_length=LONGEST_NAME)
    ] = None,
    detail: Annotated[
        Literal["concise", "full"], Field(description="full: with name, every text in full length, in pages")
    ] = "concise",
    offset: Offset = 0,
) -> Annotated[CallToolResult, ConceptsReply]:
    """List the concepts (named contrasts such as honest / deceptive) with their number of pairs.

    With name, show the personas, templates and topics from which the prompts of that concept are made.
    """
    own = workbench(ctx).settings.concepts
    if name is not None:
        concept = catalog.load_concept(name, own, by_name_only=True)
        full = detail == "full" or offset > 0
        return send(concept_texts(concept, offset) if full else describe_concept(concept))
    problems: list[str] = []
    concepts = catalog.list_concepts(own, problems=problems)
    after = offset + _PAGE
    return send(
        ConceptsReply(
            concepts=[summarise_concept(concept) for concept in concepts[offset:after]],
            total=len(concepts),
            next_offset=after if after < len(concepts) else None,
            next_step="capture_contrast(concept=...), list_concepts(name=...) for the texts, or define_concept",
            warnings=problems,
        )
    )


def define_concept(
    ctx: Ctx,
    name: Annotated[str, Field(description="Letters, digits, hyphens and underscores, e.g. patience", max_length=64)],
    positive: Annotated[str, Field(description="Name of the positive class, e.g. patient", max_length=64)],
    negative: Annotated[str, Field(description="Name of the negative class, e.g. impatient", max_length=64)],
    personas: Annotated[
        list[PersonaText], Field(min_length=2, max_length=50, description="24 or more for tight intervals")
    ],
    topics: Annotated[
        list[Annotated[str, Field(max_length=_LONGEST)]],
        Field(min_length=2, max_length=200, description="Questions or requests, the same for both classes"),
    ],
    description: Annotated[str, Field(description="The contrast in one sentence", max_length=_MOST_DESCRIPTION)],
    templates: Annotated[
        list[TemplateText] | None, Field(max_length=50, description="Default: those of the built-in concepts")
    ] = None,
    dry_run: Annotated[bool, Field(description="Only check the texts; save nothing")] = False,
) -> Annotated[CallToolResult, ConceptReply]:
    """Define a concept and keep it in the store; capture_contrast then takes its name.

    Word both roles of a persona alike except for the contrast, and vary the wording between personas, so that no
    single word separates the classes. The warnings name such confounds; check says what to add.
    """
    settings = workbench(ctx).settings
    table = {
        "name": name,
        "description": description,
        "positive": positive,
        "negative": negative,
        "personas": [persona.model_dump() for persona in personas],
        "topics": topics,
    }
    if templates:
        table["templates"] = [template.model_dump(exclude_defaults=True) for template in templates]
    concept = catalog.parse_concept(table, name)
    catalog.require_savable(concept, settings.concepts)
    reply = describe_concept(concept)
    reply.check, reply.warnings = _checked(concept)
    if dry_run:
        reply.next_step = "define_concept without dry_run saves it"
    else:
        catalog.save_concept(concept, settings.concepts)
    return send(reply)


def _checked(concept: Concept) -> tuple[TextCheck, list[str]]:
    """Check the texts, and collect the warnings."""
    from engine.stats.concept_check import check_concept

    found = check_concept(concept)
    words = [f"{one['text']}: positive {one['positive']}, negative {one['negative']}" for one in found["telltale"]]
    check = TextCheck(
        pairs=found["pairs"],
        smallest_p={factor: rounded(value, 4) for factor, value in found["smallest_p"].items()},
        pairs_in_order={row["what"]: rounded(row["within_pairs"]) for row in found["confounds"]["checks"]},
        negations=found["negations"],
        repeated_words=[shorten(word, _MOST_LINE) for word in words],
        advice=found["advice"],
        unchecked=found["unchecked"],
    )
    return check, found["warnings"]


def summarise_concept(concept: Concept) -> ConceptSummary:
    """Summarize a concept for lists."""
    return ConceptSummary(
        name=concept.name,
        positive=shorten(concept.positive, _MOST_WORD),
        negative=shorten(concept.negative, _MOST_WORD),
        description=shorten(concept.description, _MOST_DESCRIPTION),
        pairs=len(concept.personas) * len(concept.templates) * len(concept.topics),
    )


def describe_concept(concept: Concept) -> ConceptReply:
    """Show a concept and the first of its texts, each shortened to one line."""
    personas, templates, topics = _texts(concept)
    shown = _shortened(personas[:_MOST_SHOWN]), _shortened(templates[: _MOST_SHOWN // 2])
    lines = [shorten(topic, _MOST_LINE) for topic in topics[: 2 * _MOST_SHOWN]]
    total = len(personas) + len(templates) + len(topics)
    return ConceptReply(
        concept=summarise_concept(concept),
        personas=shown[0],
        templates=shown[1],
        topics=lines,
        left_out=total - len(shown[0]) - len(shown[1]) - len(lines),
        next_step=f"capture_contrast(concept='{concept.name}')",
    )


def concept_texts(concept: Concept, offset: int = 0) -> ConceptTexts:
    """Show the texts of a concept in full: personas, then templates, then topics.

    Args:
        concept: The concept.
        offset: Number of texts to skip.
    """
    personas, templates, topics = _texts(concept)
    before = len(personas), len(personas) + len(templates)
    total = before[1] + len(topics)
    return ConceptTexts(
        concept=summarise_concept(concept),
        personas=personas[offset:],
        templates=templates[max(offset - before[0], 0) :],
        topics=topics[max(offset - before[1], 0) :],
        total=total,
        left_out=min(offset, total),
        next_step=f"capture_contrast(concept='{concept.name}')",
    )


def _texts(concept: Concept) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    return (
        [{"name": p.name, "positive": p.positive, "negative": p.negative} for p in concept.personas],
        [{"name": t.name, "system": t.system, "user": t.user} for t in concept.templates],
        list(concept.topics),
    )


def _shortened(texts: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: shorten(text, _MOST_LINE) for key, text in entry.items()} for entry in texts]


TOOLS = (
    ToolSpec(list_concepts, "List concepts"),
    ToolSpec(define_concept, "Define a concept", writes=True, repeatable=False),
)
