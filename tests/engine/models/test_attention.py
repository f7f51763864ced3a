"""Attention in blocks gives the same numbers as full attention, from fewer keys."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.models import attention
from engine.models.attention import PackedMask
from engine.models.shortcuts import Packed, pack_prompts

CPU = torch.device("cpu")
ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=14)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch declares no types here
    """Record the number of queries and keys of each attention kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func):
            self.sizes.append((args[0].shape[-2], args[1].shape[-2]))
        if func is torch.ops.aten.add_.Tensor and args[0].dim() == args[1].dim() == 4:  # scores and their mask
            self.sizes.append((args[0].shape[-2], args[0].shape[-1]))
        return func(*args, **(kwargs or {}))


def random_states(tokens: int, dtype: torch.dtype, heads: int = 4) -> Tensor:
    return torch.randn(1, heads, tokens, 8, generator=torch.Generator().manual_seed(tokens + heads), dtype=dtype)


@given(ROWS, st.integers(0, 20), st.integers(1, 30), st.integers(1, 9), st.integers(1, 3), st.integers(1, 2))
@settings(deadline=None)
def test_every_token_attends_to_its_own_prompt_only(
    rows: list[list[int]], start: int, least: int, most: int, count: int, groups: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_LEAST_QUERIES", least)
        patch.setattr(attention, "_MOST_BLOCKS", {"cpu": most})
        packed = pack_prompts(rows, CPU, torch.float64, start=start, groups=groups)
        require_own_prompts_only(packed, start, count)


@given(ROWS, st.integers(0, 20), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.booleans())
@settings(deadline=None)
def test_batched_blocks_attend_to_their_own_prompts_only(
    rows: list[list[int]], start: int, queries: int, batches: int, count: int, fixed_shape: bool
) -> None:
    """On a GPU, blocks are computed together."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BATCHED_QUERIES": queries, "_MOST_BATCHES": batches, "_GPU_LANES": 4}.items():
            patch.setattr(attention, name, value)
        patch.setattr(attention, "batches_blocks", lambda _device: True)
        packed = pack_prompts(rows, CPU, torch.float64, start=start, groups=2, multiple=7, fixed_shape=fixed_shape)
        with Watch() as watch:
            require_own_prompts_only(packed, start, count)
    partial = packed.batch.input_ids.shape[1] % queries > 0  # the last block is smaller
    assert len(watch.sizes) <= (1 if fixed_shape else batches) + partial


def require_own_prompts_only(packed: Packed, start: int, count: int) -> None:
    """Compare attention in equal rows with that of each prompt alone."""
    mask = packed.batch.attention_mask
    assert isinstance(mask, PackedMask)
    query = random_states(mask.shape[2], torch.float64).expand(count, -1, -1, -1)
    key = random_states(mask.shape[3], torch.float64, heads=2).repeat_interleave(2, dim=1).expand(count, -1, -1, -1)
    key = value = key + torch.arange(count)[:, None, None, None]
    mask = mask.expand(count, *mask.shape[1:])
    assert isinstance(mask, PackedMask)
    found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.5)
    for places in packed.places:
        seen = [*range(start), *(start + place for place in places)]
        scores = query[:, :, places] @ key[:, :, seen].transpose(-1, -2) * 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(start + 1)
        expected = scores.masked_fill(later, -torch.inf).softmax(dim=-1) @ value[:, :, seen]
        torch.testing.assert_close(found[:, :, places], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_query_attention(dtype: torch.dtype) -> None:
    mask = pack_prompts([[i, *range(100)] for i in range(4)], CPU, dtype).batch.attention_mask
    tokens = mask.shape[-1]
    query, key = random_states(tokens, dtype), random_states(tokens, dtype, heads=2)
    whole = scaled_dot_product_attention(query, key, key, attn_mask=mask + 0, enable_gqa=True)
    with Watch() as watch:
        found = scaled_dot_product_attention(query, key, key, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(found, whole)
    assert sum(queries * keys for queries, keys in watch.sizes) < tokens**2 / 2


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["products", "kernel"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_each_way_of_a_block_gives_full_attention(heads: tuple[int, int], scale: float | None) -> None:
    mask = pack_prompts([[i, *range(100)] for i in range(4)], CPU, torch.float32, start=5).batch.attention_mask
    queries, keys = mask.shape[-2:]
    query, key = random_states(queries, torch.float32, heads[0]), random_states(keys, torch.float32, heads[1])
    value = random_states(keys + 1, torch.float32, heads[1])[..., 1:, :3]  # narrower than the keys
    grouped = heads[0] != heads[1]
    found, whole = (
        scaled_dot_product_attention(query, key, value, attn_mask=one, scale=scale, enable_gqa=grouped)
        for one in (mask, mask + 0)
    )
    torch.testing.assert_close(found, whole)


def test_attention_under_another_mask_is_unchanged() -> None:
    """A mask that a model derives from this one is an ordinary tensor."""
    states = random_states(200, torch.float32)
    mask = pack_prompts([[i, *range(99)] for i in range(2)], CPU, torch.float32).batch.attention_mask
    with Watch() as watch:
        scaled_dot_product_attention(states, states, states, attn_mask=mask[:, :, :, :200])
        scaled_dot_product_attention(states, states, states, attn_mask=torch.zeros(1, 1, 200, 200))
        scaled_dot_product_attention(states, states, states, is_causal=True)
    assert watch.sizes == [(200, 200)] * 3


def test_a_copy_of_the_mask_is_such_a_mask() -> None:
    """With several GPUs, accelerate makes one for each block on another GPU."""
    mask = pack_prompts([[i, *range(100)] for i in range(4)], CPU, torch.float32).batch.attention_mask
    states = random_states(mask.shape[-1], torch.float32)
    whole = scaled_dot_product_attention(states, states, states, attn_mask=mask + 0)
    with Watch() as watch:
        for _block in range(2):
            copy = mask.to("cpu", copy=True)
            found = scaled_dot_product_attention(states, states, states, attn_mask=copy)
            torch.testing.assert_close(found, whole)
        assert max(queries for queries, _keys in watch.sizes) < mask.shape[-1]
        other, exact = mask.to(torch.float64), states.double()
        scaled_dot_product_attention(exact, exact, exact, attn_mask=other)
    assert watch.sizes[-1] == tuple(mask.shape[-2:])


def test_a_copy_for_another_device_describes_the_same_mask() -> None:
    mask = pack_prompts([[5, 6, 7], [5, 8]], CPU, torch.float32, start=2).batch.attention_mask
    copy = mask.to("meta")
    assert (type(copy), copy.device.type, copy.shape, copy.dtype) == (PackedMask, "meta", mask.shape, mask.dtype)
    assert mask.to("meta") is copy
    assert torch.equal(copy.to("cpu") + 0, mask + 0)


@pytest.mark.parametrize("copy", ["itself", "rows", "device"])
def test_a_mask_knows_whether_it_was_needed_as_a_whole(copy: str) -> None:
    states = random_states(50, torch.float32)
    mask = pack_prompts([[*range(50)]], CPU, torch.float32).batch.attention_mask
    assert isinstance(mask, PackedMask)
    scaled_dot_product_attention(states, states, states, attn_mask=mask)
    used = {"itself": mask, "rows": mask.expand(2, *mask.shape[1:]), "device": mask.to("meta")}[copy]
    assert not mask.was_dense
    assert used[:, :, :, :3].shape[-1] == 3
    assert mask.was_dense


def test_a_capture_computes_few_masked_scores(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [
        " ".join(f"w{3 + (side * 31 + i // 2 + j) % 120}" for j in range(40)) for i in range(24) for side in (0, 1)
    ]
    engine.capture_activations(tiny_llama, tiny_tokenizer, "w3")  # runs the load check
    monkeypatch.setattr(PackedMask, "_ordinary", lambda _mask: pytest.fail("the full mask was built"))
    with Watch() as watch:
        engine.capture_activations(tiny_llama, tiny_tokenizer, prompts, positions="last")
    tokens = 24 * 40
    assert sum(queries for queries, _keys in watch.sizes) == 4 * tokens
    assert sum(queries * keys for queries, keys in watch.sizes) < 4 * tokens * 512 / 3
