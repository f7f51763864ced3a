"""Rankings, single layers and comparisons match the engine."""

from pathlib import Path

import numpy as np
import pytest
from mcp import Client

import engine
from engine.plots.layer_order import describe_order
from engine.records.results import Comparison
from engine.stats.classes import project_sides
from engine.stats.comparison import compare_captures
from engine.stats.scores import SCORES, order_layers
from engine.store.catalog import show_capture
from engine.store.read import load_contrast
from server.app import LayerscopeServer
from server.tools.ranking import compared_rows
from tests.engine.plots.results import compared_directions
from tests.server.conftest import call, refused

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("score", [score.key for score in SCORES])
async def test_layers_are_ordered_by_any_score(app: LayerscopeServer, store: Path, score: str) -> None:
    order = order_layers(show_capture("warmth", store=store), score)
    async with Client(app) as client:
        said = await call(client, "rank_layers", name="warmth", score=score, top=3)
    assert [row["layer"] for row in said["layers"]] == [layer.row["layer"] for layer in order[:3]]
    assert [row["value"] for row in said["layers"]] == pytest.approx([layer.value for layer in order[:3]], abs=6e-5)
    assert (said["score"], said["left_out"]) == (score, 1)


async def test_the_description_of_a_layer_matches_its_tensors(app: LayerscopeServer, store: Path) -> None:
    data, record = load_contrast("loudness", store=store), show_capture("loudness", store=store)
    async with Client(app) as client:
        for layer in range(4):
            said = await call(client, "inspect_layer", name="loudness", layer=layer)
            sides = project_sides(data, layer)
            gaps = np.array(sides["positive"]) - np.array(sides["negative"])
            assert said["d_prime"] == pytest.approx(sides["d_prime"], abs=6e-4)
            assert said["auroc"] == pytest.approx(sides["auroc"], abs=6e-4)
            assert said["wrong_total"] == (gaps < 0).sum()
            furthest = np.argsort(gaps)[: min(5, (gaps < 0).sum())]
            assert [pair["pair"] for pair in said["wrong_pairs"]] == furthest.tolist()
            assert [pair["gap"] for pair in said["wrong_pairs"]] == pytest.approx(gaps[furthest], abs=6e-4)
            for pair in said["wrong_pairs"]:
                assert pair["positive_prompt"] == record["prompts"][pair["pair"]]
                assert pair["factors"] == record["factors"][pair["pair"]]
            assert said["positive_quartiles"][2] == pytest.approx(np.median(sides["positive"]), abs=0.5)
            assert not said["against"]


async def test_against_another_layer_it_says_why_one_is_ranked_above_the_other(
    app: LayerscopeServer, store: Path
) -> None:
    record = show_capture("loudness", store=store)
    assert record["ranking"] is not None
    first, *_, last = (row["layer"] for row in record["ranking"]["layers"])
    async with Client(app) as client:
        said = await call(client, "inspect_layer", name="loudness", layer=last, against=first)
        assert said["layer"] == last
        assert said["against"] == describe_order(record, first, last)
        assert f"Layer {first} has rank 1" in said["against"][0]
        ranking = await call(client, "rank_layers", name="loudness")
        assert f"layer={first}, against=" in ranking["next_step"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layer": 4}, "[0, 1, 2, 3]"),
        ({"layer": 1, "against": 4}, "0, 1, 2, 3"),
        ({"layer": 1, "against": 1}, "two different ranked layers"),
        ({"layer": 1, "against": -1}, "against: at least 0"),
        ({"layer": 1, "against": "first"}, "a whole number"),
    ],
)
async def test_missing_layers(app: LayerscopeServer, arguments: dict[str, object], said: str) -> None:
    async with Client(app) as client:
        assert said in await refused(client, "inspect_layer", name="loudness", **arguments)


async def test_too_few_pairs_are_reported_with_a_next_step(
    app: LayerscopeServer, store: Path, tiny_folder: Path
) -> None:
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    data = engine.capture_contrastive_activations(model, tokenizer, ["w5 w6"], ["w7 w8"])
    engine.save_activations(data, "few", store=store)
    async with Client(app) as client:
        said = await refused(client, "inspect_layer", name="few", layer=1)
        assert "too few" in said
        assert "with more pairs" in said
        assert "is a capture of prompts" in await refused(client, "inspect_layer", name="prompt", layer=1)


async def test_two_concepts_are_compared_layer_by_layer(app: LayerscopeServer, store: Path) -> None:
    records = show_capture("loudness", store=store), show_capture("warmth", store=store)
    expected = compare_captures(*records, lambda record: load_contrast(record["name"], store=store))
    async with Client(app) as client:
        said = await call(client, "compare_captures", one="loudness", other="warmth")
        copy = await call(client, "compare_captures", one="loudness", other="loudness")
        assert "no direction" in await refused(client, "compare_captures", one="loudness", other="prompt")
    assert said["kind"] == "directions"
    cosines = [row["cosine"] for row in expected["directions"]]
    assert [row["cosine"] for row in said["rows"]] == pytest.approx(cosines, abs=6e-4)
    assert said["findings"]
    assert any(
        "share a prompt with loudness (1), whose direction sorts them" in warning for warning in copy["warnings"]
    )


def comparison(layers: int) -> Comparison:
    rows = [(layer, 0.12345, 0.2, 0.9) for layer in range(layers)]
    return compared_directions(rows, titles=("a", "b"))


def test_few_rows_are_complete_and_rounded() -> None:
    rows = compared_rows(comparison(30))
    assert [row.layer for row in rows] == list(range(30))
    assert (rows[0].cosine, rows[0].random_within, rows[0].halves_reach) == (0.123, 0.2, 0.9)


def test_many_rows_are_thinned_from_the_first() -> None:
    rows = compared_rows(comparison(126))
    assert len(rows) <= 60
    assert [row.layer for row in rows] == list(range(0, 126, 3))


def test_no_rows_stay_empty() -> None:
    assert compared_rows(comparison(0)) == []
