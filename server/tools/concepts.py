"""Tools about concepts: which there are, what one consists of, define one."""

from typing import Annotated, Literal

from mcp.types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field

from engine.concepts import catalog
from server.replies.concepts import MOST_DESCRIPTION, ConceptReply, ConceptsReply, describe_concept, summarise_concept
from server.replies.reply import send
from server.tools.arguments import LONGEST_NAME, ConceptName
from server.tools.spec import ToolSpec
from server.workbench import Ctx, workbench

_PAGE = 20
_LONGEST = 2000


class PersonaText(BaseModel):
    """The two roles of a contrast, worded alike but for what the contrast is about."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Short name, e.g. witness", max_length=LONGEST_NAME)
    positive: str = Field(description="e.g. a witness who reports each fact as it was", max_length=_LONGEST)
    negative: str = Field(description="e.g. a witness who twists each fact to suit the story", max_length=_LONGEST)


class TemplateText(BaseModel):
    """How a persona and a topic become a prompt; {persona} and {topic} each exactly once over both texts."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Short name, e.g. act-as", max_length=LONGEST_NAME)
    user: str = Field(description="e.g. Act as {persona}. {topic}", max_length=_LONGEST)
    system: str = Field(default="", description="System message, if any", max_length=_LONGEST)


def list_concepts(
    ctx: Ctx, offset: Annotated[int, Field(ge=0, description="How many to pass over")] = 0
) -> Annotated[CallToolResult, ConceptsReply]:
    """List the concepts (named contrasts such as honest / deceptive) to capture, and how many pairs each makes."""
    concepts = catalog.list_concepts(workbench(ctx).settings.concepts)
    after = offset + _PAGE
    return send(
        ConceptsReply(
            concepts=[summarise_concept(concept) for concept in concepts[offset:after]],
            total=len(concepts),
            next_offset=after if after < len(concepts) else None,
            next_step="capture_contrast(concept=...), show_concept(name=...) for its texts, or define_concept",
        )
    )


def show_concept(
    ctx: Ctx,
    name: ConceptName,
    detail: Annotated[Literal["concise", "full"], Field(description="full: every text, however long")] = "concise",
) -> Annotated[CallToolResult, ConceptReply]:
    """Show the personas, templates and topics that a concept's prompts are made from."""
    concept = catalog.load_concept(name, workbench(ctx).settings.concepts, by_name_only=True)
    return send(describe_concept(concept, full=detail == "full"))


def define_concept(
    ctx: Ctx,
    name: Annotated[str, Field(description="Letters, digits, hyphens and underscores, e.g. patience", max_length=64)],
    positive: Annotated[str, Field(description="One word for the positive side, e.g. patient", max_length=64)],
    negative: Annotated[str, Field(description="One word for the negative side, e.g. impatient", max_length=64)],
    personas: Annotated[
        list[PersonaText], Field(min_length=2, max_length=50, description="12 or more for tight intervals")
    ],
    topics: Annotated[
        list[Annotated[str, Field(max_length=_LONGEST)]],
        Field(min_length=2, max_length=200, description="Questions or requests, the same for both sides"),
    ],
    description: Annotated[
        str, Field(description="What the contrast is about, one sentence", max_length=MOST_DESCRIPTION)
    ],
    templates: Annotated[
        list[TemplateText] | None, Field(max_length=50, description="Left out: those of the concept honesty")
    ] = None,
) -> Annotated[CallToolResult, ConceptReply]:
    """Define a concept of your own, kept in the store; capture_contrast then takes its name.

    Word both sides of a persona alike but for the contrast, and vary the wording from persona to persona, so that no
    single word tells the sides apart: find out with rank_layers, whose warnings name such confounds.
    """
    settings = workbench(ctx).settings
    chosen = [template.model_dump(exclude_defaults=True) for template in templates or []] or [
        {"name": template.name, "user": template.user} | ({"system": template.system} if template.system else {})
        for template in catalog.load_concept("honesty").templates
    ]
    table = {
        "name": name,
        "description": description,
        "positive": positive,
        "negative": negative,
        "personas": [persona.model_dump() for persona in personas],
        "templates": chosen,
        "topics": topics,
    }
    concept = catalog.parse_concept(table, name)
    catalog.save_concept(concept, settings.concepts)
    return send(describe_concept(concept))


TOOLS = (
    ToolSpec(list_concepts, "List concepts"),
    ToolSpec(show_concept, "Show a concept"),
    ToolSpec(define_concept, "Define a concept", writes=True, repeatable=False),
)
