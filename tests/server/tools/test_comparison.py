"""The tool that compares says what the engine finds."""

from pathlib import Path

import pytest
from mcp import Client

from engine.stats.comparison import compare_captures
from engine.store.catalog import show_capture
from engine.store.read import load_contrast
from server.app import LayerscopeServer
from tests.server.conftest import call, refused

pytestmark = pytest.mark.anyio


async def test_two_concepts_are_compared_layer_by_layer(app: LayerscopeServer, store: Path) -> None:
    records = show_capture("loudness", store=store), show_capture("warmth", store=store)
    expected = compare_captures(*records, lambda record: load_contrast(record["name"], store=store))
    async with Client(app) as client:
        said = await call(client, "compare_captures", one="loudness", other="warmth")
        assert "no direction" in await refused(client, "compare_captures", one="loudness", other="prompt")
    assert said["kind"] == "directions"
    cosines = [row["cosine"] for row in expected["directions"]]
    assert [row["cosine"] for row in said["rows"]] == pytest.approx(cosines, abs=6e-4)
    assert said["findings"]
