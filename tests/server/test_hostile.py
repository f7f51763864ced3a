"""Hostile calls: each once broke something, or was echoed back in full."""

from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult

import engine
from engine.concepts.catalog import default_templates
from server.app import LayerscopeServer
from tests.server.conftest import MOST_BYTES, call, contents, only_text, refused
from tests.server.test_journey import finished

pytestmark = pytest.mark.anyio

HUGE = "x" * 100_000
PAIR = {"positive": "w5 w6", "negative": "w7 w6"}
PERSONAS = [{"name": f"p{n}", "positive": f"w{n} w9", "negative": f"w{n} w8"} for n in range(3, 6)]


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (HUGE, {}),
        ("list_captures", {HUGE: 1}),
        ("rank_layers", {"name": HUGE}),
        ("rank_layers", {"name": "loudness", "score": HUGE}),
        ("read_text", {"name": HUGE, "text": "w5"}),
        ("wait_for_job", {"job": HUGE}),
        ("load_model", {"model": HUGE, "unload": True}),
        ("list_concepts", {"name": HUGE}),
        ("capture_prompts", {"prompts": ["w5"], "model": "tiny", "positions": "9" * 5000}),
        ("capture_prompts", {"prompts": ["w5"], "model": "tiny", "layers": "9" * 5000}),
        ("capture_prompts", {"prompts": ["w5"], "model": HUGE}),
        ("capture_prompts", {"file": HUGE, "model": "tiny"}),
        ("capture_prompts", {"file": "x" * 150, "model": "tiny"}),
        ("define_concept", {"name": HUGE, "positive": HUGE, "negative": HUGE, "personas": [], "topics": [HUGE]}),
        ("capture_contrast", {"pairs": [{HUGE: HUGE}], "model": "tiny"}),
    ],
)
async def test_huge_arguments_are_refused_briefly(app: LayerscopeServer, tool: str, arguments: dict[str, Any]) -> None:
    async with Client(app) as client:
        said = await refused(client, tool, **arguments)
    assert len(said) <= MOST_BYTES // 2
    assert "unexpected error" not in said


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("list_concepts", {"name": "hi \ud83d"}),
        ("capture_prompts", {"prompts": ["w5 \ud83d"], "model": "tiny"}),
        ("capture_contrast", {"pairs": [{"positive": "w5", "negative": "\ude00"}], "model": "tiny"}),
    ],
)
async def test_a_lone_surrogate_is_refused(app: LayerscopeServer, tool: str, arguments: dict[str, Any]) -> None:
    async with Client(app) as client:
        assert "was not called: an argument contains a lone surrogate" in await refused(client, tool, **arguments)


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("capture_contrast", {"pairs": [], "model": "tiny"}, "at least 1 item"),
        ("capture_contrast", {"concept": "", "model": "tiny"}, "no concept called ''"),
        ("capture_contrast", {"pairs": [PAIR | {"persno": "a"}], "model": "tiny"}, "persno"),
        (
            "capture_contrast",
            {"pairs": [PAIR, PAIR | {"persona": "a"}], "model": "tiny"},
            "1 of 2 pairs have",
        ),
        ("capture_prompts", {"prompts": ["w5"], "model": "tiny", "name": ""}, "at least 1 character"),
        ("capture_prompts", {"model": "tiny"}, "exactly one of prompts and file"),
        (
            "capture_prompts",
            {"model": "tiny", "prompts": ["w5"], "file": "questions.txt"},
            "exactly one of prompts and file",
        ),
        ("capture_prompts", {"model": "tiny", "prompts": []}, "at least 1 item"),
        ("capture_prompts", {"model": "tiny", "prompts": ["w5", ""]}, "at least 1 character"),
        ("capture_prompts", {"model": "tiny", "file": "../loudness.json"}, "no file called"),
        ("capture_prompts", {"model": "tiny", "file": "/etc/passwd"}, "no file called"),
        ("extract_direction", {"name": "loudness", "save_as": ""}, "at least 1 character"),
        ("delete_capture", {"name": "loudness", "confirm": "yes"}, "true or false"),
        ("delete_capture", {"name": "loudness", "confirm": 1}, "true or false"),
        ("read_text", {"name": "../loudness", "text": "w5"}, "letters, digits"),
        ("read_text", {"name": "loudnes", "text": "w5"}, "'loudness'"),
        ("read_text", {"name": "prompt", "text": "w5"}, "no two classes"),
        ("steer_text", {"name": "../loudness", "prompt": "w5"}, "letters, digits"),
        ("steer_text", {"name": "prompt", "prompt": "w5"}, "no two classes"),
        ("steer_text", {"name": "loudness", "prompt": "w5", "strengths": []}, "at least 1 item"),
        ("steer_text", {"name": "loudness", "prompt": "w5", "max_new_tokens": 9999}, "at most 200"),
    ],
)
async def test_nonsensical_arguments_are_refused_before_anything_runs(
    app: LayerscopeServer, store: Path, tool: str, arguments: dict[str, Any], said: str
) -> None:
    before = contents(store)
    async with Client(app) as client:
        assert said in await refused(client, tool, **arguments)
    assert contents(store) == before


async def test_a_name_with_two_suffixes_is_one_capture(app: LayerscopeServer, store: Path) -> None:
    """Such a capture could once neither be listed nor deleted."""
    async with Client(app) as client:
        made = await call(client, "capture_prompts", prompts=["w5"], model="tiny", name="twice.pt.json")
        made = await finished(client, made)
        assert (made["status"], made["capture"]["name"]) == ("done", "twice")
        assert (await call(client, "describe_capture", name="twice.json"))["capture"]["name"] == "twice"
        assert (await call(client, "delete_capture", name="twice", confirm=True))["deleted"]
    assert not list(store.glob("twice*"))


async def test_directions_can_be_read_under_the_returned_name(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        for asked in ("mine", "other.directions.safetensors", "third.pt"):
            saved = await call(client, "extract_direction", name="loudness.pt", save_as=asked)
            assert saved["name"] == asked.split(".")[0]
            assert f"name='{saved['name']}'" in saved["next_step"]
            read = await finished(client, await call(client, "read_text", name=saved["name"], text="w5 w6"))
            assert read["status"] == "done", read


async def test_a_concept_as_large_as_allowed_is_shown_in_part_and_in_full_on_demand(app: LayerscopeServer) -> None:
    personas = [
        {"name": f"p{n}", "positive": f"w{n} " + "w5 " * 600, "negative": f"w{n} " + "w6 " * 600} for n in range(50)
    ]
    topics = [f"topic {n} " + "w7 " * 600 for n in range(200)]
    async with Client(app) as client:
        made = await call(
            client,
            "define_concept",
            name="large",
            positive="p" * 64,
            negative="n" * 64,
            personas=personas,
            topics=topics,
            description="d" * 160,
        )
        assert (len(made["personas"]), made["left_out"]) == (12, 38 + 182)
        assert agreeing(made, await call(client, "list_concepts", name="large"))
        pages = [await call(client, "list_concepts", name="large", detail="full")]
        while "next_offset" in pages[-1]:
            pages.append(await call(client, "list_concepts", name="large", offset=pages[-1]["next_offset"]))
        assert [text for page in pages for text in page["personas"]] == personas
        assert [text for page in pages for text in page["topics"]] == topics
        total = len(personas) + len(default_templates()) + len(topics)
        for page in pages:
            assert page["total"] == total
            assert page["left_out"] == total - sum(len(page[kind]) for kind in ("personas", "templates", "topics"))


def agreeing(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the concept is the same; only `define_concept` checks its texts."""
    apart = {"next_step", "check", "warnings"}
    return {key: one[key] for key in one.keys() - apart} == {key: other[key] for key in other.keys() - apart}


async def test_many_concepts_come_in_pages(app: LayerscopeServer) -> None:
    own = [f"own-{number}" for number in range(20)]
    async with Client(app) as client:
        for name in own:
            await call(
                client,
                "define_concept",
                name=name,
                positive="p" * 64,
                negative="n" * 64,
                personas=PERSONAS,
                topics=["w20", "w21"],
                description="d" * 160,
            )
        first = await call(client, "list_concepts")
        second = await call(client, "list_concepts", offset=first["next_offset"])
        assert (len(first["concepts"]), "next_offset" in second) == (20, False)
        names = [concept["name"] for page in (first, second) for concept in page["concepts"]]
        assert len(names) == len(set(names)) == first["total"]
        assert set(own) < set(names)
        said = await refused(client, "list_concepts", name="zzzzzzzz")
        assert "more" in said


async def test_an_error_does_not_list_thousands_of_captures(app: LayerscopeServer, store: Path) -> None:
    for number in range(1500):
        (store / f"quite-a-long-name-of-a-capture-{number}.json").write_text("{")
    async with Client(app) as client:
        said = await refused(client, "rank_layers", name="zzzzzzzz")
        assert len(said) <= MOST_BYTES // 2
        listed = await client.call_tool("list_captures", {})
        assert isinstance(listed, CallToolResult)
        assert len(only_text(listed)) <= MOST_BYTES
        assert "loudness" in only_text(listed)


async def test_a_link_out_of_the_store_is_not_followed_and_deleting_it_removes_the_link(
    app: LayerscopeServer, store: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    engine.save_activations(engine.load_activations("prompt", store=store), "secret", store=outside)
    for suffix in (".pt", ".json"):
        (store / f"link{suffix}").symlink_to(outside / f"secret{suffix}")
    (store / "folder").symlink_to(outside)
    before = contents(outside)
    async with Client(app) as client:
        for name in ("link", "folder/secret", "folder"):
            for tool in ("describe_capture", "plot_capture"):
                await refused(client, tool, name=name)
        for name in ("folder/secret", "folder"):
            await refused(client, "delete_capture", name=name, confirm=True)
        for name in ("link", "folder/new"):
            await refused(client, "capture_prompts", prompts=["w5"], model="tiny", name=name, replace=True)
        deleted = await call(client, "delete_capture", name="link", confirm=True)
        assert deleted["deleted"] == ["link.json", "link.pt"]
        assert "link" not in {path.stem for path in store.iterdir()}
    assert contents(outside) == before
