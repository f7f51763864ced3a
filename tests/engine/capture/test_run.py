"""Batches become the states of all prompts, in the order of the prompts and in memory of their own."""

import logging

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import budget
from engine.capture.passes import PassStates
from engine.capture.prepare import PreparedCapture, prepare_capture
from engine.capture.run import split_copied, stack_states
from engine.errors import CaptureError
from engine.models.structure import find_blocks
from tests.conftest import framework_hook

TEXTS = ["w5 w6 w7", "w8", "w9 w10"]  # of 3, 1 and 2 tokens


@pytest.fixture
def prepared(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> PreparedCapture:
    request = engine.CaptureRequest(TEXTS, layers=[1, 3], positions="all")
    return prepare_capture(tiny_llama, tiny_tokenizer, request)


def batch_of(prompts: list[int], kept: list[int], first: float) -> PassStates:
    """States of width 2 that count up from a number, negative at layer 3; both layers share their memory."""
    states = first + torch.arange(2.0 * sum(kept)).reshape(-1, 2)
    return PassStates(prompts, kept, dict(zip((1, 3), torch.stack([states, -states]).unbind(), strict=True)))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "batches",
    [
        [batch_of([0, 1, 2], [3, 1, 2], 0.0)],
        [batch_of([1, 2], [1, 2], 6.0), batch_of([0], [3], 0.0)],
        [batch_of([2], [2], 8.0), batch_of([0, 1], [3, 1], 0.0)],
    ],
    ids=["one batch in order", "last prompts first", "backwards"],
)
def test_states_are_in_the_order_of_the_prompts_and_share_no_memory(
    prepared: PreparedCapture, batches: list[PassStates], dtype: torch.dtype | None
) -> None:
    stacked = stack_states(batches, prepared.prompts().prompts, prepared.settings, dtype)
    expected = torch.arange(12.0).reshape(6, 2).to(dtype or torch.float32)
    assert torch.equal(stacked.layers[1], expected)
    assert torch.equal(stacked.layers[3], -expected)
    assert stacked.kept == [3, 1, 2]
    assert stacked.counted.tolist() == [False, True, True, True, False, True]  # a first token counts only if alone
    for states in stacked.layers.values():
        assert states.untyped_storage().nbytes() == states.nbytes


def test_the_parts_of_a_batch_share_no_memory() -> None:
    states = torch.arange(12.0).reshape(6, 2)
    parts = split_copied(states, [3, 1, 2])
    assert [part.shape for part in parts] == [(1, 3, 2), (1, 1, 2), (1, 2, 2)]
    assert torch.equal(torch.cat(parts, dim=1)[0], states)
    assert [part.untyped_storage().nbytes() for part in parts] == [24, 8, 16]


@pytest.mark.parametrize(
    ("positions", "by_hand"),
    [("mean", slice(1, None)), ("mean:0:", slice(None)), ("mean:1:3", slice(1, 3)), ("mean:-2:", slice(-2, None))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beginning", ["", " ".join(f"w{n}" for n in range(5, 20))], ids=["alone", "on a trunk"])
def test_a_mean_is_one_state_in_float32(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    positions: str,
    by_hand: slice,
    dtype: torch.dtype,
    beginning: str,
) -> None:
    monkeypatch.setitem(budget._RUN_WELL, "cpu", 16)
    model = tiny_llama
    nn.Module.to(model, dtype)
    prompts = [f"{beginning} w{30 + n % 5} w{40 + n} w9".strip() for n in range(20)]
    every = engine.capture_activations(model, tiny_tokenizer, prompts, positions="all")["activations"]
    means = engine.capture_activations(model, tiny_tokenizer, prompts, positions=positions)["activations"]
    for layer, states in means.items():
        assert (states.dtype, states.shape[:2]) == (torch.float32, (20, 1))
        expected = every[layer][:, by_hand].double().mean(dim=1, keepdim=True)
        torch.testing.assert_close(states.double(), expected, rtol=1e-6, atol=1e-6)


START = " ".join(f"w{n}" for n in range(5, 20))
DAMAGED = 62  # a token whose row in the embedding is damaged
TOGETHER = [f"{START} w{59 + n} w{90 + n}" for n in range(12)]  # the fourth has it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("positions", ["last", "mean", "all"])
def test_the_prompt_with_the_damaged_token_is_named(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    value: float,
    positions: str,
) -> None:
    """Not those that share its row, over all of which NaN spreads: 0 times NaN is NaN."""
    nn.Module.to(tiny_llama, dtype)
    engine.capture_activations(tiny_llama, tiny_tokenizer, TOGETHER)  # the load check
    with torch.no_grad():
        dict(tiny_llama.named_parameters())["model.embed_tokens.weight"][DAMAGED] = value
    with pytest.raises(CaptureError, match=r"prompt 3 \(.*w62 …'\) has states that are not finite at layer 0"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, TOGETHER, positions=positions)


def test_prompts_that_share_nothing_run_once_before_one_is_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    nn.Module.to(tiny_llama, torch.bfloat16)
    prompts = [f"w{10 + number} w5" for number in range(6)]
    engine.capture_activations(tiny_llama, tiny_tokenizer, prompts)  # the load check
    with torch.no_grad():
        dict(tiny_llama.named_parameters())["model.embed_tokens.weight"][13] = torch.nan
    with caplog.at_level(logging.INFO, "engine"), pytest.raises(CaptureError, match="prompt 3"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, prompts)
    assert "run again" not in caplog.text


def test_states_that_are_unusable_only_in_a_row_with_others_are_read_without_them(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    expected = engine.capture_activations(tiny_llama, tiny_tokenizer, TOGETHER, prefix_reuse=False)["activations"]

    def overflow(_module: nn.Module, _args: object, states: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(states.shape[1])[:, None] < len(TOGETHER[0].split()), states, torch.inf)

    find_blocks(tiny_llama).blocks[1].register_forward_hook(framework_hook(overflow))
    with caplog.at_level(logging.INFO, "engine"):
        found = engine.capture_activations(tiny_llama, tiny_tokenizer, TOGETHER)["activations"]
    assert "12 prompts run again unpacked: states that are not finite in their row" in caplog.text
    assert all(torch.equal(states, expected[layer]) for layer, states in found.items())
