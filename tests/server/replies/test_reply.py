"""Answers say the same as text and as structure; texts in them are one line, and short."""

import json

import pytest
from mcp.types import TextContent

from server.replies.captures import CapturesReply
from server.replies.reply import MOST_TEXT, send, shorten
from tests.server.conftest import agree


def test_text_and_structure_say_the_same() -> None:
    result = send(CapturesReply(captures=[], total=3, next_offset=2, next_step="list_captures"))
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert json.loads(block.text) == {"captures": [], "total": 3, "next_offset": 2, "next_step": "list_captures"}
    assert agree(json.loads(block.text), result.structured_content)
    assert result.structured_content is not None
    assert result.structured_content["warnings"] == []  # a schema that requires it finds it
    assert not result.is_error


@pytest.mark.parametrize(
    ("text", "most", "said"),
    [
        ("short", 5, "short"),
        ("longer", 5, "long…"),
        (" two\n\n lines\t", 20, "two lines"),
        ("", 5, ""),
        ("é" * 200, MOST_TEXT, "é" * 159 + "…"),
    ],
)
def test_texts_are_cut_to_one_line(text: str, most: int, said: str) -> None:
    assert shorten(text, most) == said
    assert len(said) <= most
