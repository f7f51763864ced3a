"""Model folders that reach outside, ask for code or describe absurd sizes are refused before they are read."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import ModelError
from engine.models.files import require_own_files, require_sane_config, require_sane_gguf
from engine.models.registry import cached_snapshot
from tests.engine.models.gguf_files import write_tiny_gguf

Break = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny llama, and next to its folder a file of somebody else."""
    folder = tmp_path / "models" / "mine"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    shutil.copy(folder / "model.safetensors", tmp_path / "other.safetensors")
    return folder


def linked(name: str, where: str) -> Break:
    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(where)

    return edit


def indexed(name: str, kind: str = "model.safetensors") -> Break:
    def edit(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        text = json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": name}})
        (folder / f"{kind}.index.json").write_text(text)

    return edit


def configured(**fields: object) -> Break:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "tokenizer_config.json.new")


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1, 2]}')


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (linked("tokenizer.json", "/etc/hostname"), "tokenizer.json links to .*hostname, outside the model's folder"),
        (linked("model.safetensors", "../../other.safetensors"), "model.safetensors links to .*other.safetensors"),
        (linked("merges.txt", "merges.txt"), "not a regular file"),
        (linked("chat_template.jinja", "nowhere"), "not a regular file: it links to nothing"),
        (linked("generation_config.json", "/dev/zero"), "links to /dev/zero"),
        (pipe, "not a regular file"),
        (indexed("../../other.safetensors"), "names the weights '../../other.safetensors', outside"),
        (indexed("/etc/other.safetensors"), "names the weights '/etc/other.safetensors', outside"),
        (indexed("..\\other.safetensors"), "outside the model's folder"),
        (indexed("C:/other.safetensors"), "outside the model's folder"),
        (indexed("../../other.bin", "pytorch_model.bin"), "pytorch_model.bin.index.json names the weights"),
        (broken_index, "is not an index of weights: AttributeError"),
        (configured(attn_implementation="somebody/kernel"), "asks for the kernel 'somebody/kernel'"),
        (configured(_attn_implementation="paged|somebody/kernel@v1"), "asks for the kernel"),
        (configured(attn_implementation={"text_config": "somebody/kernel"}), "asks for the kernel"),
        (configured(text_config={"experts_implementation": "somebody/kernel:it"}), "asks for the kernel"),
        (configured(num_hidden_layers=10**9), "num_hidden_layers is 1000000000. Expected: at most 1000"),
        (configured(model_type="qwen2", num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
        (configured(model_type="mixtral", num_local_experts=10**9), "num_local_experts is 1000000000"),
        (configured(model_type="mixtral", num_local_experts=9999, num_hidden_layers=999), "999 blocks of 9999 experts"),
        (configured(hidden_size=2**40, intermediate_size=2**40), "."),
        (configured(vocab_size=2**62), "."),
        (configured(model_type="unheard", auto_map={"AutoConfig": "evil.Config"}), "only if you trust"),
    ],
)
def test_a_folder_that_reaches_outside_or_too_far_is_refused(folder: Path, break_it: Break, said: str) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    break_it(folder)
    with pytest.raises(ModelError, match=said):
        engine.load_model_and_tokenizer(folder, "cpu")
    assert not (folder / "ran").exists()


def test_an_index_whose_weights_are_links_out_of_the_folder_is_refused(folder: Path) -> None:
    indexed("sub/part.safetensors")(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "part.safetensors").symlink_to(folder.parents[1] / "other.safetensors")
    with pytest.raises(ModelError, match="link out of the model's folder"):
        engine.load_model_and_tokenizer(folder, "cpu")


def test_a_trusted_model_may_name_a_kernel() -> None:
    config = {"attn_implementation": "somebody/kernel", "num_hidden_layers": 4, "tie": True}
    require_sane_config(config, "it", trusted=True)


def test_a_snapshot_of_the_hub_links_to_its_own_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    own, other = tmp_path / "hub" / "models--a--b", tmp_path / "hub" / "models--c--d"
    snapshot = own / "snapshots" / "0123"
    for folder in (snapshot, own / "blobs", other / "blobs", tmp_path / "old"):
        folder.mkdir(parents=True)
    for blob in (own / "blobs" / "abc", other / "blobs" / "def"):
        blob.write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    require_own_files(snapshot)
    (tmp_path / "old" / "config.json").symlink_to(own / "blobs" / "abc")  # as older hub clients download to a folder
    require_own_files(tmp_path / "old")
    (snapshot / "tokenizer.json").symlink_to(other / "blobs" / "def")
    with pytest.raises(ModelError, match="outside the model's folder"):
        require_own_files(snapshot)


def test_a_damaged_index_in_the_cache_is_an_incomplete_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the list of models still shows the others."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    assert cached_snapshot("a/b", None) is None


def test_adapters_that_name_each_other_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    for name, base in (("one", "two"), ("two", "one"), ("own", "own")):
        (tmp_path / name).mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / base)}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    for name in ("one", "own"):
        with pytest.raises(ModelError, match="is itself an adapter"):
            engine.load_model_and_tokenizer(tmp_path / name)


class _Code:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_code_in_weights_is_not_run(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": _Code(folder / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        engine.load_model_and_tokenizer(folder, "cpu")
    assert not (folder / "ran").exists()


def test_code_in_the_weights_of_an_adapter_is_not_run(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "target_modules": ["q_proj"], "r": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"weight": _Code(adapter / "ran")}, adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        engine.load_model_and_tokenizer(adapter, "cpu")
    assert not (adapter / "ran").exists()


def number(name: str, value: int, form: str = "<I", kind: int = 4) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + struct.pack(form, value)


@pytest.mark.parametrize("entry", ["llama.block_count", "llama.expert_count"])
def test_a_gguf_file_that_describes_an_absurd_model_is_refused(tmp_path: Path, entry: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    count = struct.unpack_from("<Q", whole, 16)[0]
    path.write_bytes(whole[:16] + struct.pack("<Q", count + 1) + whole[24:])
    start = whole.index(b"general.architecture") - 8
    extra = number(entry, 10**9)
    path.write_bytes(path.read_bytes()[:start] + extra + path.read_bytes()[start:])
    with pytest.raises(ModelError, match=f"{entry} is 1000000000"):
        engine.load_model_and_tokenizer(path, "cpu")


def test_a_gguf_file_whose_numbers_come_last_is_read_to_its_end(tmp_path: Path) -> None:
    """Its token lists, all kinds of numbers and texts are skipped."""
    path = tmp_path / "numbers.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokens", ["a", "bc", ""])
    writer.add_array("scores", [1.0, 2.0])
    writer.add_string("text", "long" * 10)
    writer.add_bool("flag", True)
    writer.add_float64("real", 0.5)
    writer.add_uint64("llama.block_count", 10**12)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="block_count is 1000000000000"):
        require_sane_gguf(path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="folder of its own"):
        require_sane_gguf(path)


HEAD = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    "content",
    [
        HEAD,
        HEAD + struct.pack("<QQ", 2**63, 2**63),
        HEAD + struct.pack("<QQ", 2**63, 0),
        HEAD + struct.pack("<QQ", 1, 1) + struct.pack("<Q", 2**64 - 1),
        HEAD + struct.pack("<QQ", 1, 1) + number("a", 2**64 - 1, "<Q", 8),
        HEAD + struct.pack("<QQ", 1, 1) + number("a", 0, "<I", 9) + struct.pack("<Q", 2**60),
        HEAD + struct.pack("<QQ", 1, 1) + number("a", 8, "<I", 9) + struct.pack("<Q", 2**60),
        HEAD + struct.pack("<QQ", 1, 1) + number("a", 9, "<I", 9) + struct.pack("<Q", 2**60),
        HEAD + struct.pack("<QQ", 1, 1) + number("a", 0, "<I", 99),
    ],
)
def test_a_gguf_file_with_absurd_counts_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(content + bytes(64))
    with pytest.raises(ModelError):
        engine.load_model_and_tokenizer(path, "cpu")
