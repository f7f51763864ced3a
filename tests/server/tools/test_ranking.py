"""The tool that ranks says what the engine finds."""

from pathlib import Path

import pytest
from mcp import Client

from engine.stats.scores import SCORES, order_layers
from engine.store.catalog import show_capture
from server.app import LayerscopeServer
from tests.server.conftest import call

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("score", [score.key for score in SCORES])
async def test_layers_come_in_the_order_of_any_score(app: LayerscopeServer, store: Path, score: str) -> None:
    order = order_layers(show_capture("warmth", store=store), score)
    async with Client(app) as client:
        said = await call(client, "rank_layers", name="warmth", score=score, top=3)
    assert [row["layer"] for row in said["layers"]] == [layer.row["layer"] for layer in order[:3]]
    assert [row["value"] for row in said["layers"]] == pytest.approx([layer.value for layer in order[:3]], abs=6e-5)
    assert (said["score"], said["left_out"]) == (score, 1)
