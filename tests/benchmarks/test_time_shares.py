"""The shares of a capture's time are those of the functions it calls, and sum to one."""

import time

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from benchmarks.time_shares import OUTSIDE, time_shares


def test_the_shares_of_a_capture(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [f"w3 w4 w5 w{6 + i}" for i in range(9)]
    found = time_shares(lambda: engine.capture_activations(tiny_llama, tiny_tokenizer, prompts, positions="last"))
    assert list(found) == ["matrix products", "attention", "other operations", "Python, tokenizer and checks"]
    assert sum(found.values()) == pytest.approx(1)
    assert all(share > 0 for share in found.values())


def test_time_outside_of_torch_is_told_apart() -> None:
    def think() -> None:
        start = time.process_time()
        while time.process_time() - start < 0.05:
            pass
        torch.ones(2) + 1

    assert time_shares(think)[OUTSIDE] > 0.5
