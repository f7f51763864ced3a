"""Steered texts through the server: those of the engine."""

from pathlib import Path
from typing import Any

import pytest
from mcp import Client

import engine
from engine.records.steering import SteeredTexts
from engine.store.read import load_contrast
from server.app import LayerscopeServer
from tests.server.conftest import call, refused
from tests.server.test_journey import finished

pytestmark = pytest.mark.anyio


def steered_here(store: Path, folder: Path, **options: Any) -> SteeredTexts:
    """The expected texts, computed in this process."""
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(folder))
    data = load_contrast("loudness", store=store)
    directions = engine.extract_directions(data)
    return engine.steer_text(model, tokenizer, directions, "w5 w9", data=data, max_new_tokens=5, **options)


async def test_the_texts_are_those_of_the_engine(app: LayerscopeServer, store: Path, tiny_folder: Path) -> None:
    arguments = {"name": "loudness", "prompt": "w5 w9", "layer": 1, "max_new_tokens": 5}
    async with Client(app) as client:
        steered = await finished(client, await call(client, "steer_text", strengths=[0.5, -1], **arguments))
        ablated = await finished(client, await call(client, "steer_text", ablate=True, **arguments))
    expected = steered_here(store, tiny_folder, layer=1, strengths=[0.5, -1.0])
    assert (steered["steering"]["layer"], steered["steering"]["method"]) == (1, "mean_diff")
    listed = [expected["baseline"], *expected["steered"], *expected["controls"]]
    for one, other in zip(steered["steering"]["texts"], listed, strict=True):
        assert (one["kind"], one.get("strength"), one["text"]) == (other["kind"], other["strength"], other["text"])
        assert one["perplexity"] == pytest.approx(other["perplexity"], abs=0.0051, rel=1e-3)
        assert one["shift"] == pytest.approx(other["shift"], abs=0.0051, rel=1e-3)
    assert "one prompt proves nothing" in steered["next_step"]
    assert [text["kind"] for text in ablated["steering"]["texts"]] == ["baseline", "ablated", "control"]


async def test_a_strength_that_overflows_is_refused(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        said = await refused(
            client, "steer_text", name="loudness", prompt="w5 w9", layer=1, strengths=[1e30], wait_s=50
        )
    assert "a strength of 1e+30 at layer 1 overflows in float32. Next: steer by less" in said


async def test_a_strength_that_overflows_loses_no_other(app: LayerscopeServer, store: Path, tiny_folder: Path) -> None:
    arguments = {"name": "loudness", "prompt": "w5 w9", "layer": 1, "max_new_tokens": 5}
    async with Client(app) as client:
        steered = await finished(client, await call(client, "steer_text", strengths=[1e30, 0.5], **arguments))
    _, lost, kept, *_ = steered["steering"]["texts"]
    expected = steered_here(store, tiny_folder, layer=1, strengths=[0.5])["steered"][0]
    assert (kept["text"], kept["strength"]) == (expected["text"], 0.5)
    assert (lost["text"], lost["strength"], lost.get("perplexity"), lost.get("shift")) == ("", 1e30, None, None)
    assert "a strength of 1e+30 at layer 1 overflows in float32" in steered["warnings"]


async def test_a_layer_without_a_direction_is_refused(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        said = await refused(client, "steer_text", name="loudness", prompt="w5 w9", layer=9, wait_s=50)
    assert "there is no direction at layer 9" in said
