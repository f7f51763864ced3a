"""Captures of concepts: the prompts are the tokenizer's own, the factors go with them, the draw can be repeated."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import RequestError
from tests.conftest import Loaded

OWN_CONCEPT = """
name = "loudness"
description = "Loud against quiet."
positive = "w90"
negative = "w91"
topics = ["w10", "w11", "w12"]
[[personas]]
name = "only"
positive = "w80 w81"
negative = "w70 w71"
[[templates]]
name = "plain"
user = "w60 {persona} w61 {topic}"
"""


@pytest.fixture
def own_concept(tmp_path: Path) -> Path:
    path = tmp_path / "loudness.toml"
    path.write_text(OWN_CONCEPT)
    return path


def test_a_concept_goes_through_the_chat_template(smollm2: Loaded) -> None:
    data = engine.capture_from_concept(*smollm2, "honesty", "smollm2", layers=[14], max_samples=3, positions="last")
    assert (data["concept"], data["num_pairs"], data["layers"]) == ("honesty", 3, [14])
    for prompt in [*data["positive"], *data["negative"]]:
        assert str(prompt["prompt"]).startswith("<|im_start|>system\n")
        assert str(prompt["prompt"]).endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert [str(token) for token in prompt["tokens"]].count("<|im_start|>") == 3
        assert prompt["activations"][14].shape == (1, 1, 576)
    provenance = data["provenance"]
    assert provenance["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert provenance["chat_template"] is not None
    assert (provenance["positions"], provenance["site"], provenance["seed"]) == ("last", "resid_post", 0)


def test_the_factors_are_those_of_the_prompts(smollm2: Loaded) -> None:
    data = engine.capture_from_concept(*smollm2, "empathy", layers=[0], max_samples=5, positions="last")
    concept = engine.load_concept("empathy")
    personas = {persona.name: persona for persona in concept.personas}
    for i, factors in enumerate(data["factors"]):
        assert factors["topic"] in str(data["positive"][i]["prompt"])
        assert personas[factors["persona"]].positive in str(data["positive"][i]["prompt"])
        assert personas[factors["persona"]].negative in str(data["negative"][i]["prompt"])


def test_a_base_model_gets_plain_text(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, own_concept: Path
) -> None:
    data = engine.capture_from_concept(tiny_llama, tiny_tokenizer, own_concept, max_samples=None)
    topics = [factors["topic"] for factors in data["factors"]]
    assert sorted(topics) == ["w10", "w11", "w12"]
    assert [p["prompt"] for p in data["positive"]] == [f"w60 w80 w81 w61 {topic}" for topic in topics]
    assert [p["prompt"] for p in data["negative"]] == [f"w60 w70 w71 w61 {topic}" for topic in topics]
    assert data["provenance"]["chat_template"] is None


def test_the_same_seed_gives_the_same_capture(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, own_concept: Path
) -> None:
    one, two = (engine.capture_from_concept(tiny_llama, tiny_tokenizer, own_concept, seed=7) for _ in range(2))
    assert one["factors"] == two["factors"]
    for first, second in zip(one["positive"], two["positive"], strict=True):
        assert torch.equal(first["activations"][3], second["activations"][3])


def test_factors_of_ones_own_must_fit_the_pairs(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    factors = [{"template": "a", "persona": "b", "topic": "c"}]
    with pytest.raises(engine.LayerscopeError, match="2 pairs and 1 sets of factors"):
        engine.capture_contrastive_activations(
            tiny_llama,
            tiny_tokenizer,
            ["w3", "w4"],
            ["w5", "w6"],
            factors=factors,  # type: ignore[arg-type]
        )


def test_an_unknown_concept_is_refused_with_the_nearest(smollm2: Loaded) -> None:
    with pytest.raises(RequestError, match="did you mean 'honesty'"):
        engine.capture_from_concept(*smollm2, "honestly")
