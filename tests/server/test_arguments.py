"""Wrong arguments of a tool call are explained in the same three parts as every error."""

from typing import Annotated, Literal

import pytest
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field, ValidationError

from server.arguments import explain_arguments, require_known_arguments


class Inner(BaseModel):
    name: str


class Arguments(BaseModel):
    detail: Literal["concise", "full"] = "concise"
    top: Annotated[int, Field(ge=1, le=50)] = 1
    share: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    name: Annotated[str, Field(min_length=1, max_length=9)] = "x"
    texts: Annotated[list[str], Field(min_length=1, max_length=2)] = Field(default=["x"])
    inner: Inner = Inner(name="x")
    sure: bool = False


@pytest.mark.parametrize(
    ("given", "problem", "expected"),
    [
        ({"detail": "ful"}, "detail cannot be 'ful'; did you mean 'full'", "detail: 'concise' or 'full'"),
        ({"detail": "xyz"}, "detail cannot be 'xyz'; choose one of: concise, full", "detail: 'concise' or 'full'"),
        ({"detail": 3}, "detail cannot be 3", "detail: 'concise' or 'full'"),
        ({"top": 0}, "top cannot be 0", "top: at least 1"),
        ({"top": 51}, "top cannot be 51", "top: at most 50"),
        ({"top": "many"}, "top cannot be 'many'", "top: a whole number"),
        ({"top": 1.5}, "top cannot be 1.5", "top: a whole number"),
        ({"share": 0}, "share cannot be 0", "share: more than 0"),
        ({"share": float("nan")}, "share cannot be nan", "share: a finite number"),
        ({"name": ""}, "name cannot be ''", "name: at least 1 character"),
        ({"name": "x" * 99}, f"name cannot be '{'x' * 79}", "name: at most 9 characters"),
        ({"name": None}, "name cannot be None", "name: a text"),
        ({"texts": []}, "texts cannot be []", "texts: at least 1 item"),
        ({"texts": "x"}, "texts cannot be 'x'", "texts: a list"),
        ({"texts": ["x", 3]}, "texts.1 cannot be 3", "texts.1: a text"),
        ({"inner": "x"}, "inner cannot be 'x'", "inner: an object"),
        ({"sure": "maybe"}, "sure cannot be 'maybe'", "sure: true or false"),
        (
            {"top": 0, "name": ""},
            "top cannot be 0; name cannot be ''",
            "top: at least 1; name: at least 1 character",
        ),
    ],
)
def test_the_problem_what_was_expected_and_what_to_do(given: dict[str, object], problem: str, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Arguments.model_validate(given)
    said = explain_arguments("rank_layers", caught.value)
    assert (
        said == f"rank_layers was not called: {problem}. Expected: {expected}. Next: correct that and call"
        " rank_layers again."
    )


def test_a_missing_argument_and_many_wrong_ones() -> None:
    with pytest.raises(ValidationError) as caught:
        Arguments.model_validate({"inner": {}})
    said = explain_arguments("rank_layers", caught.value)
    assert said == ("rank_layers was not called: inner.name is missing. Next: correct that and call rank_layers again.")
    with pytest.raises(ValidationError) as caught:
        Arguments.model_validate({name: object() for name in Arguments.model_fields})
    assert "; and 2 more. Expected: " in explain_arguments("rank_layers", caught.value)


def test_unknown_arguments_name_the_right_one() -> None:
    require_known_arguments("rank_layers", {"name": "x"}, ["name", "top"])
    with pytest.raises(ToolError, match="did you mean 'top'"):
        require_known_arguments("rank_layers", {"topp": 1}, ["name", "top"])
