"""Damaged and hostile safetensors files: an error that names the file, never wrong numbers."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import StoreError
from engine.records.captures import ContrastData
from engine.store.directions_header import path_of, read_header
from engine.store.names import locate
from engine.store.shards import Shard
from engine.store.tensor_files import encode_tensors

EVERYTHING = ("kept", "prompts", "factors", "tokens", "input_ids", "sums")


@pytest.fixture
def shard(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Shard:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"w5 w{10 + i}" for i in range(8)))
    engine.capture_prompt_file(tiny_llama, tiny_tokenizer, path, "mine", store=tmp_path / "store")
    return engine.open_shards("mine", store=tmp_path / "store")[0]


@pytest.mark.parametrize("states", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_an_encoded_file_is_that_of_safetensors_byte_for_byte(states: torch.dtype) -> None:
    tensors = {
        "layer.10": torch.randn(3, 5).to(states),
        "layer.9": torch.randn(5, 3).to(states).T,  # not contiguous
        "sums": torch.randn(2, 5, dtype=torch.float64),
        "kept": torch.tensor([1, 2]),
        "input_ids": torch.tensor([7, 8, 9], dtype=torch.int32),
        "texts": torch.tensor([200, 201, 202], dtype=torch.uint8),
        "factors": torch.zeros(0, dtype=torch.uint8),
        "naïve": torch.zeros(0, 4),
    }
    metadata = {"sha256": '{"ä": "\\u0001"}\n'}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert b"".join(encode_tensors(tensors, metadata)) == save(contiguous, metadata=metadata)


def test_encoded_states_are_not_copied() -> None:
    states = torch.zeros(4, 8)
    parts = encode_tensors({"layer.0": states}, {})
    states.fill_(1.0)
    assert load(b"".join(parts))["layer.0"].eq(1.0).all()


def place_of(path: Path, name: str) -> int:
    """Offset of the first byte of a tensor in a file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return 8 + length + int(json.loads(content[8 : 8 + length])[name]["data_offsets"][0])


def flip(path: Path, place: int, bit: int = 6) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_is_noticed_where_it_is_and_nowhere_else(shard: Shard) -> None:
    flip(shard.path, place_of(shard.path, "layer.1") + 3)
    assert shard.states(0).shape == (8, 32)
    with pytest.raises(
        StoreError, match=r"000000000000.safetensors is damaged: 'layer.1' does not match its checksum.*delete"
    ):
        shard.states(1)
    assert len(shard.prompts) == 8


def test_a_bit_that_flips_after_a_tensor_was_read_is_noticed_too(shard: Shard) -> None:
    shard.states(1)
    flip(shard.path, place_of(shard.path, "layer.1") + 3)
    with pytest.raises(StoreError, match="does not match its checksum"):
        shard.states(1)


def test_the_checksum_is_the_sha256_of_the_bytes(shard: Shard) -> None:
    import hashlib

    with safe_open(shard.path, framework="pt") as file:
        sums = json.loads(file.metadata()["sha256"])
        assert sums.keys() == set(file.keys())
    assert sums["layer.2"] == hashlib.sha256(shard.states(2).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("step", [61, pytest.param(3, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_directions_file_is_noticed(
    contrast_data: ContrastData, tmp_path: Path, step: int
) -> None:
    directions = engine.extract_directions(contrast_data)
    path = engine.save_directions(directions, "mine", store=tmp_path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    padding = range(8 + len(content[8 : 8 + length].rstrip()), 8 + length)
    for place in range(0, len(content), step):
        if place in padding:
            continue
        path.write_bytes(content)
        flip(path, place, place % 7)
        with pytest.raises(StoreError, match=r"mine.directions.safetensors (is damaged|was written by another)"):
            engine.load_directions("mine", store=tmp_path)


def rewritten(shard: Shard, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Replace a shard by one with other tensors, as a version without checksums wrote them."""
    tensors = load(shard.path.read_bytes())
    change(tensors)
    shard.path.write_bytes(save(tensors))


def test_a_shard_from_before_checksums_is_read(shard: Shard) -> None:
    before = shard.states(1).clone(), shard.prompts
    rewritten(shard, lambda _tensors: None)
    assert torch.equal(shard.states(1), before[0])
    assert shard.prompts == before[1]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda held: held.clear(), id="empty"),
        pytest.param(lambda held: held.update(kept=held["kept"].float()), id="type"),
        pytest.param(lambda held: held.update({"layer.1": held["layer.1"].long()}), id="whole numbers"),
        pytest.param(lambda held: held.update({"layer.1": held["layer.1"][:3]}), id="short"),
        pytest.param(lambda held: held.update({"layer.1": held["layer.1"][0]}), id="flat"),
        pytest.param(lambda held: held.update(lengths=held["lengths"] + 1), id="lengths"),
        pytest.param(lambda held: held.update(vocabulary=held["vocabulary"] + 90), id="vocabulary"),
        pytest.param(lambda held: held.update(texts=held["texts"] + 128), id="texts"),
        pytest.param(lambda held: held.update(factors=held["texts"] + 1), id="factors"),
        pytest.param(lambda held: held.update(sums=held["sums"][:1]), id="sums"),
    ],
)
def test_tensors_that_are_no_shard_are_damage(shard: Shard, change: Callable[[dict[str, Tensor]], Any]) -> None:
    rewritten(shard, change)
    with pytest.raises(StoreError, match=rf"{re.escape(str(shard.path))} is damaged: .*delete"):
        [shard.states(1), *(getattr(shard, name) for name in EVERYTHING)]


def header(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (2**62).to_bytes(8, "little") + b"{}",
        header(b"{"),
        header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        header(b'{"kept":{"dtype":"I64","shape":[1],"data_offsets":[0,800]}}'),
        header(b'{"__metadata__":{"sha256":"[]"}}'),
        header(b'{"__metadata__":{"sha256":"{}"},"kept":{"dtype":"I64","shape":[0],"data_offsets":[0,0]}}'),
        header(b" " * (9 * 2**20)),
    ],
    ids=["nothing", "short", "long", "cut", "deep", "outside", "list", "missing", "huge"],
)
def test_a_damaged_header_is_an_error_that_names_the_file(shard: Shard, content: bytes) -> None:
    shard.path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{re.escape(str(shard.path))} is damaged"):
        assert shard.kept
    directions = path_of(locate("mine", shard.path.parent))
    directions.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{re.escape(str(directions))} is damaged"):
        read_header(directions)


def test_links_out_of_the_store_and_pipes_are_not_read(shard: Shard, tmp_path: Path) -> None:
    secret = shard.path.rename(tmp_path / "secret.safetensors")
    shard.path.symlink_to(secret)
    with pytest.raises(StoreError, match="link out of the store"):
        shard.states(0)
    shard.path.unlink()
    os.mkfifo(shard.path)
    with pytest.raises(StoreError, match="is a named pipe"):
        shard.states(0)
    shard.path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        shard.states(0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_directions_that_are_not_finite_are_damage(contrast_data: ContrastData, tmp_path: Path, value: float) -> None:
    path = engine.save_directions(engine.extract_directions(contrast_data), "mine", store=tmp_path)
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["layerscope"]
    vectors = load(path.read_bytes())
    vectors["1"][0] = value
    path.write_bytes(save(vectors, metadata={"layerscope": text}))
    with pytest.raises(StoreError, match="its vectors are not finite numbers"):
        engine.load_directions("mine", store=tmp_path)
