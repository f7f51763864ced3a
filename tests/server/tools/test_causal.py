"""Causal rankings through the server: those of the engine, kept in the record."""

from pathlib import Path

import pytest
from mcp import Client

import engine
from engine.plots.causal_text import causal_findings
from engine.steering.causal_request import CausalRequest
from engine.store.catalog import show_capture
from engine.store.read import load_contrast
from server.app import LayerscopeServer
from server.tools.causal import describe_ranking
from tests.engine.plots.records import causal_layer, causal_ranking
from tests.server.conftest import call, failed, refused
from tests.server.test_journey import finished

pytestmark = pytest.mark.anyio


async def test_the_ranking_is_that_of_the_record(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client:
        said = await finished(client, await call(client, "rank_causally", name="loudness", layers="1,2", strength=0.5))
    record = show_capture("loudness", store=store)
    causal = record["causal"]
    assert [row["layer"] for row in said["causal"]["layers"]] == [row["layer"] for row in causal["layers"]] == [1, 2]
    for one, other in zip(said["causal"]["layers"], causal["layers"], strict=True):
        assert [one["effect"], *one["interval"]] == pytest.approx(
            [other["effect"], other["low"], other["high"]], abs=5.1e-5
        )
        assert (one["p_value"], one["damage"]) == pytest.approx((other["p_value"], other["damage"]), abs=5.1e-5)
    assert said["causal"]["strength"] == 0.5
    assert said["findings"] == causal_findings(record)


async def test_neutral_prompts_are_those_of_the_client(app: LayerscopeServer, store: Path, tiny_folder: Path) -> None:
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    data = load_contrast("loudness", store=store)
    neutral = [f"w{30 + pair}" for pair in range(data["num_pairs"])]
    request = CausalRequest(layers=[1], strength=0.5)
    expected, other = (
        engine.rank_layers_causally(model, tokenizer, data, request, neutral=given)["layers"][0]["effect"]
        for given in (neutral, None)
    )
    arguments = {"name": "loudness", "layers": "1", "strength": 0.5}
    async with Client(app) as client:
        said = await finished(client, await call(client, "rank_causally", neutral=neutral, **arguments))
        wrong = await failed(client, "rank_causally", neutral=neutral[1:], wait_s=50, **arguments)
    assert said["causal"]["layers"][0]["effect"] == pytest.approx(expected, abs=5.1e-5)
    assert abs(expected - other) > 1e-3
    assert f"there are {len(neutral) - 1} neutral prompts for {len(neutral)} pairs" in str(wrong)


async def test_what_cannot_be_steered_is_refused_before_a_job_starts(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        assert "is not a contrast" in await refused(client, "rank_causally", name="prompt")
        assert "no capture called 'nothing'" in await refused(client, "rank_causally", name="nothing")
        await refused(client, "rank_causally", name="loudness", strength=-1)
        listed = await call(client, "wait_for_job")
    assert listed["jobs"] == []


def test_ablation_is_described_where_it_was_measured() -> None:
    ablation = {"ablation": 0.412, "ablation_low": 0.2, "ablation_high": 0.6, "ablation_p": 0.01}
    said = describe_ranking(causal_ranking([causal_layer(3, 0.01), causal_layer(4, 0.2, **ablation)]))
    without, both = said.layers
    assert (without.works, without.ablation, without.ablation_works) == (False, None, None)
    assert (both.works, both.ablation, both.ablation_works, both.ablation_interval) == (True, 0.41, True, (0.2, 0.6))
