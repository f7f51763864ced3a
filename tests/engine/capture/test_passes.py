"""When memory runs out, the batch is retried with half as many tokens, and earlier states are kept."""

import logging
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import budget, run
from engine.errors import CaptureError
from engine.models.structure import find_blocks
from tests.conftest import framework_hook

ALIKE = [f"w5 w6 w7 w8 w9 w10 w11 w12 w{20 + i} w{40 + i % 3}" for i in range(24)]
UNLIKE = [" ".join(f"w{3 + (i * 17 + j * 5) % 120}" for j in range(4 + i % 7)) for i in range(24)]


def limit_memory(model: PreTrainedModel, tokens: int, error: RuntimeError) -> list[int]:
    """Make the third block fail on larger batches; return the list of sizes that went through it."""
    went: list[int] = []

    def hook(_module: nn.Module, args: Any) -> None:
        size = args[0].shape[0] * args[0].shape[1]
        if size > tokens:
            raise error
        went.append(size)

    find_blocks(model).blocks[2].register_forward_pre_hook(framework_hook(hook))
    return went


@pytest.mark.parametrize("prompts", [ALIKE, UNLIKE], ids=["packed", "padded"])
@pytest.mark.parametrize("use_hooks", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "cpu"],
)
def test_batches_are_halved_until_they_fit(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    prompts: list[str],
    use_hooks: bool,
    error: RuntimeError,
) -> None:
    expected = engine.capture_activations(tiny_llama, tiny_tokenizer, prompts, use_hooks=use_hooks, batch_size=1)
    went = limit_memory(tiny_llama, 30, error)
    told: list[int] = []
    with caplog.at_level(logging.INFO, "engine"):
        data = engine.capture_activations(
            tiny_llama,
            tiny_tokenizer,
            prompts,
            use_hooks=use_hooks,
            prefix_reuse=prompts is ALIKE,
            progress=lambda done, _total: told.append(done),
        )
    for layer, states in expected["activations"].items():
        torch.testing.assert_close(data["activations"][layer], states, rtol=1e-5, atol=1e-5)
    assert "out of memory in a batch of" in caplog.text
    assert max(went) <= 30
    assert len(went) > 1
    assert (told[0], told[-1]) == (0, 24)
    assert told == sorted(told)


def test_a_size_that_failed_is_not_tried_again(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    engine.capture_activations(tiny_llama, tiny_tokenizer, "w3")
    limit_memory(tiny_llama, 30, torch.OutOfMemoryError("CUDA out of memory"))
    with caplog.at_level(logging.INFO, "engine"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, [f"w{3 + i} w4 w5 w6" for i in range(64)])
    assert caplog.text.count("out of memory in a batch of") <= 4  # 256, 128, 64, 32


@pytest.mark.parametrize("prompts", [["w3 w4 w5"], ["w3 w4 w5", "w6 w7"], ALIKE])
def test_one_prompt_that_does_not_fit_is_a_readable_error(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> None:
    engine.capture_activations(tiny_llama, tiny_tokenizer, "w3")
    limit_memory(tiny_llama, 1, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(CaptureError, match=r"memory does not suffice for a single prompt of \d+ tokens"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, prompts)


@pytest.mark.parametrize("prompts", [ALIKE, UNLIKE], ids=["packed", "padded"])
def test_passes_run_ahead_of_the_processing_of_their_states(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[str],
) -> None:
    """As many batches run ahead as the model has GPUs: here it has none, but three are reported."""
    monkeypatch.setitem(budget._RUN_WELL, "cpu", 16)
    expected = engine.capture_activations(tiny_llama, tiny_tokenizer, prompts, prefix_reuse=prompts is ALIKE)[
        "activations"
    ]
    monkeypatch.setattr(run, "gpu_count", lambda _model: 3)
    went, told = limit_memory(tiny_llama, 1000, RuntimeError()), list[tuple[int, int]]()
    captured = engine.capture_activations(
        tiny_llama,
        tiny_tokenizer,
        prompts,
        prefix_reuse=prompts is ALIKE,
        progress=lambda done, _total: told.append((done, len(went))),
    )["activations"]
    assert all(torch.equal(states, expected[layer]) for layer, states in captured.items())
    trunks = len(went) - (len(told) - 1)
    done, passes = told[1]
    assert 0 < done < 24
    assert passes - trunks == 4
    assert told[-1] == (24, len(went))


def test_other_errors_are_not_mistaken_for_out_of_memory(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.capture_activations(tiny_llama, tiny_tokenizer, "w3")
    limit_memory(tiny_llama, 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, ["w3 w4", "w5 w6"])
