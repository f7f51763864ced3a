"""Captures in the store: filtered, paged, described and deleted."""

import json
import os
from pathlib import Path

import pytest
from mcp import Client
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.records.files import record_warnings
from engine.records.results import may_be_best
from engine.store.catalog import show_capture
from server.app import LayerscopeServer
from server.tools.captures import outline_capture
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
            offset = page.get("next_offset")
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
        assert "to resume" in await refused(client, "describe_capture", name="begun")
        for name in ("stream", "begun"):
            await call(client, "delete_capture", name=name, confirm=True)
            assert not (store / name).exists()


def test_a_contrast(store: Path) -> None:
    record = show_capture("loudness", store=store)
    assert record["ranking"] is not None
    assert record["confounds"] is not None
    summary = outline_capture(record)
    assert (summary.name, summary.kind, summary.model) == ("loudness", "contrast", "tiny")
    assert (summary.concept, summary.site, summary.positions) == ("loudness", "resid_post", "last")
    assert (summary.pairs, summary.prompts, summary.layers) == (record["num_pairs"], 2 * record["num_pairs"], "0-3")
    best, *others = record["ranking"]["layers"]
    assert summary.leading is not None
    assert summary.leading.layer == best["layer"]
    assert summary.leading.interval == pytest.approx((best["low"], best["high"]), abs=6e-4)
    for row in others:
        assert (str(row["layer"]) in summary.leading.tied) == may_be_best(row)
    assert record_warnings(record) == record["ranking"]["warnings"] + record["confounds"]["warnings"]


def test_a_prompt_capture_has_no_leading_layer(store: Path) -> None:
    summary = outline_capture(show_capture("prompt", store=store))
    assert (summary.kind, summary.pairs, summary.prompts, summary.leading) == ("prompt", 0, 1, None)


def test_missing_provenance_is_shown_as_unknown(store: Path) -> None:
    record = show_capture("prompt", store=store)
    record["provenance"] = None
    record["unranked"] = "there is no spread"
    summary = outline_capture(record)
    assert (summary.model, summary.site, summary.positions) == ("unknown", "unknown", "unknown")
    assert record_warnings(record) == ["not ranked: there is no spread"]


async def test_pages_of_long_names_fit_and_cover_all_captures_once(app: LayerscopeServer, store: Path) -> None:
    data = engine.load_activations("loudness", store=store)
    names = [f"{number:02}-{'x' * 125}" for number in range(18)]
    for name in names:
        engine.save_activations(data, name, store=store)
        file = store / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"concept": "語" * 100}))
    async with Client(app) as client:
        page = await call(client, "list_captures", limit=20)
        assert "captures" in page["cut"]
        seen = [capture["name"] for capture in page["captures"]]
        while "next_offset" in page:
            page = await call(client, "list_captures", limit=20, offset=page["next_offset"])
            seen += [capture["name"] for capture in page["captures"]]
    assert sorted(seen) == sorted([*names, "loudness", "warmth", "prompt"])


async def test_saved_directions_are_listed_described_and_deleted(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client:
        none = await call(client, "list_captures")
        assert (none["directions"], none["directions_total"]) == ([], 0)
        await call(client, "extract_direction", name="loudness")
        await call(client, "extract_direction", name="loudness", save_as="mine")
        (store / "broken.directions.safetensors").write_bytes(b"no header")
        assert (await call(client, "list_captures"))["directions"] == ["broken", "loudness", "mine"]
        said = await refused(client, "rank_layers", name="mine")
        assert "it is the name of saved directions, which come from the capture 'loudness'" in said
        assert (await call(client, "list_captures", name_contains="in"))["directions"] == ["mine"]
        assert (await call(client, "list_captures", concept="loudness"))["directions"] == []
        assert (await call(client, "describe_capture", name="loudness"))["directions"] is True
        assert (await call(client, "describe_capture", name="warmth"))["directions"] is False
        before = contents(store)
        said = await refused(client, "delete_capture", name="loudness", directions_only=True)
        assert "delete_capture(name='loudness', confirm=true, directions_only=true)" in said
        said = await refused(client, "delete_capture", name="loudnes", directions_only=True, confirm=True)
        assert "there are no directions called 'loudnes'; did you mean 'loudness'?" in said
        await refused(client, "delete_capture", name="../x", directions_only=True, confirm=True)
        assert contents(store) == before
        for name in ("loudness", "broken"):
            gone = await call(client, "delete_capture", name=name, directions_only=True, confirm=True)
            assert gone["deleted"] == [f"{name}.directions.safetensors"]
        for name in ("warmth", "alone"):  # with a capture of that name, and without
            await call(client, "extract_direction", name="warmth", save_as=name)
            gone = await call(client, "delete_capture", name=f"{name}.directions.safetensors", confirm=True)
            assert gone["deleted"] == [f"{name}.directions.safetensors"]
        assert {"warmth.json", "warmth.pt"} <= set(contents(store))
        assert {"loudness.json", "loudness.pt"} <= set(contents(store))
        gone = await call(client, "delete_capture", name="loudness", confirm=True)
        assert (gone["deleted"], gone["kept"]) == (["loudness.json", "loudness.pt"], ["mine.directions.safetensors"])
        gone = await call(client, "delete_capture", name="mine", confirm=True)
        assert gone["deleted"] == ["mine.directions.safetensors"]
        assert (await call(client, "list_captures"))["directions"] == []


async def test_many_directions_leave_room_for_captures(app: LayerscopeServer, store: Path) -> None:
    for number in range(60):
        (store / f"{'d' * 100}-{number}.directions.safetensors").write_bytes(b"")
    (store / "\x1b[31mred.directions.safetensors").write_bytes(b"")
    (store / os.fsdecode(b"\xff.directions.safetensors")).write_bytes(b"")
    async with Client(app) as client:
        listed = await call(client, "list_captures")
    assert (len(listed["captures"]), len(listed["directions"]), listed["directions_total"]) == (3, 20, 62)
    assert listed["directions"][0] == "\\x1b[31mred"
