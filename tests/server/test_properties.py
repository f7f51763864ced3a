"""Any JSON for any tool gives a result or a clean error.

It causes no hang, no traceback and no write outside the store.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, TextContent
from pydantic_core import to_json

from server.app import build_server
from server.settings import ServerSettings
from tests.server.conftest import MOST_BYTES, assert_clean, contents, has_null

# Names that exist, similar ones, and names that would leave the store.
_NAMES = st.sampled_from(
    ["loudness", "warmth", "prompt", "tiny", "honesty", "loudnes", "", ".", "..", "../x", "/tmp/x", "a/b", "x\0y"]  # noqa: S108
)
_TEXTS = _NAMES | st.text(max_size=20) | st.sampled_from(["last", "all", "2:1", "-1", "0-3", "1,2", "w5 w6", "d_prime"])
_NUMBERS = st.integers() | st.sampled_from([0, 1, 2, 3, 4, 10**30, -(10**30)]) | st.floats(allow_nan=False)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
_SIZE = MOST_BYTES
_LONGEST_S = 20.0


def _value(schema: dict[str, Any], definitions: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that fit a schema more or less."""
    if "$ref" in schema:
        return _value(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        return st.one_of(*(_value(option, definitions) for option in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
        "string": lambda: _TEXTS,
        "boolean": st.booleans,
        "integer": lambda: st.integers(-1, 12) | _NUMBERS,
        "number": lambda: st.floats(0, 0.05),  # wait_s is the only number here
        "null": st.none,
        "array": lambda: st.lists(_value(schema.get("items", {}), definitions), max_size=6),
        "object": lambda: st.fixed_dictionaries(
            {name: _value(inner, definitions) for name, inner in schema.get("properties", {}).items()}
        ),
    }
    kind = str(schema.get("type"))
    return kinds[kind]() if kind in kinds else _JSON


@functools.cache
def _calls() -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """A tool with arguments: known or unknown, well typed or not, some missing."""
    app = build_server(ServerSettings(Path(tempfile.gettempdir()) / "never-made"))
    each = []
    for tool in anyio.run(app.list_tools):
        schema = tool.input_schema
        definitions = schema.get("$defs", {})
        required = set(schema.get("required", []))
        typed = {name: _value(inner, definitions) for name, inner in schema.get("properties", {}).items()}
        waits = {
            name: value for name, value in typed.items() if name == "wait_s"
        }  # always set: the default of 40 s is too long
        needed = {name: typed[name] for name in sorted(required)} | waits
        optional = {name: value for name, value in typed.items() if name not in needed}
        wild = {name: value | _JSON for name, value in typed.items() if name not in waits}
        shapes = [
            st.fixed_dictionaries(needed, optional=optional),
            st.fixed_dictionaries(waits, optional=wild),
            st.dictionaries(_TEXTS, _JSON, max_size=2).map(dict),
        ]
        each.append(st.tuples(st.just(tool.name), st.one_of(*shapes)))
    return st.one_of(*each)


@pytest.mark.parametrize("era", ["auto", "legacy"])
def test_any_arguments_give_a_result_or_a_clean_error(store: Path, tiny_folder: Path, era: str) -> None:
    """Started jobs keep running; they are short, and stopping the server ends the rest."""
    server_settings = ServerSettings(store, allowed_models=(str(tiny_folder),), memory_bytes=1 << 30)
    outside = contents(store.parent).keys() - {f"{store.name}/{name}" for name in contents(store)}
    model = contents(tiny_folder)

    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(calls=st.lists(_calls(), min_size=10, max_size=25))
    def hold(calls: list[tuple[str, dict[str, Any]]]) -> None:
        anyio.run(functools.partial(_talk, server_settings, era, calls))

    hold()
    inside = {f"{store.name}/{name}" for name in contents(store)}
    assert contents(store.parent).keys() - inside == outside
    assert contents(tiny_folder) == model
    assert not list(store.rglob("*.unfinished"))


async def _talk(server_settings: ServerSettings, era: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    with anyio.fail_after(10 * _LONGEST_S):
        async with Client(build_server(server_settings), mode=era) as client:
            for tool, arguments in calls:
                with anyio.fail_after(_LONGEST_S):
                    job = await _one(client, tool, arguments)
                    while job:  # its result matters too
                        job = await _one(client, "wait_for_job", {"job": job, "wait_s": _LONGEST_S})


async def _one(client: Client, tool: str, arguments: dict[str, Any]) -> str | None:
    """Make a call; return the handle of its job if that still runs."""
    try:
        result = await client.call_tool(tool, arguments)
    except MCPError as error:
        assert_clean(str(error))
        return None
    assert isinstance(result, CallToolResult)
    texts = [block.text for block in result.content if isinstance(block, TextContent)]
    assert texts
    for text in texts:
        if result.is_error:
            assert_clean(text)
        assert "unexpected error" not in text, (tool, arguments, text)
        assert len(text.encode(errors="replace")) <= _SIZE, (tool, arguments, len(text))
    answer: dict[str, Any] = result.structured_content or {}
    assert len(to_json(answer)) <= _SIZE, (tool, arguments)
    assert not has_null(answer), (tool, arguments, answer)
    return answer["job"] if answer.get("status") in {"waiting", "running"} else None
