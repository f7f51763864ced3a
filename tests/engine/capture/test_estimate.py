"""The estimated cost of a capture matches its real cost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import engine
from engine.capture import estimate as estimating
from engine.capture.budget import token_budget
from engine.capture.request import Source
from engine.errors import CaptureError, RequestError
from engine.models.structure import find_blocks
from engine.records.captures import CaptureEstimate
from tests.conftest import framework_hook

PROMPTS = ["w5 w6 w7", "w8 w11", "w9 w10"]


def estimate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Source, *, timed: bool = False, **how: Any
) -> CaptureEstimate:
    """Estimate a request with these arguments."""
    prepared = engine.prepare_capture(model, tokenizer, engine.CaptureRequest(source, **how))
    return engine.estimate_capture(prepared, timed=timed)


@pytest.mark.parametrize("positions", ["all", "last", "mean", "-1:"])
@pytest.mark.parametrize("layers", [None, [0], "0,-1"])
def test_the_estimate_matches_prompts_tokens_and_bytes(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, positions: str, layers: list[int] | str | None
) -> None:
    told = estimate(tiny_llama, tiny_tokenizer, PROMPTS, layers=layers, positions=positions, timed=True)
    captured = [
        engine.capture_activations(tiny_llama, tiny_tokenizer, prompt, layers, positions=positions)
        for prompt in PROMPTS
    ]
    assert told["prompts"] == 3
    assert told["tokens"] == sum(data["input_ids"].numel() for data in captured)
    states = [state for data in captured for state in data["activations"].values()]
    assert told["bytes"] == sum(state.numel() * state.element_size() for state in states)
    assert told["seconds"] >= 0


def test_more_of_the_same_prompts_take_longer(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [f"w{3 + i % 100} w{3 + i // 100 % 100} w{3 + i // 10_000}" for i in range(100_000)]
    many = estimate(tiny_llama, tiny_tokenizer, prompts, positions="last", timed=True)
    assert many["seconds"] > 0
    assert many["tokens"] == 300_000


def test_invalid_captures_have_no_estimate(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RequestError, match="positions '5'"):
        estimate(tiny_llama, tiny_tokenizer, PROMPTS, positions="5")
    with pytest.raises(CaptureError, match="empty"):
        estimate(tiny_llama, tiny_tokenizer, [""])


def test_offloaded_weights_time_a_full_pass(
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
    estimate(model, tokenizer, prompts, positions="last", prefix_reuse=False)
    assert passes == []  # timing is optional
    estimate(model, tokenizer, prompts, positions="last", prefix_reuse=False, timed=True)
    (shape,) = passes
    assert 0.9 * token_budget(model) < shape.numel() / tiny_llama.config.hidden_size <= token_budget(model)


def test_a_full_batch_of_the_plan_is_timed(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, where many tokens take as long as a few: also if prompts share most of their tokens."""
    monkeypatch.setattr(estimating, "input_device", lambda _model: torch.device("cuda"))
    start = " ".join(f"w{n}" for n in range(5, 45))
    prompts = [f"{start} w{50 + i % 70} w{50 + i // 70} w{3 + i % 100}" for i in range(500)]
    passes: list[int] = []
    find_blocks(tiny_llama).blocks[0].register_forward_pre_hook(
        framework_hook(lambda _module, args: passes.append(args[0].shape[0] * args[0].shape[1]))
    )
    estimate(tiny_llama, tiny_tokenizer, prompts, positions="last")
    passes.clear()
    estimate(tiny_llama, tiny_tokenizer, prompts, positions="last", timed=True)
    budget = token_budget(tiny_llama)
    assert sum(budget / 2 < tokens <= budget for tokens in passes) == 2  # of which the first warms up


def test_a_small_batch_of_the_plan_is_timed_on_a_cpu(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    start = " ".join(f"w{n}" for n in range(5, 45))
    prompts = [f"{start} w{50 + i % 70} w{50 + i // 70} w{3 + i % 100}" for i in range(500)]
    passes: list[int] = []
    find_blocks(tiny_llama).blocks[0].register_forward_pre_hook(
        framework_hook(lambda _module, args: passes.append(args[0].shape[0] * args[0].shape[1]))
    )
    estimate(tiny_llama, tiny_tokenizer, prompts, positions="last")
    passes.clear()
    estimate(tiny_llama, tiny_tokenizer, prompts, positions="last", timed=True)
    assert 100 < sum(passes) < 128 + len(start.split()) + 1
