"""Error messages that agents receive."""

import errno
import json
import logging
import threading
from pathlib import Path

import anyio
import pytest
from mcp import Client
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError

from server.app import LayerscopeServer, build_server
from server.command import JsonLines
from server.errors import guarded
from server.jobs import Jobs
from server.settings import ServerSettings
from tests.server.conftest import ERAS, call, contents, refused

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("rank_layer", {"name": "loudness"}, "rank_layers"),
        ("capture_prompt", {"prompt": "w5", "model": "tiny"}, "call capture_prompts(prompts=[...])"),
        ("show_concept", {"name": "loudness"}, "call list_concepts(name=...)"),
        ("unload_model", {"model": "tiny"}, "call load_model(model=..., unload=true)"),
        ("rank_layers", {"nmae": "loudness"}, "'name'"),
        ("rank_layers", {"name": "loudnes"}, "loudness"),
        ("rank_layers", {}, "name is missing"),
        ("rank_layers", {"name": "loudness", "top": 0}, "top cannot be 0. Expected: top: at least 1. Next: "),
        ("rank_layers", {"name": "loudness", "top": "many"}, "'many'"),
        ("rank_layers", {"name": "loudness", "detail": "all"}, "'concise' or 'full'"),
        ("rank_layers", {"name": "loudness", "detail": "ful"}, "detail cannot be 'ful'; did you mean 'full'"),
        ("rank_layers", {"name": "loudness", "score": "d_prim"}, "d_prime"),
        ("rank_layers", {"name": "../loudness"}, "letters, digits"),
        ("rank_layers", {"name": "/etc/passwd"}, "letters, digits"),
        ("rank_layers", {"name": "prompt"}, "prompt"),
        ("inspect_layer", {"name": "loudness", "layer": 99}, "[0, 1, 2, 3]"),
        ("inspect_layer", {"name": "loudness", "layer": -1}, "layer: at least 0"),
        ("list_concepts", {"name": "loudnes"}, "loudness"),
        ("list_concepts", {"name": "../concepts/loudness.toml"}, "no concept"),
        ("load_model", {"model": "tinny"}, "'tiny'"),
        ("load_model", {"model": "smollm2"}, "does not load"),
        ("load_model", {"model": "/etc"}, "does not load"),
        ("load_model", {"model": "tiny", "unload": True}, "not loaded"),
        ("delete_capture", {"name": "loudness"}, "confirm=true"),
        ("delete_capture", {"name": "loudnes", "confirm": True}, "'loudness'"),
        ("delete_capture", {"name": "concepts/loudness.toml", "confirm": True}, "letters, digits"),
        ("capture_contrast", {"model": "tiny"}, "exactly one of concept, pairs and file"),
        ("capture_contrast", {"concept": "warmth", "model": "tiny", "site": "resid_pst"}, "resid_post"),
        ("capture_contrast", {"concept": "warmth", "model": "tiny", "name": "loudness"}, "replace=true"),
        ("capture_contrast", {"concept": "warmth", "model": "tiny", "name": "../x"}, "letters, digits"),
        ("capture_contrast", {"concept": "warmth", "model": "tiny", "wait_s": 51}, "wait_s: at most 50"),
        ("capture_prompts", {"prompts": [""], "model": "tiny"}, "at least 1 character"),
        ("extract_direction", {"name": "loudness", "method": "mean_dif"}, "mean_diff"),
        ("extract_direction", {"name": "loudness", "save_as": "../x"}, "letters, digits"),
        ("compare_captures", {"one": "loudness", "other": "warmt"}, "warmth"),
        ("plot_capture", {"name": "loudness", "compare_with": "warmt"}, "warmth"),
        ("wait_for_job", {"job": "capture_contrast-000000"}, "no job"),
    ],
)
async def test_errors_say_what_was_expected(
    app: LayerscopeServer, store: Path, tool: str, arguments: dict[str, object], said: str
) -> None:
    before = contents(store.parent)
    async with Client(app, mode=ERAS[len(tool) % 2]) as client:
        assert said in await refused(client, tool, **arguments)
    assert contents(store.parent) == before


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("uri", ["capture://nothing", "concept://nothing", "model://nothing", "capture://..%2Fx"])
async def test_missing_resources(app: LayerscopeServer, era: str, uri: str) -> None:
    async with Client(app, mode=era) as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource(uri)
    assert "Traceback" not in str(caught.value)
    assert caught.value.error.code in {-32602, -32002}


@pytest.mark.parametrize("era", ERAS)
async def test_a_bug_gets_an_id_that_is_in_the_log_too(
    settings: ServerSettings, store: Path, era: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = build_server(settings)
    record = json.loads((store / "loudness.json").read_text())
    record["ranking"]["layers"] = []  # well typed, but never written by layerscope
    (store / "loudness.json").write_text(json.dumps(record))
    async with Client(app, mode=era) as client:
        said = await refused(client, "rank_layers", name="loudness")
    bugs = [entry for entry in caplog.records if entry.getMessage() == "bug"]
    if not bugs:  # the engine now refuses such a record
        assert "loudness" in said
        return
    line = json.loads(JsonLines().format(bugs[0]))
    assert f"unexpected error {line['id']} in rank_layers" in said
    assert "Traceback" in line["traceback"]
    assert "IndexError" not in said


async def test_a_bug_in_a_tool_is_logged_under_the_id_in_its_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> None:
        raise KeyError("a secret of ours")

    with caplog.at_level(logging.INFO, logger="server"), pytest.raises(ToolError) as caught:
        await guarded(broken)()
    bug, called = (json.loads(JsonLines().format(entry)) for entry in caplog.records)
    assert bug["id"] in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "a secret of ours" in bug["traceback"]
    assert (called["tool"], called["outcome"]) == ("broken", "bug")
    assert called["seconds"] >= 0


def wrapped(error: Exception) -> Exception:
    try:
        raise ValueError from error
    except ValueError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory. Next: use fewer layers"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files or connections. Next: repeat"),
        (wrapped(OSError(errno.ENFILE, "Too many open files in system")), "too many open files or connections"),
    ],
)
async def test_a_shortage_is_said_plainly_and_is_no_bug(
    caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    with caplog.at_level(logging.INFO, logger="server"), pytest.raises(ToolError) as caught:
        await guarded(fail)()
    assert said in str(caught.value)
    assert [entry.getMessage() for entry in caplog.records] == ["shortage", "call"]
    async with anyio.create_task_group() as tasks:
        jobs = Jobs(tasks, threading.Lock())
        job = jobs.start("fail", fail)
        await jobs.wait(job, 5)
    assert (job.status, said in job.error) == ("failed", True)


async def test_a_resource_that_cannot_be_read_for_want_of_files_says_so(
    app: LayerscopeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async with Client(app) as client:
        await client.read_resource("capture://loudness")
        monkeypatch.setattr("server.resources.show_capture", fail)
        with pytest.raises(MCPError, match="too many open files"):
            await client.read_resource("capture://loudness")
        monkeypatch.setattr("server.resources.show_capture", {}.pop)
        with pytest.raises(MCPError) as caught:
            await client.read_resource("capture://loudness")
    assert "too many" not in str(caught.value)


async def test_a_deleted_capture_is_gone_with_its_directions(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client:
        await call(client, "extract_direction", name="loudness")
        deleted = (await call(client, "delete_capture", name="loudness", confirm=True))["deleted"]
    assert deleted == ["loudness.json", "loudness.pt", "loudness.directions.safetensors"]
    assert not list(store.glob("loudness*"))


async def test_a_damaged_capture_is_listed_as_such_and_can_be_deleted(app: LayerscopeServer, store: Path) -> None:
    (store / "warmth.json").write_text("{")
    async with Client(app) as client:
        assert "warmth" in (await call(client, "list_captures"))["damaged"]
        assert "cannot be used" in await refused(client, "rank_layers", name="warmth")
        await call(client, "delete_capture", name="warmth", confirm=True)
    assert not list(store.glob("warmth*"))


async def test_an_error_of_the_engine_names_the_tool_to_call(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        prompts = await refused(client, "rank_layers", name="prompt")
        assert prompts.endswith("Next: call capture_contrast(concept='honesty'), or pass your own pairs.")
        taken = await refused(client, "capture_contrast", concept="warmth", model="tiny", name="loudness")
        assert taken.endswith("Next: choose another name, or replace=true.")
        missing = await refused(client, "list_concepts", name="nothing")
        assert missing.endswith("Next: list_concepts.")
