"""Batches become the states of all prompts, in the order of the prompts and in memory of their own."""

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.passes import PassStates
from engine.capture.prepare import PreparedCapture, prepare_capture
from engine.capture.run import split_copied, stack_states

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
