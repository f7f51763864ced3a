"""Tools that capture: custom pairs, prompts, files, estimates, shards, taken names."""

import json
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from mcp import Client

import engine
from engine.concepts.catalog import load_concept
from engine.concepts.pairs import draw_pairs
from engine.store import neighbours, specificity
from engine.store.catalog import show_capture
from server.app import LayerscopeServer, build_server
from server.settings import ServerSettings
from tests.engine.cli.conftest import concept_text
from tests.server.conftest import Json, call, contents, failed, many_pairs, refused
from tests.server.test_journey import finished

pytestmark = pytest.mark.anyio


def own_pairs(factors: bool) -> list[Json]:
    pairs = [(persona, topic) for persona in range(10, 14) for topic in range(20, 23)]
    return [
        {"positive": f"w{persona} w5 w{topic}", "negative": f"w{persona} w6 w{topic}"}
        | ({"persona": f"p{persona}", "template": "one", "topic": f"t{topic}"} if factors else {})
        for persona, topic in pairs
    ]


@pytest.mark.parametrize("factors", [True, False])
async def test_custom_pairs_are_held_out_by_their_factors(app: LayerscopeServer, store: Path, factors: bool) -> None:
    async with Client(app) as client:
        asked = {"pairs": own_pairs(factors), "model": "tiny", "name": "own"}
        made = await finished(client, await call(client, "capture_contrast", **asked))
        ranking = await call(client, "rank_layers", name="own", detail="full")
    record = show_capture("own", store=store)
    assert record["prompts"] == [pair["positive"] for pair in own_pairs(factors)]
    assert ("concept" in made["capture"], made["capture"]["pairs"]) == (False, 12)
    left_out = ranking["layers"][0]["d_prime_by_left_out"]
    assert set(left_out) == ({"persona", "topic"} if factors else {"pairs"})


async def test_a_prompt_is_captured_as_the_engine_captures_it(
    app: LayerscopeServer, store: Path, tiny_folder: Path
) -> None:
    async with Client(app) as client:
        asked = {"prompts": ["w5 w6 w7"], "model": "tiny", "layers": "1,-1", "positions": "last", "name": "mine"}
        made = await finished(client, await call(client, "capture_prompts", **asked))
    assert made["capture"]["layers"] == "1, 3"
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    expected = engine.capture_activations(model, tokenizer, "w5 w6 w7", layers=[1, 3], positions="last")
    saved = engine.load_activations("mine", store=store)
    assert "activations" in saved
    for layer in (1, 3):
        assert (saved["activations"][layer] == expected["activations"][layer]).all()


async def test_an_estimate_costs_nothing_and_saves_nothing(app: LayerscopeServer, store: Path) -> None:
    before = contents(store)
    async with Client(app) as client:
        asked = {"pairs": own_pairs(factors=False), "model": "tiny", "dry_run": True, "positions": "last"}
        said = await finished(client, await call(client, "capture_contrast", **asked))
        assert said["status"] == "estimated"
        assert (said["estimate"]["prompts"], said["estimate"]["tokens"]) == (24, 24 * 3)
        assert said["estimate"]["bytes"] == 24 * 4 * 32 * 4  # prompts, layers, width, bytes of a float32
        assert said["estimate"].get("neighbours", 0) == 0  # pairs of one's own are not compared
    assert contents(store) == before


async def test_an_estimate_counts_the_prompts_of_neighbours(
    app: LayerscopeServer, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calm.toml"
    path.write_text(concept_text("calm"))
    calm = load_concept(path)
    monkeypatch.setattr(specificity, "built_in_neighbours", lambda: [calm])
    monkeypatch.setattr(neighbours, "neighbours_path", lambda: tmp_path / "kept")
    (store / "concepts").mkdir(exist_ok=True)
    (store / "concepts" / "loudness.toml").write_text(concept_text("loudness"))
    async with Client(app) as client:
        asked = {"concept": "loudness", "model": "tiny", "dry_run": True}
        said = await finished(client, await call(client, "capture_contrast", **asked))
        assert said["estimate"]["neighbours"] == 2 * len(draw_pairs(calm, 72, 0)) > 0


async def test_a_taken_name_is_replaced_only_on_request(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client:
        asked = {"prompts": ["w5 w6"], "model": "tiny", "name": "prompt", "positions": "last"}
        estimate = await finished(client, await call(client, "capture_prompts", **asked, dry_run=True))
        assert estimate["status"] == "estimated"  # an estimate takes no name
        replaced = await finished(client, await call(client, "capture_prompts", **asked, replace=True))
        assert replaced["capture"]["positions"] == "last"
    provenance = show_capture("prompt", store=store)["provenance"]
    assert provenance is not None
    assert provenance["positions"] == "last"


@pytest.fixture
def questions(store: Path) -> Path:
    """A file of 600 prompts, hardly two with a shared prefix, in the store."""
    file = store / "prompts" / "questions.txt"
    file.parent.mkdir()
    file.write_text("\n".join(pair["positive"] for pair in many_pairs(600)))
    return file


async def begun(client: Client, tool: str, **asked: object) -> Json:
    """Start a capture in shards; return once some are saved."""
    job = await call(client, tool, **asked, wait_s=0)
    with anyio.fail_after(60):
        while job["done"] <= 512:
            assert job["status"] in {"waiting", "running"}, job
            job = await call(client, "wait_for_job", job=job["job"], wait_s=0.1)
    return job


async def test_a_file_of_prompts_is_cancelled_and_resumed(app: LayerscopeServer, store: Path, questions: Path) -> None:
    asked = {"file": "questions.txt", "model": "slow", "positions": "last"}
    async with Client(app) as client:
        estimate = await finished(client, await call(client, "capture_prompts", **asked, dry_run=True))
        assert (estimate["status"], estimate["estimate"]["prompts"]) == ("estimated", 600)
        job = await begun(client, "capture_prompts", **asked)
        stopped = await call(client, "cancel_job", job=job["job"])
        assert stopped["status"] == "cancelled"
        assert "saved shards are kept" in stopped["next_step"]
        (kept,) = (store / "slow_questions").glob("*.safetensors")
        before = kept.stat().st_mtime_ns
        listed = await call(client, "list_captures")
        assert "unfinished: 1 shard saved so far" in listed["damaged"]["slow_questions"]
        assert "without replace" in await refused(client, "describe_capture", name="slow_questions")
        other = await failed(client, "capture_prompts", **(asked | {"positions": "mean"}))
        assert "was started with different settings" in other["error"]
        done = await finished(client, await call(client, "capture_prompts", **asked))
        assert (done["status"], done["done"], done["total"]) == ("done", 600, 600)
        assert (done["capture"]["kind"], done["capture"]["prompts"]) == ("prompt", 600)
        assert kept.stat().st_mtime_ns == before
        assert len(list((store / "slow_questions").glob("*.safetensors"))) == 2
        assert "already a capture" in await refused(client, "capture_prompts", **asked)
        described = await call(client, "describe_capture", name="slow_questions")
        assert len(described["example_prompts"]) + described["left_out"] == 600
        for tool in ("rank_layers", "extract_direction"):
            assert "capture_contrast" in await refused(client, tool, name="slow_questions")
    assert [text for shard in engine.open_shards("slow_questions", store=store) for text in shard.prompts] == (
        questions.read_text().splitlines()
    )


@pytest.mark.parametrize(
    ("prompts", "name", "positions"),
    [(["w5 w6 w7"], "tiny_prompt", "all"), (["w5 w6 w7", "w8 w9"], "tiny_prompts", "last")],
)
async def test_one_prompt_keeps_all_its_tokens_and_several_the_last(
    app: LayerscopeServer, prompts: list[str], name: str, positions: str
) -> None:
    async with Client(app) as client:
        made = await finished(client, await call(client, "capture_prompts", prompts=prompts, model="tiny", layers="1"))
        assert (made["capture"]["name"], made["capture"]["positions"]) == (name, positions)
        again = {"prompts": prompts, "model": "tiny", "layers": "1", "positions": "mean", "replace": True}
        made = await finished(client, await call(client, "capture_prompts", **again))
        assert (made["capture"]["name"], made["capture"]["positions"]) == (name, "mean")


async def test_several_prompts_are_saved_as_by_the_engine(
    app: LayerscopeServer, store: Path, tiny_folder: Path
) -> None:
    async with Client(app) as client:
        asked = {"prompts": ["w5 w6 w7", "w8"], "model": "tiny", "layers": "1"}
        made = await finished(client, await call(client, "capture_prompts", **asked))
        assert (made["capture"]["name"], made["capture"]["prompts"]) == ("tiny_prompts", 2)
        assert made["capture"]["positions"] == "last"
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    expected = engine.capture_activations(model, tokenizer, asked["prompts"], layers=[1], positions="last")
    saved = engine.load_activations("tiny_prompts", store=store)
    assert "activations" in saved
    assert saved["prompt"] == asked["prompts"]
    assert (saved["activations"][1] == expected["activations"][1]).all()


async def test_a_large_contrast_is_saved_as_shards_and_ranked_alike(settings: ServerSettings, store: Path) -> None:
    asked = {"concept": "loudness", "model": "tiny"}
    async with Client(build_server(replace(settings, most_in_memory=1))) as client:
        made = await finished(client, await call(client, "capture_contrast", **asked))
        ranked = [await call(client, "rank_layers", name=name) for name in ("loudness", "tiny_loudness")]
        for tool, more in (("inspect_layer", {"layer": 2}), ("read_text", {"text": "w5"})):
            await call(client, tool, name="tiny_loudness", **more)
    assert (store / "tiny_loudness" / "plan.json").exists()
    assert made["capture"]["pairs"] == 24
    assert [row["layer"] for row in ranked[0]["layers"]] == [row["layer"] for row in ranked[1]["layers"]]
    for one, other in zip(ranked[0]["layers"], ranked[1]["layers"], strict=True):
        assert one["d_prime"] == pytest.approx(other["d_prime"], abs=2e-3)


@pytest.mark.slow
async def test_a_large_contrast_is_resumed_by_the_same_call(settings: ServerSettings, store: Path) -> None:
    asked = {"pairs": many_pairs(300), "model": "slow", "positions": "last", "name": "large"}
    async with Client(build_server(replace(settings, most_in_memory=1))) as client:
        job = await begun(client, "capture_contrast", **asked)
        stopped = await call(client, "cancel_job", job=job["job"])
        assert "delete_capture(name='large', confirm=true)" in stopped["next_step"]
        (kept,) = (store / "large").glob("*.safetensors")
        before = kept.stat().st_mtime_ns
        done = await finished(client, await call(client, "capture_contrast", **asked))
        assert (done["status"], done["capture"]["pairs"]) == ("done", 300)
        assert done["capture"]["leading"]
        assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["file", "dataset"])
async def test_a_file_of_pairs_is_ranked_as_the_same_pairs_in_the_call(
    app: LayerscopeServer, store: Path, kind: str
) -> None:
    (store / "prompts").mkdir()
    if kind == "file":
        (store / "prompts" / "mine.jsonl").write_text("\n".join(map(json.dumps, own_pairs(factors=True))))
    else:
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(own_pairs(factors=True)).save_to_disk(store / "prompts" / "mine")
    asked = {"file": "mine.jsonl" if kind == "file" else "mine", "model": "tiny"}
    async with Client(app) as client:
        made = await finished(client, await call(client, "capture_contrast", **asked))
        assert made["capture"]["name"] == "tiny_mine"
        other = {"pairs": own_pairs(factors=True), "model": "tiny", "name": "own"}
        await finished(client, await call(client, "capture_contrast", **other))
        one, same = [await call(client, "rank_layers", name=name) for name in ("tiny_mine", "own")]
        assert one["layers"] == same["layers"]
        assert "capture_contrast takes it" in await refused(client, "capture_prompts", file=asked["file"])


async def test_a_file_of_prompts_is_not_a_contrast(app: LayerscopeServer, questions: Path) -> None:
    async with Client(app) as client:
        said = await refused(client, "capture_contrast", file=questions.name, model="tiny")
        assert "questions.txt holds prompts" in said
        assert "capture_prompts takes it" in said
        assert "exactly one of concept, pairs and file" in await refused(
            client, "capture_contrast", file="x", concept="loudness"
        )
