"""The schemas of tools, as short and as strict as they can be: agents read all of them, every time."""

from typing import Any

from mcp.types import Tool


def strict(tool: Tool) -> Tool:
    """A tool whose input schema refuses arguments that it does not have, and whose schemas only say what names do not.

    Args:
        tool: As the SDK describes it.
    """
    return tool.model_copy(
        update={
            "input_schema": {**without_titles(tool.input_schema), "additionalProperties": False},
            "output_schema": without_titles(tool.output_schema),
        }
    )


def without_titles(schema: Any) -> Any:  # noqa: ANN401 - any JSON
    """A schema without the titles that only repeat the names; a property called title stays."""
    if isinstance(schema, dict):
        return {
            key: without_titles(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [without_titles(value) for value in schema] if isinstance(schema, list) else schema
