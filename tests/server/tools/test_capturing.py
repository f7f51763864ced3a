"""Tools that capture: pairs of one's own with and without factors, prompts, estimates, names that are taken."""

from pathlib import Path

import pytest
from mcp import Client

import engine
from engine.store.catalog import show_capture
from server.app import LayerscopeServer
from tests.server.conftest import Json, call, contents
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
async def test_pairs_of_ones_own_are_left_out_by_the_factors_they_carry(
    app: LayerscopeServer, store: Path, factors: bool
) -> None:
    async with Client(app) as client:
        asked = {"pairs": own_pairs(factors), "model": "tiny", "name": "own"}
        made = await finished(client, await call(client, "capture_contrast", **asked))
        ranking = await call(client, "rank_layers", name="own", detail="full")
    record = show_capture("own", store=store)
    assert record["prompts"] == [pair["positive"] for pair in own_pairs(factors)]
    assert (made["capture"]["concept"], made["capture"]["pairs"]) == (None, 12)
    left_out = ranking["layers"][0]["d_prime_by_left_out"]
    assert set(left_out) == ({"persona", "topic"} if factors else {"pairs"})


async def test_a_prompt_is_captured_as_the_engine_captures_it(
    app: LayerscopeServer, store: Path, tiny_folder: Path
) -> None:
    async with Client(app) as client:
        asked = {"prompt": "w5 w6 w7", "model": "tiny", "layers": "1,-1", "positions": "last", "name": "mine"}
        made = await finished(client, await call(client, "capture_prompt", **asked))
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
    assert contents(store) == before


async def test_a_name_that_is_taken_is_replaced_only_when_that_is_asked_for(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client:
        asked = {"prompt": "w5 w6", "model": "tiny", "name": "prompt", "positions": "last"}
        replaced = await finished(client, await call(client, "capture_prompt", **asked, replace=True))
        assert replaced["capture"]["positions"] == "last"
    provenance = show_capture("prompt", store=store)["provenance"]
    assert provenance is not None
    assert provenance["positions"] == "last"
