"""Batches hold every prompt once, longest first, within the limits."""

import logging
import weakref
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from engine.capture import batches
from engine.capture.batches import Limits, pass_bytes, sorted_batches, token_budget
from engine.models.forward import TokenBatch, read_blocks
from engine.models.shortcuts import pack_prompts
from engine.models.structure import find_blocks
from tests.conftest import Loaded, family_called
from tests.families import build


@given(st.lists(st.integers(1, 50)), st.integers(1, 200), st.one_of(st.none(), st.integers(1, 8)))
@settings(deadline=None)
def test_every_prompt_is_in_one_batch_longest_first(lengths: list[int], tokens: int, prompts: int | None) -> None:
    batches = [batch.prompts for batch in sorted_batches(lengths, Limits(tokens, prompts))]
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    for batch, after in zip(batches, [*batches, None][1:], strict=True):
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= tokens
        assert prompts is None or len(batch) <= prompts
        full = (len(batch) + 1) * lengths[batch[0]] > tokens or len(batch) == (prompts or tokens // 2)
        assert full or after is None


def test_prompts_of_equal_length_keep_their_order() -> None:
    assert [batch.prompts for batch in sorted_batches([5, 5, 9, 5], Limits(1000, 2))] == [[2, 0], [1, 3]]


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


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "phi3", "mixtral", "deepseek_v3", "opt"])
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
    assert token_budget(tiny_llama) == batches._FEWEST
