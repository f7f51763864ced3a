"""Servers in memory, over stdio and over HTTP, and a store of captures of tiny models."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, TextContent
from pydantic_core import to_json
from transformers import PreTrainedTokenizerFast

import engine
from engine.concepts.catalog import load_concept, save_concept
from server.app import LayerscopeServer, build_server
from server.settings import ServerSettings
from tests.conftest import family_called
from tests.engine.cli.conftest import concept_text
from tests.families import Family, build

ERAS = ("auto", "legacy")
MOST_BYTES = 8192
DONE = {"done", "failed", "cancelled", "estimated"}
# Words in the tiny vocabulary, close to the maximum length of the tiny models.
LONG = " ".join(f"w{number}" for number in range(10, 68))

Json = dict[str, Any]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A llama of four blocks; clients call it "tiny"."""
    return _save(tmp_path_factory, tiny_tokenizer, "tiny", {})


@pytest.fixture(scope="session")
def slow_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A llama that takes a twentieth of a second or more for a batch of `LONG`; clients call it "slow"."""
    return _save(tmp_path_factory, tiny_tokenizer, "slow", {"hidden_size": 256, "intermediate_size": 768})


def _save(factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, name: str, changes: Json) -> Path:
    folder = factory.mktemp("models") / name
    config = family_called("llama").config()
    config.update(changes)
    build(Family(name, lambda: config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def captures(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A store to copy: contrasts `loudness` and `warmth`, a `prompt`, and both concepts."""
    folder = tmp_path_factory.mktemp("made") / "activations"
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    for name in ("loudness", "warmth"):
        file = folder.parent / f"{name}.toml"
        file.write_text(concept_text(name))
        concept = load_concept(file)
        save_concept(concept, folder / "concepts")
        data = engine.capture_from_concept(model, tokenizer, concept, positions="last")
        engine.save_activations(data, name, store=folder)
    engine.save_activations(engine.capture_activations(model, tokenizer, "w5 w6"), "prompt", store=folder)
    return folder


@pytest.fixture
def store(captures: Path, tmp_path: Path) -> Path:
    """A copy of that store, for one test."""
    return Path(shutil.copytree(captures, tmp_path / "activations"))


@pytest.fixture
def settings(store: Path, tiny_folder: Path, slow_folder: Path) -> ServerSettings:
    """A server of that store that may load both tiny models."""
    return ServerSettings(store, allowed_models=(str(tiny_folder), str(slow_folder)), memory_bytes=1 << 30)


@pytest.fixture
def app(settings: ServerSettings) -> LayerscopeServer:
    return build_server(settings)


async def call(client: Client, tool: str, **arguments: Any) -> Json:
    """Call a tool and return its answer, after checking the promises of every answer."""
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    text = only_text(result)
    assert not result.is_error, text
    structure: Json | None = result.structured_content
    assert structure is not None
    assert agree(json.loads(text), structure), (text, structure)
    assert len(text.encode()) <= MOST_BYTES, (tool, len(text))
    assert len(to_json(structure)) <= MOST_BYTES, (tool, len(text))
    assert not has_null(structure), structure
    assert not has_null(json.loads(text)), text
    assert structure["next_step"], tool
    return structure


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    """Call a tool that must fail, and return its clean error message."""
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    assert result.is_error, result.content
    text = only_text(result)
    assert_clean(text)
    return text


async def failed(client: Client, tool: str, **arguments: Any) -> Json:
    """Call a tool whose job fails; the answer, an error with a structure."""
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    assert result.is_error, result.content
    text = only_text(result)
    assert_clean(text)
    structure: Json | None = result.structured_content
    assert structure is not None
    assert agree(json.loads(text), structure), (text, structure)
    return structure


def has_null(answer: Any) -> bool:
    """Whether a JSON value holds a null anywhere."""
    if isinstance(answer, dict | list):
        return any(map(has_null, answer.values() if isinstance(answer, dict) else answer))
    return answer is None


def only_text(result: CallToolResult) -> str:
    texts = [block.text for block in result.content if isinstance(block, TextContent)]
    assert len(texts) == 1
    return texts[0]


def agree(text: Any, structure: Any) -> bool:
    """Whether both say the same; the text may omit empty values."""
    if isinstance(text, dict) and isinstance(structure, dict):
        missing = structure.keys() - text.keys()
        return not any(structure[key] for key in missing) and all(
            key in structure and agree(value, structure[key]) for key, value in text.items()
        )
    if isinstance(text, list) and isinstance(structure, list):
        return len(text) == len(structure) and all(map(agree, text, structure))
    return bool(text == structure)


def assert_clean(text: str) -> None:
    """Check an error for an agent: no traceback, no link to a library's manual."""
    assert text.strip()
    assert "Traceback" not in text
    assert 'File "' not in text
    assert "errors.pydantic.dev" not in text


def many_pairs(count: int) -> list[Json]:
    """Pairs that keep the model busy: hardly any two prompts share a prefix."""
    begin = [f"w{5 + i % 100} w{5 + i // 100}" for i in range(count)]
    return [{"positive": f"{two} w3 {LONG}", "negative": f"{two} w4 {LONG}"} for two in begin]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def serve_command(store: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "engine", "serve", "--store", str(store), *options]


def child_environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LAYERSCOPE")}
    return inherited | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def stdio_parameters(store: Path, *models: Path) -> StdioServerParameters:
    """The command of a server over stdio that may load these models."""
    command, *arguments = serve_command(store, *allow(*models))
    return StdioServerParameters(command=command, args=arguments, env=child_environment())


def allow(*models: Path) -> list[str]:
    return [word for model in models for word in ("--allow-model", str(model))]


@contextmanager
def running(
    *command: str, errors: IO[str] | int = subprocess.PIPE, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A child process with pipes, killed at the end if it still runs; more than a pipe holds needs a file."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        env=child_environment(**environment),
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            with suppress(OSError, ValueError):  # its stdin may be gone, or closed by the test
                process.communicate()


@contextmanager
def running_http(store: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and process of a running HTTP server."""
    port = free_port()
    command = serve_command(store, "--http", f"127.0.0.1:{port}", *options)
    with running(*command, errors=subprocess.PIPE, **environment) as process:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp", process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
