"""Declarations of a tool: annotations, argument types and compact schemas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from mcp.types import Tool, ToolAnnotations
from pydantic import Field

from engine.capture.sites import SITES
from server.settings import MOST_WAIT_S

LONGEST_NAME = 200
LONGEST_TEXT = 100_000

CaptureName = Annotated[str, Field(description="A capture, e.g. smollm2_honesty", max_length=LONGEST_NAME)]
ModelName = Annotated[str, Field(description="A model of list_models", max_length=10 * LONGEST_NAME)]
WaitS = Annotated[
    float,
    Field(ge=0, le=MOST_WAIT_S, description="Seconds to wait for the result"),
]
Layers = Annotated[
    str,
    Field(description="all, recommended, or numbers and ranges such as 14,15 or 10-20 or -1", max_length=1000),
]
Site = Annotated[
    str,
    Field(
        description="; ".join(f"{site}: {meaning}" for site, meaning in SITES.items()),
        max_length=LONGEST_NAME,
    ),
]
TOKENS_KEPT = "Tokens to keep of each prompt: last, all, mean, an index (-2) or a span (2:10)"
Positions = Annotated[str, Field(description=TOKENS_KEPT, max_length=LONGEST_NAME)]
NewName = Annotated[
    str | None,
    Field(description="Name to save under; default: made of model and concept", min_length=1, max_length=128),
]
DryRun = Annotated[bool, Field(description="Only count prompts, tokens and bytes")]
Timed = Annotated[bool, Field(description="With dry_run: also estimate seconds")]
Replace = Annotated[bool, Field(description="Replace a capture of that name")]
Offset = Annotated[int, Field(ge=0, description="Entries to skip: next_offset of the previous page")]


@dataclass(frozen=True)
class ToolSpec:
    """A tool and its annotations.

    Attributes:
        function: The tool; its name is the tool's name, its docstring the description that agents read.
        title: Title for people.
        writes: Whether it changes the store or the loaded models.
        destroys: Whether it deletes data.
        repeatable: Whether calling it twice has the effect of calling it once.
        reaches_out: Whether it may use the network.
    """

    function: Callable[..., Any]
    title: str
    writes: bool = False
    destroys: bool = False
    repeatable: bool = True
    reaches_out: bool = False

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.function.__name__

    @property
    def description(self) -> str:
        """The docstring on one line."""
        return " ".join((self.function.__doc__ or "").split())

    @property
    def annotations(self) -> ToolAnnotations:
        """Every hint, none left to its default."""
        return ToolAnnotations(
            read_only_hint=not self.writes,
            destructive_hint=self.destroys,
            idempotent_hint=self.repeatable,
            open_world_hint=self.reaches_out,
        )


def compact(tool: Tool) -> Tool:
    """Return a tool with compact schemas; its input schema refuses unknown arguments.

    Agents read all schemas in every session. Dropped are titles that repeat a name, nulls (an absent field says the
    same) and lengths of texts; in the output schema also defaults and the descriptions of whole objects. What remains
    is true of every call and every answer.

    Args:
        tool: The tool as the SDK describes it.
    """
    output = tool.output_schema
    return tool.model_copy(
        update={
            "input_schema": {**_compact(tool.input_schema, _NEVER), "additionalProperties": False},
            "output_schema": None if output is None else _compact(output, _NEVER | _NOT_IN_ANSWERS),
        }
    )


_NEVER = frozenset({"title", "minLength", "maxLength"})
_NOT_IN_ANSWERS = frozenset({"default", "minItems", "maxItems"})


def _compact(schema: Any, dropped: frozenset[str]) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(schema, list):
        return [_compact(entry, dropped) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _compact(value, dropped) for key, value in schema.items() if not _is_dropped(key, value, dropped)}
    options = [option for option in kept.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        del kept["anyOf"]
        kept = options[0] | kept
    elif options:
        kept["anyOf"] = options
    same = kept.get("prefixItems", [])
    if same and all(item == same[0] for item in same):
        kept["items"] = kept.pop("prefixItems")[0]
    if "default" in dropped and isinstance(kept.get("properties"), dict):
        kept = {key: value for key, value in kept.items() if key != "description"}
    return kept


def _is_dropped(key: str, value: object, dropped: frozenset[str]) -> bool:
    """Whether to drop a keyword.

    Under `properties` the same word is a name, whose value is a schema.
    """
    return not isinstance(value, dict) and (key in dropped or (key == "default" and value is None))
