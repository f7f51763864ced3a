"""A capture under autocast computes in another dtype; the record says so, and comparisons check it."""

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine

PROMPTS = ["w3 w4 w5 w6 w7", "w3 w4 w5 w8 w9 w10", "w3 w4 w11"]


def test_autocast_is_in_the_provenance(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    before = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        data = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS)
    after = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS)
    assert data["provenance"]["autocast"] == "bfloat16"
    assert data["provenance"]["products"] == "default"
    assert "autocast" not in before["provenance"]
    assert after["provenance"] == before["provenance"]
    assert all(torch.equal(after["activations"][layer], states) for layer, states in before["activations"].items())


def test_states_are_those_of_a_plain_forward_under_autocast(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    for prompt in PROMPTS:
        ids = torch.tensor([[int(word[1:]) for word in prompt.split()]])
        whole = engine.capture_activations(tiny_llama, tiny_tokenizer, prompt)["activations"]
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            data = engine.capture_activations(tiny_llama, tiny_tokenizer, prompt)
            plain = tiny_llama(ids, output_hidden_states=True, use_cache=False).hidden_states
        for layer in range(3):
            torch.testing.assert_close(data["activations"][layer], plain[layer + 1], rtol=1e-5, atol=1e-5)
            assert (data["activations"][layer] - whole[layer]).norm() > 1e-3 * whole[layer].norm()


def test_comparisons_warn_about_autocast(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    one = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS[1])
    with pytest.raises(engine.LayerscopeError, match=r"autocast \(none and bfloat16\)"):
        engine.compute_contrastive_diff(one, other)


def test_reading_a_text_under_autocast_warns(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    positive, negative = ([f"w{side} w{20 + i} w{40 + i}" for i in range(8)] for side in (3, 4))
    contrast = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, positive, negative, positions="mean")
    directions = engine.extract_directions(contrast)
    assert engine.read_text(tiny_llama, tiny_tokenizer, directions, "w5 w6")["warnings"] == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warnings = engine.read_text(tiny_llama, tiny_tokenizer, directions, "w5 w6")["warnings"]
    assert "the model differs from that of the directions in autocast: none there, bfloat16 here" in warnings
