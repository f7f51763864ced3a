"""What a capture will cost, against what it then does cost."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.batches import token_budget
from engine.capture.estimate import estimate_capture
from engine.errors import CaptureError, RequestError
from engine.models.structure import find_blocks
from tests.conftest import framework_hook

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


def test_where_a_pass_fetches_the_weights_one_is_timed(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_llama.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    limits: dict[int | str, int | str] = {"cpu": 0}
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tmp_path), device_map="auto", max_memory=limits)
    passes: list[torch.Size] = []
    find_blocks(model).blocks[0].register_forward_pre_hook(
        framework_hook(lambda _module, args: passes.append(args[0].shape))
    )
    prompts = [" ".join(f"w{3 + (i * 17 + j * 5) % 120}" for j in range(5 + i % 10)) for i in range(1000)]
    estimate_capture(model, tokenizer, prompts, positions="last", prefix_reuse=False)
    (shape,) = passes
    assert 0.9 * token_budget(model) < shape.numel() / tiny_llama.config.hidden_size <= token_budget(model)
