"""Answers: equal as text and structure, without nulls, and within 8 KB."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.types import CallToolResult, ImageContent, TextContent
from pydantic_core import to_json

from server.errors import cut
from server.tools.answer import MOST_BYTES, MOST_TEXT, Reply, fit, send, send_chart, shorten
from server.tools.captures import CaptureOutline, CaptureReply, CapturesReply
from server.tools.concepts import ConceptSummary, ConceptTexts
from server.tools.directions import ReadingReply, TokenValue
from server.tools.jobs import JobReply
from server.tools.models import ModelsReply, ModelState
from server.tools.ranking import LayerReply, MisorderedPair, RankedRow, RankingReply
from tests.server.conftest import agree, has_null

CONCEPT = ConceptSummary(name="c", positive="p", negative="n", description="d", pairs=4)


def sent(reply: Reply) -> dict[str, Any]:
    """The result as sent, after checking size, equality and absence of nulls."""
    result = send(reply)
    (block,) = result.content
    assert isinstance(block, TextContent)
    structure: dict[str, Any] | None = result.structured_content
    assert structure is not None
    assert len(block.text.encode()) <= MOST_BYTES
    assert len(to_json(structure)) <= MOST_BYTES
    assert agree(json.loads(block.text), structure)
    assert not has_null(structure)
    assert not has_null(json.loads(block.text))
    return structure


def summary(name: str) -> CaptureOutline:
    return CaptureOutline(
        name=name,
        kind="prompt",
        model="m" * 200,
        concept="é" * 200,
        site="resid_post",
        positions="last",
        pairs=0,
        prompts=1,
        layers="0-29",
        created="2026-01-01T00:00:00+00:00",
    )


def test_text_and_structure_say_the_same() -> None:
    result = send(CapturesReply(captures=[], total=3, next_offset=2, next_step="list_captures"))
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert json.loads(block.text) == {"captures": [], "total": 3, "next_offset": 2, "next_step": "list_captures"}
    assert agree(json.loads(block.text), result.structured_content)
    assert result.structured_content is not None
    assert result.structured_content["warnings"] == []  # present, because the schema requires it
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


def test_an_answer_within_the_limit_is_unchanged() -> None:
    reply = RankingReply(capture="c", score="auroc", layers=[], left_out=0, findings=["found"])
    assert fit(reply) is reply
    assert sent(reply)["cut"] == ""


def test_a_page_that_is_too_long_ends_earlier_and_leads_to_the_rest() -> None:
    captures = [summary(f"{number:03}{'x' * 125}") for number in range(20)]
    seen: list[str] = []
    offset = 0
    while True:
        page = sent(
            CapturesReply(captures=captures[offset:], total=20, next_offset=None, damaged={"d": "broken " * 20})
        )
        seen += [capture["name"] for capture in page["captures"]]
        if "next_offset" not in page:
            break
        assert page["next_offset"] == len(seen)
        assert f"{20 - len(seen)} of {20 - offset} captures" in page["cut"]
        assert f"offset={len(seen)} shows the next" in page["cut"]
        offset = page["next_offset"]
    assert offset > 0
    assert seen == [capture.name for capture in captures]


def test_the_next_page_starts_where_a_shortened_page_ends() -> None:
    models = [
        ModelState(name=f"{n}-{'x' * 250}", model_id="y" * 250, layers=1, size="", here=True, loaded=False)
        for n in range(40)
    ]
    page = sent(ModelsReply(models=models, total=90, next_offset=80, loaded_bytes=0, budget_bytes=0))
    assert page["next_offset"] == 40 + len(page["models"]) < 80


def test_the_texts_of_a_concept_end_with_topics_then_templates_then_personas() -> None:
    persona = {"name": "p", "positive": "x" * 2000, "negative": "y" * 2000}
    texts = ConceptTexts(
        concept=CONCEPT,
        personas=[persona] * 3,
        templates=[{"name": "t", "user": "u"}],
        topics=["w"] * 9,
        total=13,
        left_out=0,
    )
    page = sent(texts)
    assert (len(page["personas"]), page["templates"], page["topics"]) == (1, [], [])
    assert (page["next_offset"], page["left_out"]) == (1, 12)
    assert page["personas"] == [persona]
    assert "concept://c" in page["cut"]


def test_one_text_beyond_the_limit_is_shortened() -> None:
    persona = {"name": "p", "positive": "😀" * 2000, "negative": "y"}
    page = sent(ConceptTexts(concept=CONCEPT, personas=[persona], templates=[], topics=[], total=1, left_out=0))
    assert page["personas"][0]["positive"].endswith("…")
    assert page["personas"][0]["negative"] == "y"
    assert "shortened long texts" in page["cut"]
    assert "next_offset" not in page


def test_many_warnings_are_cut_and_counted() -> None:
    warnings = [f"warning {number} {'of many ' * 20}" for number in range(500)]
    reply = CaptureReply(
        capture=summary("long"),
        findings=["found"],
        confounds={},
        provenance={},
        example_prompts=["w"],
        left_out=3,
        warnings=warnings,
    )
    said = sent(reply)
    assert said["warnings"] == warnings[: len(said["warnings"])]
    assert len(said["warnings"]) > 20
    assert f"{500 - len(said['warnings'])} of 500 warnings" in said["cut"]
    assert "capture://long" in said["cut"]
    assert (said["example_prompts"], said["left_out"]) == (["w"], 3)
    assert reply.warnings == warnings


def test_dropped_prompts_are_counted() -> None:
    reply = CaptureReply(
        capture=summary("c"), findings=[], confounds={}, provenance={}, example_prompts=["語" * 600] * 8, left_out=10
    )
    said = sent(reply)
    assert 0 < len(said["example_prompts"]) < 8
    assert len(said["example_prompts"]) + said["left_out"] == 18


def test_a_mapping_is_cut_like_a_list() -> None:
    said = sent(
        CaptureReply(
            capture=summary("c"),
            findings=[],
            confounds={f"{n} {'x' * 90}": 0.5 for n in range(200)},
            provenance={},
            example_prompts=[],
            left_out=0,
        )
    )
    assert 0 < len(said["confounds"]) < 200
    assert "of 200 confounds" in said["cut"]


def test_a_part_of_the_result_of_a_job_is_cut_too() -> None:
    tokens = [TokenValue(token="t" * 300, value=0.5) for _ in range(120)]
    reading = ReadingReply(layer=1, tokens=tokens, left_out=5, highest=tokens[:5], lowest=tokens[:5])
    said = sent(JobReply(job="read_text-1", status="done", reading=reading))
    assert len(said["reading"]["tokens"]) + said["reading"]["left_out"] == 125
    assert "read_text" in said["cut"]


def test_names_are_never_shortened() -> None:
    name = "x" * 128
    said = sent(
        JobReply(
            job="capture_contrast-1a2b3c", status="failed", error="😀" * 5000, next_step=f"rank_layers(name='{name}')"
        )
    )
    assert (said["job"], said["next_step"]) == ("capture_contrast-1a2b3c", f"rank_layers(name='{name}')")
    assert said["error"].endswith("…")


TEXTS = st.text(max_size=20) | st.tuples(st.sampled_from("語w\0"), st.integers(1, 3000)).map(
    lambda text: text[0] * text[1]
)


@given(
    findings=st.lists(TEXTS, max_size=30),
    warnings=st.lists(TEXTS, max_size=30),
    against=st.lists(TEXTS, max_size=30),
    factors=st.dictionaries(TEXTS, TEXTS, max_size=5),
    rows=st.integers(0, 200),
)
def test_any_answer_fits(
    findings: list[str], warnings: list[str], against: list[str], factors: dict[str, str], rows: int
) -> None:
    numbers = {factor[:300]: 0.5 for factor in factors}
    pair = MisorderedPair(
        pair=1, gap=-0.1, positive_prompt="w", factors={key[:60]: text for key, text in factors.items()}
    )
    sent(
        LayerReply(
            capture="c",
            layer=1,
            d_prime=1,
            auroc=1,
            worst_left_out="persona",
            by_left_out=numbers,
            against=against,
            positive_quartiles=[0.0] * 5,
            negative_quartiles=[0.0] * 5,
            wrong_pairs=[pair] * 5,
            wrong_total=5,
            warnings=warnings,
        )
    )
    row = RankedRow(rank=1, layer=1, value=0.5, d_prime_by_left_out=numbers)
    layers = [row.model_copy(deep=True) for _ in range(rows)]
    said = sent(
        RankingReply(capture="c", score="auroc", layers=layers, left_out=0, findings=findings, warnings=warnings)
    )
    assert len(said["layers"]) + said["left_out"] == rows


def texts_of(result: CallToolResult) -> list[str]:
    return [block.text for block in result.content if isinstance(block, TextContent)]


def test_a_long_chart_loses_its_middle_lines_with_a_note() -> None:
    lines = [f"{number:4} ━━━━━━━━●━━━━━━━━━━━━━━━━" for number in range(300)]
    (text,) = texts_of(send_chart("\n".join(lines), None, "capture://c has every layer"))
    assert len(text.encode()) <= MOST_BYTES
    shown = text.splitlines()
    assert (shown[0], shown[-1]) == (lines[0], lines[-1])
    assert f"… {300 - len(shown) + 1} lines dropped" in text
    assert "capture://c has every layer" in text


def test_a_chart_within_the_limit_keeps_its_picture_and_its_lines() -> None:
    image = ImageContent(type="image", data="", mime_type="image/png")
    result = send_chart("one\ntwo", image, "")
    assert texts_of(result) == ["one\ntwo"]
    assert result.content[1] is image


def test_an_error_is_within_the_limit() -> None:
    said = cut(f"{'😀' * 9000}. Next: list_captures.")
    assert len(said.encode()) <= MOST_BYTES
    assert said.endswith("Next: list_captures.")
