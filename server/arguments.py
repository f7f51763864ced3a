"""Wrong arguments of tool calls: which, what was expected, and the nearest name."""

import json
from typing import Any

from mcp.server.mcpserver.exceptions import ToolError
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from engine.errors import nearest, similar

_MOST_WRONG = 5
_MOST_GIVEN = 80

# What was expected instead, by the type of pydantic's error; the fields come from its context.
_EXPECTED = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "string_too_short": "at least {min_length} character{s}",
    "string_too_long": "at most {max_length} character{s}",
    "too_short": "at least {min_length} item{s}",
    "too_long": "at most {max_length} item{s}",
    "literal_error": "{expected}",
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def explain_arguments(tool: str, error: ValidationError) -> str:
    """Explain which arguments are wrong, what was expected, and what to do.

    Args:
        tool: The tool's name.
        error: The validation error of its arguments.
    """
    details = error.errors(include_url=False)
    wrong = [_problem(detail) for detail in details[:_MOST_WRONG]]
    more = f"; and {len(details) - len(wrong)} more" if len(details) > len(wrong) else ""
    expected = {_place(detail): said for detail in details[:_MOST_WRONG] if (said := _expected(detail))}
    needs = f" Expected: {'; '.join(f'{place}: {said}' for place, said in expected.items())}." if expected else ""
    return f"{tool} was not called: {'; '.join(wrong)}{more}.{needs} Next: correct that and call {tool} again."


def _problem(detail: ErrorDetails) -> str:
    """Say what is wrong with one argument, and the nearest name if it must be one of several."""
    place, kind = _place(detail), detail["type"]
    if kind == "missing":
        return f"{place} is missing"
    given = repr(detail["input"])[:_MOST_GIVEN]
    if kind == "literal_error" and isinstance(detail["input"], str):
        return f"{place} cannot be {given}; {nearest(detail['input'], _choices(detail)).removesuffix('?')}"
    return f"{place} cannot be {given}" + ("" if kind in _EXPECTED else f": {detail['msg']}")


def _expected(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    one = 1 in (context.get("min_length"), context.get("max_length"))
    return _EXPECTED.get(detail["type"], "").format(**context, s="" if one else "s")


def _choices(detail: ErrorDetails) -> list[str]:
    """The texts that a literal accepts, which pydantic writes as 'one', 'two' or 'three'."""
    return str(detail["ctx"]["expected"]).split("'")[1::2]


def _place(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"]) or "the arguments"


def require_whole_characters(tool: str, given: dict[str, Any]) -> None:
    """Refuse arguments with a lone surrogate, which UTF-8 cannot encode.

    Raises:
        ToolError: An argument contains one.
    """
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ToolError(
            f"{tool} was not called: an argument contains a lone surrogate. Expected: both halves of the pair, or"
            " the character itself in UTF-8."
        ) from error


def require_known_arguments(tool: str, given: dict[str, Any], known: list[str]) -> None:
    """Refuse arguments that a tool does not have, and name the nearest.

    Raises:
        ToolError: There is an unknown argument.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        hint = similar(unknown[0], known)
        raise ToolError(
            f"{tool} has no argument {unknown[0]!r}{f'; {hint}' if hint else '.'} Its arguments:"
            f" {', '.join(known) or 'none'}."
        )
