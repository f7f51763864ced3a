"""Captures of a tiny model, real ones, to be written and read."""

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.records.captures import ActivationData, ContrastData, Factors


@pytest.fixture
def prompt_data(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> ActivationData:
    return engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w6 w7")


@pytest.fixture
def contrast_data(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> ContrastData:
    factors = [Factors(template="t", persona=persona, topic="w9") for persona in ("one", "two")]
    return engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, ["w5 w9", "w6 w9"], ["w15 w9", "w16 w9"], factors=factors, positions="last"
    )


@pytest.fixture
def ranked_data(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> ContrastData:
    """Pairs enough to be ranked: six personas, each on two topics."""
    factors = [Factors(template="t", persona=f"w{5 + i % 6}", topic=f"w{30 + i // 6}") for i in range(12)]
    positive = [f"{pair['persona']} {pair['topic']}" for pair in factors]
    return engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, positive, [f"w40 {text}" for text in positive], factors=factors, positions="last"
    )
