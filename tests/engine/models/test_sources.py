"""The hub's answers for a model that is not on this machine, and GGUF conversion.

The hub is a small local server. The client is a fresh process, because it reads the hub's address only once.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

import engine
from engine.errors import ModelError
from engine.models.loading import load_model_and_tokenizer
from engine.models.registry import find_source
from engine.models.sources import conversion_folder, convert
from engine.records.models import ModelSource
from tests.conftest import Loaded
from tests.engine.models.gguf_files import write_tiny_gguf

ANSWERS = {
    "there": (200, ""),
    "gone": (404, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "moved": (404, "RevisionNotFound"),
}

ASK = """
import sys
from engine.errors import ModelError
from engine.models.sources import require_on_hub
from engine.records.models import ModelSource
for name in sys.argv[1:]:
    try:
        require_on_hub(ModelSource(name, f"owner/{name}", "hub", f"owner/{name}", "v1", local=False))
    except ModelError as error:
        print(error)
    else:
        print("available")
"""


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.split("/")[4]
        status, error = ANSWERS[name]
        body = b'{"id": "owner/there"}' if status == 200 else b"{}"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub that answers with `ANSWERS`."""
    with HTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def environment(endpoint: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return kept | {"HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"} | more


def ask(names: Iterable[str], environment: dict[str, str]) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", ASK, *names], env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


def test_hub_errors_are_explained(hub: str) -> None:
    there, gone, gated, moved = ask(ANSWERS, environment(hub))
    assert there == "available"
    assert gone.startswith("the hub has no model 'owner/gone' that you can access.")
    assert gated.startswith("the hub has no model 'owner/gated' that you can access.")
    assert "license you accepted while logged in" in gated
    assert moved.startswith("owner/moved has no revision 'v1'.")


NOBODY = "http://127.0.0.1:9"


@pytest.mark.slow
def test_an_unreachable_hub_is_reported_with_a_next_step(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "engine", "capture", "--model", "owner/name", "--prompt", "Hello"],
        cwd=tmp_path,
        env=environment(NOBODY),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (3, "")
    assert "owner/name is not on this machine and the hub is unreachable" in result.stderr
    assert "or a model or folder that is already here" in result.stderr
    assert "Traceback" not in result.stderr


def test_offline_mode_is_distinguished_from_a_broken_connection() -> None:
    (said,) = ask(["name"], environment(NOBODY, HF_HUB_OFFLINE="1"))
    assert "owner/name is not on this machine" in said
    assert "Offline" in said


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.slow)])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    """A tiny GGUF file with its own cache folder; in the slow tier also the real one, in the user's cache."""
    if request.param == "smollm2":
        yield find_source("smollm2")
        return
    folder = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield find_source(str(write_tiny_gguf(folder / "tiny.gguf")))


@pytest.fixture(scope="module")
def direct(source: ModelSource) -> Loaded:
    """The model, read from the GGUF file by transformers."""
    options = {"gguf_file": source.gguf_file}
    model = AutoModelForCausalLM.from_pretrained(
        source.location, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
    )
    return Loaded(model, AutoTokenizer.from_pretrained(source.location, **options))


@pytest.fixture(scope="module")
def converted(source: ModelSource) -> Loaded:
    """The converted model, loaded as a user does."""
    return load(source)


def load(source: ModelSource) -> Loaded:
    given = source.alias if source.kind == "package" else f"{source.location}/{source.gguf_file}"
    return Loaded(*load_model_and_tokenizer(given)[:2])


def test_the_weights_and_states_are_those_of_the_file(converted: Loaded, direct: Loaded) -> None:
    model, tokenizer = direct
    weights = converted.model.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weight.cpu(), weights[name].cpu()) for name, weight in model.state_dict().items())
    prompt = "Tell me a story about a lighthouse."
    model.to(converted.model.device)  # type: ignore[arg-type]  # transformers wraps it and loses its type
    expected = engine.capture_activations(model, tokenizer, prompt)
    captured = engine.capture_activations(*converted, prompt)
    assert captured["tokens"] == expected["tokens"]
    assert captured["activations"].keys() == expected["activations"].keys()
    assert all(torch.equal(states, captured["activations"][i]) for i, states in expected["activations"].items())


def test_the_tokenizer_is_that_of_the_file(converted: Loaded, direct: Loaded) -> None:
    _, tokenizer = direct
    text = "<|im_start|>user\nHéllo, wörld! 你好 🙂 1234<|im_end|>\n"
    assert converted.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert converted.tokenizer.chat_template == tokenizer.chat_template
    assert converted.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    assert len(converted.tokenizer) == len(tokenizer)


@pytest.mark.usefixtures("converted")
def test_a_second_load_reuses_the_conversion(source: ModelSource) -> None:
    folder = conversion_folder(source)

    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    before = written()
    assert "model.safetensors" in before
    assert convert(source) == folder
    load(source)
    assert written() == before


def test_other_bytes_under_the_same_name_are_another_conversion(tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(b"GGUF one")
    first = conversion_folder(find_source(str(tmp_path / "mine.gguf")))
    (tmp_path / "mine.gguf").write_bytes(b"GGUF two")
    second = conversion_folder(find_source(str(tmp_path / "mine.gguf")))
    assert first != second
    assert first.parent == second.parent


@pytest.mark.usefixtures("converted")
def test_a_kept_conversion_that_was_damaged_is_named(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = conversion_folder(source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    damaged = conversion_folder(source)
    shutil.copytree(kept, damaged, ignore=shutil.ignore_patterns("*.safetensors"))
    (damaged / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=str(damaged)):
        load(source)


def test_the_same_bytes_under_another_name_are_the_same_conversion(tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_bytes(b"GGUF one")
    one, two = (conversion_folder(find_source(str(tmp_path / name))) for name in ("one.gguf", "two.gguf"))
    assert one == two
