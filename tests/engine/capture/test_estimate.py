"""What a capture will cost, against what it then does cost."""

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.estimate import estimate_capture
from engine.errors import CaptureError, RequestError

PROMPTS = ["w5 w6 w7", "w8 w11", "w9 w10"]


@pytest.mark.parametrize("positions", ["all", "last", "mean", "-1:"])
@pytest.mark.parametrize("layers", [None, [0], "0,-1"])
def test_prompts_tokens_and_bytes_are_those_of_the_capture(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, positions: str, layers: list[int] | str | None
) -> None:
    estimate = estimate_capture(tiny_llama, tiny_tokenizer, PROMPTS, layers, positions=positions)
    captured = [
        engine.capture_activations(tiny_llama, tiny_tokenizer, prompt, layers, positions=positions)
        for prompt in PROMPTS
    ]
    assert estimate["prompts"] == 3
    assert estimate["tokens"] == sum(data["input_ids"].numel() for data in captured)
    states = [state for data in captured for state in data["activations"].values()]
    assert estimate["bytes"] == sum(state.numel() * state.element_size() for state in states)
    assert estimate["seconds"] >= 0


def test_more_of_the_same_prompts_take_longer(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [f"w{3 + i % 100} w{3 + i // 100 % 100} w{3 + i // 10_000}" for i in range(100_000)]
    many = estimate_capture(tiny_llama, tiny_tokenizer, prompts, positions="last")
    assert many["seconds"] > 0
    assert many["tokens"] == 300_000


def test_what_cannot_be_captured_has_no_estimate(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RequestError, match="positions '5'"):
        estimate_capture(tiny_llama, tiny_tokenizer, PROMPTS, positions="5")
    with pytest.raises(CaptureError, match="empty"):
        estimate_capture(tiny_llama, tiny_tokenizer, [""])
