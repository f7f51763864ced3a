"""The workbench: captures it finds, models it keeps loaded, and how it closes."""

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from mcp import Client

import engine
from engine.errors import RequestError
from engine.models.placement import LoadOptions
from server.app import LayerscopeServer, build_server
from server.jobs import ServerJob
from server.settings import ServerSettings
from server.workbench import ModelShelf, open_workbench
from tests.conftest import Trained
from tests.server.conftest import failed, refused
from tests.server.test_settings import register

pytestmark = pytest.mark.anyio


async def test_closing_it_stops_running_and_waiting_jobs(settings: ServerSettings) -> None:
    started = threading.Event()

    def endless(job: ServerJob) -> None:
        started.set()
        while True:
            job.checkpoint()
            time.sleep(0.01)

    at_work = threading.Lock()
    with anyio.fail_after(10):
        async with open_workbench(settings, at_work) as bench:
            jobs = [bench.jobs.start("count", endless) for _ in range(3)]
            await anyio.to_thread.run_sync(started.wait)
    assert [job.status for job in jobs] == ["cancelled"] * 3
    assert not at_work.locked()


async def test_a_missing_capture_is_distinguished_from_an_unusable_one(
    app: LayerscopeServer, settings: ServerSettings
) -> None:
    (settings.store / "warmth.json").write_text('{"schema": 99}')
    (settings.store / "loudness.pt").unlink()
    async with Client(app) as client:
        assert "there is no capture called 'warmt'" in await refused(client, "rank_layers", name="warmt")
        assert "has schema 99" in await refused(client, "rank_layers", name="warmth")
        assert "loudness.pt is missing" in await refused(client, "rank_layers", name="loudness")


def test_a_model_is_loaded_once_under_any_of_its_names(settings: ServerSettings, tiny_folder: Path) -> None:
    shelf = ModelShelf(settings)
    by_name = shelf.get("tiny")
    assert shelf.get(str(tiny_folder)) is by_name
    assert [model.name for model in shelf.loaded()] == ["tiny"]
    files = sum(path.stat().st_size for path in tiny_folder.glob("*.safetensors"))
    assert by_name.bytes == pytest.approx(files, rel=0.1)
    assert by_name.config.num_layers == 4


def test_the_least_recently_used_model_makes_room(settings: ServerSettings) -> None:
    shelf = ModelShelf(settings)
    tiny, slow = shelf.get("tiny"), shelf.get("slow")
    assert shelf.get("tiny") is tiny
    assert [model.name for model in shelf.loaded()] == ["slow", "tiny"]
    tight = ModelShelf(replace(settings, memory_bytes=slow.bytes))
    tight.get("tiny")
    tight.get("slow")
    assert [model.name for model in tight.loaded()] == ["slow"]


def test_a_model_larger_than_the_budget_is_still_loaded(settings: ServerSettings) -> None:
    shelf = ModelShelf(replace(settings, memory_bytes=1))
    assert shelf.get("slow").bytes > 1
    assert [model.name for model in shelf.loaded()] == ["slow"]


def test_a_model_is_placed_as_configured(settings: ServerSettings) -> None:
    whole = ModelShelf(settings).get("tiny")
    spread = ModelShelf(replace(settings, load_options=LoadOptions("auto", "auto", {"cpu": 0}))).get("tiny")
    assert spread.bytes < 0.1 * whole.bytes  # weights on disk do not count
    one, other = (engine.capture_activations(at.model, at.tokenizer, "w5 w6 w7") for at in (whole, spread))
    assert all(torch.equal(one["activations"][layer], other["activations"][layer]) for layer in range(4))


def test_a_model_has_the_configured_dtype(settings: ServerSettings) -> None:
    shelf = ModelShelf(replace(settings, load_options=LoadOptions("bfloat16")))
    assert shelf.get("tiny").model.dtype == torch.bfloat16


def test_an_unloaded_model_remains_usable_to_its_job(settings: ServerSettings) -> None:
    shelf = ModelShelf(settings)
    held = shelf.get("tiny")
    shelf.unload("tiny")
    assert shelf.loaded() == []
    with torch.no_grad():
        assert held.model(torch.tensor([[5, 6]])).logits.shape[:2] == (1, 2)
    assert shelf.get("tiny") is not held


@pytest.mark.parametrize("name", ["tiny", "smollm2", "", "/etc"])
def test_a_model_that_is_not_loaded_cannot_be_unloaded(settings: ServerSettings, name: str) -> None:
    with pytest.raises(RequestError, match="is not loaded"):
        ModelShelf(settings).unload(name)


def test_a_model_that_is_not_allowed_is_not_loaded(settings: ServerSettings) -> None:
    shelf = ModelShelf(settings)
    with pytest.raises(RequestError, match="does not load the model 'smollm2'"):
        shelf.get("smollm2")
    assert shelf.loaded() == []


def test_an_alias_that_now_means_another_folder_loads_that(settings: ServerSettings, trained: list[Trained]) -> None:
    shelf = ModelShelf(replace(settings, allowed_models=("mine",)))
    for one in trained:
        register("mine", str(one.folder))
        assert shelf.get("mine").config.weights == one.config.weights
    shelf.unload("mine")
    assert shelf.loaded() == []


def test_a_folder_that_was_saved_again_is_loaded_again(
    settings: ServerSettings, trained: list[Trained], tmp_path: Path
) -> None:
    folder = tmp_path / "latest"
    shelf = ModelShelf(replace(settings, allowed_models=(str(folder),)))
    for number, one in enumerate(trained):
        shutil.copytree(one.folder, folder, dirs_exist_ok=True)
        os.utime(folder / "config.json", ns=(0, 2 * 10**18 + number))
        assert shelf.get("latest").config.weights == one.config.weights
    assert len(shelf.loaded()) == 1


def test_a_capture_finds_its_model_among_those_of_the_same_folder_name(
    settings: ServerSettings, trained: list[Trained]
) -> None:
    """It was captured as checkpoint-500, and the server allows both folders under other names."""
    register("second", str(trained[1].folder))
    first, second = trained
    both = ModelShelf(replace(settings, allowed_models=(str(first.folder), "second")))
    with pytest.raises(RequestError, match=r"is not the model of this capture: its weights differ\. Next: capture it"):
        both.captured(second.data["provenance"])  # its alias is the other folder's
    assert both.captured(second.data["provenance"]).name == "second"  # the other is loaded now, and is known to differ
    assert both.captured(first.data["provenance"]).name == "checkpoint-500"


async def test_tools_refuse_a_model_that_only_shares_the_name_of_the_captured_one(
    settings: ServerSettings, trained: list[Trained]
) -> None:
    engine.save_activations(trained[0].data, "first", store=settings.store)
    app = build_server(replace(settings, allowed_models=(str(trained[1].folder),)))
    calls: dict[str, dict[str, Any]] = {
        "read_text": {"text": "w5"},
        "steer_text": {"prompt": "w5"},
        "rank_causally": {"neutral": ["w5"] * 24},
    }
    async with Client(app) as client:
        for tool, arguments in calls.items():
            said = (await failed(client, tool, name="first", **arguments))["error"]
            # The first call loads the model to compare its weights; after that they are known.
            assert "its weights differ" in said or "'checkpoint-500' is another model" in said, (tool, said)
