"""Tools about captures that there are: filtered and paged, described, deleted."""

from pathlib import Path

import pytest
from mcp import Client
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.store.catalog import show_capture
from server.app import LayerscopeServer
from tests.server.conftest import call, contents, refused

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, {"loudness", "warmth", "prompt"}),
        ({"concept": "warmth"}, {"warmth"}),
        ({"model": "tiny"}, {"loudness", "warmth", "prompt"}),
        ({"model": "slow"}, set()),
        ({"name_contains": "r"}, {"warmth", "prompt"}),
        ({"name_contains": "r", "concept": "loudness"}, set()),
    ],
)
async def test_captures_are_filtered(app: LayerscopeServer, filters: dict[str, str], names: set[str]) -> None:
    async with Client(app) as client:
        listed = await call(client, "list_captures", **filters)
    assert {capture["name"] for capture in listed["captures"]} == names
    assert listed["total"] == len(names)


async def test_pages_cover_all_captures_once(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        names: list[str] = []
        offset: int | None = 0
        while offset is not None:
            page = await call(client, "list_captures", limit=2, offset=offset)
            names += [capture["name"] for capture in page["captures"]]
            offset = page["next_offset"]
        assert sorted(names) == ["loudness", "prompt", "warmth"]
        assert (await call(client, "list_captures", offset=10**6))["captures"] == []


async def test_a_description_says_how_it_was_made_and_what_could_explain_it(app: LayerscopeServer, store: Path) -> None:
    record = show_capture("loudness", store=store)
    assert record["confounds"] is not None
    async with Client(app) as client:
        said = await call(client, "describe_capture", name="loudness")
        full = await call(client, "describe_capture", name="loudness", detail="full")
    assert said["confounds"] == {c["what"]: pytest.approx(c["auroc"], abs=6e-4) for c in record["confounds"]["checks"]}
    assert said["provenance"]["alias"] == "tiny"
    assert said["example_prompts"][:2] == [record["prompts"][0], record["negative_prompts"][0]]
    assert (len(said["example_prompts"]), said["left_out"]) == (4, 2 * record["num_pairs"] - 4)
    assert full["example_prompts"][:4] == said["example_prompts"]
    assert len(full["example_prompts"]) == 8


async def test_only_a_confirmed_deletion_deletes_and_only_that_capture(app: LayerscopeServer, store: Path) -> None:
    before = contents(store)
    async with Client(app) as client:
        said = await refused(client, "delete_capture", name="warmth")
        assert "delete_capture(name='warmth', confirm=true)" in said
        assert contents(store) == before
        await call(client, "delete_capture", name="warmth", confirm=True)
    assert before.keys() - contents(store).keys() == {"warmth.json", "warmth.pt"}


async def test_a_capture_in_shards_is_like_any_other(
    app: LayerscopeServer, store: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = store.parent / "prompts.txt"
    prompts.write_text("".join(f"w{5 + number} w7\n" for number in range(30)))
    for name in ("stream", "begun"):
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, prompts, name, store=store)
    (store / "begun.json").unlink()
    async with Client(app) as client:
        listing = await call(client, "list_captures")
        assert "unfinished: 1 shard saved so far" in listing["damaged"]["begun"]
        assert next(one for one in listing["captures"] if one["name"] == "stream")["prompts"] == 30
        said = await call(client, "describe_capture", name="stream")
        assert len(said["example_prompts"]) + said["left_out"] == 30
        assert "goes on" in await refused(client, "describe_capture", name="begun")
        for name in ("stream", "begun"):
            await call(client, "delete_capture", name=name, confirm=True)
            assert not (store / name).exists()
