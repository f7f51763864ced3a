"""The token budget follows from the device, the size of the model and free memory."""

import logging
import math
import weakref
from typing import Any

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from engine.capture import budget
from engine.capture.budget import Speeds, busy_tokens, pass_bytes, pays_to_compile, token_budget
from engine.models.forward import TokenBatch, read_blocks
from engine.models.shortcuts import pack_prompts
from engine.models.structure import find_blocks
from tests.conftest import Loaded, family_called
from tests.families import build

TOKENS = 96


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch declares no types here
    """Tracks the peak number of bytes of live tensors, without weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        weights = [*model.parameters(), *model.buffers()]
        self.most, self._now, self._known = 0, 0, {weight.untyped_storage().data_ptr() for weight in weights}

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._known or size == 0:
            return
        self._known.add(address)
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._gone, address, size)

    def _gone(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._now -= size


def measured(model: PreTrainedModel) -> int:
    """The measured peak memory of a packed forward pass, in bytes."""
    blocks = find_blocks(model)
    rows = [[3 + (7 * i + j) % 120 for j in range(TOKENS // 4)] for i in range(4)]
    batch: TokenBatch = pack_prompts(rows, torch.device("cpu"), model.dtype).batch
    with _Live(model) as live:
        read_blocks(model, blocks, batch, [len(blocks.blocks) - 1], lambda _states: None)
    most: int = live.most
    return most


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "phi3", "mixtral", "deepseek_v3", "opt", "doge"])
def test_a_pass_needs_about_the_estimated_memory(name: str) -> None:
    model = build(family_called(name))
    share = measured(model) / pass_bytes(model, TOKENS)
    assert 0.35 < share < 1


def test_a_pass_of_the_default_model(smollm2: Loaded) -> None:
    share = measured(smollm2.model) / pass_bytes(smollm2.model, TOKENS)
    assert 0.35 < share < 1


def test_eager_attention_has_scores_of_all_heads(tiny_llama: PreTrainedModel) -> None:
    before = pass_bytes(tiny_llama, TOKENS)
    tiny_llama.set_attn_implementation("eager")
    share = measured(tiny_llama) / pass_bytes(tiny_llama, TOKENS)
    assert 0.35 < share < 1
    assert pass_bytes(tiny_llama, TOKENS) > 1.5 * before


def test_low_memory_reduces_the_token_budget(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert token_budget(tiny_llama) == 512
    memory = psutil.virtual_memory()
    free = 5 * pass_bytes(tiny_llama, 128)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=free))
    with caplog.at_level(logging.INFO, "engine"):
        assert token_budget(tiny_llama) == 128
    assert "low memory on cpu: token budget reduced from 512 to 128" in caplog.text
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=0))
    assert token_budget(tiny_llama) == budget._FEWEST


def test_small_models_and_fast_gpus_need_many_tokens() -> None:
    h100, slow = Speeds(800e12, 3e12), Speeds(80e12, 0.6e12)
    shapes = {"135M": (3_540_096, 576), "1.5B": (46_797_824, 1536), "8B": (218_112_000, 4096)}  # weights, width
    fast = {name: busy_tokens(h100.block_seconds(*shape, 2)) for name, shape in shapes.items()}
    assert fast == {"135M": 32_768, "1.5B": 8192, "8B": 4096}
    for name, shape in shapes.items():
        assert busy_tokens(slow.block_seconds(*shape, 2)) <= fast[name]
        assert busy_tokens(h100.block_seconds(*shape, 4)) <= fast[name]
    assert (busy_tokens(1e-12), busy_tokens(math.inf)) == (65_536, 4096)


@pytest.fixture
def _on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the model were on a GPU of known speed with much free memory."""
    monkeypatch.setattr(budget, "input_device", lambda _model: torch.device("cuda"))
    monkeypatch.setattr(budget, "free_bytes", lambda _device: 80 * 10**9)
    monkeypatch.setattr(budget, "_measured", lambda _device, _dtype: Speeds(800e12, 3e12))


@pytest.mark.usefixtures("_on_cuda")
def test_the_budget_on_a_gpu_follows_from_its_speed_and_the_attention(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert token_budget(tiny_llama) == 65_536
    tiny_llama.set_attn_implementation("eager")
    assert token_budget(tiny_llama) == 4096
    tiny_llama.set_attn_implementation("sdpa")
    monkeypatch.setattr(budget, "free_bytes", lambda _device: 5 * pass_bytes(tiny_llama, 8192))
    assert token_budget(tiny_llama) == 8192


@pytest.mark.usefixtures("_on_cuda")
def test_a_family_that_needs_the_whole_mask_gets_a_small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    doge = build(family_called("doge"))
    assert token_budget(doge) == 4096
    assert pass_bytes(doge, 4096) > 4096**2 * 4
    monkeypatch.setattr(budget, "free_bytes", lambda _device: 5 * pass_bytes(doge, 2048))
    assert token_budget(doge) == 2048


@pytest.mark.usefixtures("_on_cuda")
def test_a_gpu_without_memory_to_measure_it_gets_a_small_budget(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_device: object) -> Speeds:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(budget, "_measured", full)
    assert token_budget(tiny_llama) == 4096
    assert not pays_to_compile(tiny_llama, 10**15)


@pytest.mark.usefixtures("_on_cuda")
def test_compiling_pays_in_long_captures(tiny_llama: PreTrainedModel) -> None:
    block = Speeds(800e12, 3e12).block_seconds(
        sum(weight.numel() for weight in find_blocks(tiny_llama).blocks[0].parameters()), 32, 4
    )
    ten_minutes = round(600 / (4 * block))
    assert not pays_to_compile(tiny_llama, ten_minutes * 9 // 10)
    assert pays_to_compile(tiny_llama, ten_minutes * 11 // 10)


@pytest.mark.usefixtures("_on_cuda")
def test_experts_that_a_token_does_not_use_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = build(family_called("mixtral"))
    every = sum(weight.numel() for weight in find_blocks(mixture).blocks[-1].parameters())
    counted: list[int] = []

    def block_seconds(_speeds: Speeds, weights: int, _hidden: int, _itemsize: int) -> float:
        counted.append(weights)
        return 1e-9

    monkeypatch.setattr(Speeds, "block_seconds", block_seconds)
    token_budget(mixture)
    assert every / 4 < counted[0] < every


def test_compiling_does_not_pay_on_a_cpu(tiny_llama: PreTrainedModel) -> None:
    assert not pays_to_compile(tiny_llama, 10**15)
