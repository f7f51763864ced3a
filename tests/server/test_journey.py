"""A whole session over every transport and protocol era."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from mcp import Client
from mcp.types import CallToolResult, ImageContent, TextContent

import engine
from engine.stats.classes import project_sides
from engine.stats.direction import extract_directions
from engine.stats.scores import order_layers
from engine.store.catalog import show_capture
from engine.store.directions import load_directions
from engine.store.read import load_contrast
from server.app import LayerscopeServer, build_server
from server.settings import ServerSettings
from tests.server.conftest import DONE, ERAS, Json, agree, allow, call, running_http, stdio_parameters

pytestmark = pytest.mark.anyio

PNG = "iVBORw0KGgo"  # start of a PNG in base64


async def walk(client: Client, store: Path, *, model: str, concept: str, pairs: int, layers: str = "all") -> None:
    """Make an agent's calls, each based on the previous answer."""
    models = (await call(client, "list_models"))["models"]
    assert model in [entry["name"] for entry in models]
    concepts = (await call(client, "list_concepts"))["concepts"]
    assert concept in [entry["name"] for entry in concepts]
    loaded = await finished(client, await call(client, "load_model", model=model))
    assert loaded["model"]["loaded"]

    estimate = await call(client, "capture_contrast", concept=concept, model=model, max_samples=pairs, dry_run=True)
    estimate = await finished(client, estimate)
    assert (estimate["status"], estimate["estimate"]["prompts"]) == ("estimated", 2 * pairs)
    asked = {"concept": concept, "model": model, "max_samples": pairs, "layers": layers}
    made = await finished(client, await call(client, "capture_contrast", **asked))
    assert made["status"] == "done", made
    name = made["capture"]["name"]
    assert (name, made["done"], made["total"]) == (f"{model}_{concept}", 2 * pairs, 2 * pairs)

    record = show_capture(name, store=store)
    data = load_contrast(name, store=store)
    order = order_layers(record, "d_prime")
    ranking = await call(client, "rank_layers", name=name)
    assert [row["layer"] for row in ranking["layers"]] == [layer.row["layer"] for layer in order[:10]]
    assert ranking["left_out"] == max(len(order) - 10, 0)
    first = ranking["layers"][0]
    assert order[0].ranked is not None
    assert first["d_prime"] == pytest.approx(order[0].ranked["d_prime"], abs=6e-4)
    assert made["capture"]["leading"]["layer"] == first["layer"]

    sides = project_sides(data, first["layer"])
    inspected = await call(client, "inspect_layer", name=name, layer=first["layer"])
    assert inspected["auroc"] == pytest.approx(sides["auroc"], abs=6e-4)
    step = (max(sides["positive"] + sides["negative"]) - min(sides["positive"] + sides["negative"])) / 48
    assert inspected["positive_quartiles"][-1] == pytest.approx(max(sides["positive"]), abs=step / 2 + 6e-3)
    assert inspected["wrong_total"] == sum(p < n for p, n in zip(sides["positive"], sides["negative"], strict=True))
    described = await call(client, "describe_capture", name=name)
    assert agree(described["capture"], made["capture"])

    text, image = await plot(client, name=name)
    assert name in text or concept in text
    assert image.data.startswith(PNG)

    extracted = await call(client, "extract_direction", name=name)
    saved, leading = load_directions(name, store=store)
    expected = extract_directions(data, "auto", leading=first["layer"])
    assert saved.keys() == expected.keys()
    assert all(bool((saved[layer]["vector"] == expected[layer]["vector"]).all()) for layer in saved)
    assert extracted["leading"] == leading == first["layer"]

    read = await finished(client, await call(client, "read_text", name=name, text=record["prompts"][0]))
    assert read["reading"]["layer"] == first["layer"]
    assert len(read["reading"]["tokens"]) > 1
    assert name in [entry["name"] for entry in (await call(client, "list_captures"))["captures"]]


async def finished(client: Client, job: Json) -> Json:
    """Wait for a job's result if necessary."""
    while job["status"] not in DONE:
        job = await call(client, "wait_for_job", job=job["job"])
    return job


async def plot(client: Client, **arguments: object) -> tuple[str, ImageContent]:
    result = await client.call_tool("plot_capture", dict(arguments))
    assert isinstance(result, CallToolResult)
    assert not result.is_error, result.content
    text, image = result.content
    assert isinstance(text, TextContent)
    assert isinstance(image, ImageContent)
    return text.text, image


@asynccontextmanager
async def in_memory(settings: ServerSettings, era: str) -> AsyncIterator[Client]:
    async with Client(build_server(settings), mode=era) as client:
        yield client


@pytest.mark.parametrize("era", ERAS)
async def test_the_journey_in_memory(settings: ServerSettings, store: Path, era: str) -> None:
    (store / "loudness.json").unlink()
    (store / "loudness.pt").unlink()
    async with in_memory(settings, era) as client:
        await walk(client, store, model="tiny", concept="loudness", pairs=20)


@pytest.mark.parametrize("era", ["auto", pytest.param("legacy", marks=pytest.mark.slow)])
async def test_the_journey_over_stdio(store: Path, tiny_folder: Path, era: str) -> None:
    with anyio.fail_after(60):
        async with Client(stdio_parameters(store, tiny_folder), mode=era) as client:
            await walk(client, store, model="tiny", concept="loudness", pairs=20)


@pytest.mark.slow
async def test_the_journey_over_http_in_both_eras_at_once(store: Path, tiny_folder: Path) -> None:
    """Two clients of different eras on one server do not disturb each other."""

    async def travel(url: str, era: str, concept: str) -> None:
        async with Client(url, mode=era) as client:
            await walk(client, store, model="tiny", concept=concept, pairs=20)

    with running_http(store, *allow(tiny_folder)) as (url, _), anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(travel, url, "auto", "loudness")
            tasks.start_soon(travel, url, "legacy", "warmth")


@pytest.mark.slow
async def test_the_journey_with_the_default_model(tmp_path: Path) -> None:
    settings = ServerSettings(tmp_path / "activations", memory_bytes=1 << 32)
    async with Client(build_server(settings)) as client:
        await walk(client, settings.store, model="smollm2", concept="honesty", pairs=10, layers="4,14-16,29")


async def test_large_data_stays_in_the_store(app: LayerscopeServer, store: Path, captures: Path) -> None:
    """With many captures and long prompts, answers stay small, report cuts and page."""
    for number in range(30):
        record = show_capture("loudness", store=captures)
        data = engine.load_activations("loudness", store=captures)
        assert record["num_pairs"] == data["num_pairs"]  # type: ignore[typeddict-item]
        engine.save_activations(data, f"copy-{number}", store=store)
    async with Client(app) as client:
        page = await call(client, "list_captures", limit=20)
        assert (len(page["captures"]), page["total"], page["next_offset"]) == (20, 33, 20)
        rest = await call(client, "list_captures", limit=20, offset=20)
        assert (len(rest["captures"]), "next_offset" in rest) == (13, False)
        assert not {entry["name"] for entry in page["captures"]} & {entry["name"] for entry in rest["captures"]}
        for detail in ("concise", "full"):
            await call(client, "describe_capture", name="loudness", detail=detail)
            await call(client, "rank_layers", name="loudness", top=100, detail=detail)
        await call(client, "compare_captures", one="loudness", other="warmth")
        await call(client, "list_concepts", name="honesty")
