"""`capture_activations`: shapes, positions, order, and errors that name the prompt."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.run import align_rows, aligned_mask
from engine.errors import CaptureError, RequestError
from engine.models.structure import find_blocks
from engine.records.captures import Factors
from tests.conftest import Loaded, framework_hook

PROMPTS = ["w5 w17 w99 w23 w8", "w7 w8", "w101 w12 w13"]


def test_one_prompt_has_the_how_tos_dictionary(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS[0], layers=[-1, 0])
    assert set(data) == {
        *("activations", "input_ids", "tokens", "prompt", "num_layers", "captured_layers", "provenance"),
    }
    assert {layer: states.shape for layer, states in data["activations"].items()} == {0: (1, 5, 32), 3: (1, 5, 32)}
    assert data["input_ids"].tolist() == [[5, 17, 99, 23, 8]]
    assert data["tokens"] == PROMPTS[0].split()
    assert (data["prompt"], data["num_layers"], data["captured_layers"]) == (PROMPTS[0], 4, [0, 3])


def test_several_prompts_are_right_aligned(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS)
    assert data["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    assert data["input_ids"].tolist() == [[5, 17, 99, 23, 8], [0, 0, 0, 7, 8], [0, 0, 101, 12, 13]]
    for row, prompt in enumerate(PROMPTS):
        alone = engine.capture_activations(tiny_llama, tiny_tokenizer, prompt, positions="last")["activations"]
        for layer, states in data["activations"].items():
            torch.testing.assert_close(states[row, -1, :], alone[layer][0, -1, :])
            assert not states[row, : 5 - len(prompt.split())].any()


@pytest.mark.parametrize("use_hooks", [False, True])
@pytest.mark.parametrize("positions", ["last", 0, "-2", "1:3", (0, 2), "mean", "mean:0:"])
def test_positions_are_slices_of_all_states(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    positions: str | int | tuple[int, int],
    use_hooks: bool,
) -> None:
    prompts = ["w5 w17 w99 w23 w8", "w7 w8 w9"]
    for prompt in prompts:
        whole = engine.capture_activations(tiny_llama, tiny_tokenizer, prompt)["activations"][2][0]
        expected = {
            "last": whole[-1:],
            0: whole[:1],
            "-2": whole[-2:-1],
            "1:3": whole[1:3],
            (0, 2): whole[:2],
            "mean": whole[1:].double().mean(0, keepdim=True).float(),
            "mean:0:": whole.double().mean(0, keepdim=True).float(),
        }[positions]
        data = engine.capture_activations(
            tiny_llama, tiny_tokenizer, prompt, [2], use_hooks=use_hooks, positions=positions
        )
        torch.testing.assert_close(data["activations"][2][0], expected, rtol=0, atol=0)


def test_kept_states_hold_no_larger_tensor(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, PROMPTS, [f"w9 {prompt}" for prompt in PROMPTS], positions="last"
    )
    for prompt in [*data["positive"], *data["negative"]]:
        for states in prompt["activations"].values():
            assert states.untyped_storage().nbytes() == 32 * 4


def test_results_are_in_the_callers_order(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [" ".join(f"w{3 + (i * 7 + j) % 120}" for j in range(1 + i * 5 % 11)) for i in range(12)]
    data = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, prompts[:6], prompts[6:], batch_size=4)
    assert [p["prompt"] for p in data["positive"]] == prompts[:6]
    for captured, prompt in zip([*data["positive"], *data["negative"]], prompts, strict=True):
        alone = engine.capture_activations(tiny_llama, tiny_tokenizer, prompt)["activations"]
        torch.testing.assert_close(captured["activations"][3], alone[3])


def test_progress_counts_prompts(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    told: list[tuple[int, int]] = []
    engine.capture_activations(
        tiny_llama, tiny_tokenizer, PROMPTS, batch_size=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(0, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("use_hooks", [False, True])
@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "states that are not finite at layer 1"), (0.0, "all-zero states at layer 1")]
)
def test_unusable_states_name_prompt_and_layer(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, value: float, said: str, use_hooks: bool
) -> None:
    engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS)  # run the load check before breaking the model
    block = find_blocks(tiny_llama).blocks[1]
    block.register_forward_hook(
        framework_hook(lambda _m, _a, out: torch.where(torch.arange(len(out))[:, None, None] == 1, value, out))
    )
    with pytest.raises(CaptureError, match=rf"prompt 2 \('w101 w12 w13'\) has {said}"):
        engine.capture_activations(
            tiny_llama, tiny_tokenizer, PROMPTS, layers=[1], use_hooks=use_hooks, prefix_reuse=False
        )


@pytest.mark.parametrize(
    ("positive", "negative", "said"),
    [
        (["w3"], ["w4", "w5"], "1 positive and 2 negative"),
        ([], [], "0 positive and 0 negative"),
        (["w3", ""], ["w4", "w5"], "positive prompt 1 is empty"),
        (["w3"], ["w4 " * 65], r"negative prompt 0 \('w4 w4 .*has 65 tokens, more than the model's 64"),
    ],
)
def test_pairs_that_cannot_be_captured(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    positive: list[str],
    negative: list[str],
    said: str,
) -> None:
    with pytest.raises(CaptureError, match=said):
        engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, positive, negative)


def test_a_position_missing_from_one_prompt_names_that_prompt(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RequestError, match=r"prompt 1 \('w7 w8'\) has 2 tokens, so positions '2:4' do not exist"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, positions="2:4")


def test_both_modes_give_the_same_bits_on_the_real_model(smollm2: Loaded) -> None:
    text = "Tell me a story about a lighthouse keeper."
    one = engine.capture_activations(*smollm2, text, use_hooks=False)["activations"]
    two = engine.capture_activations(*smollm2, text, use_hooks=True)["activations"]
    assert list(one) == list(range(30))
    assert all(torch.equal(one[layer], two[layer]) for layer in one)


def test_the_real_model_batched_equals_single(smollm2: Loaded) -> None:
    """The tolerance of 2e-4 on states of norm 700 covers summation order in float32."""
    prompts = ["Hi", "Tell me a story about a lighthouse keeper.", "What is two plus two? " * 8]
    together = engine.capture_activations(*smollm2, prompts, positions="last", batch_size=3)["activations"]
    for row, prompt in enumerate(prompts):
        alone = engine.capture_activations(*smollm2, prompt, positions="last")["activations"]
        for layer, states in together.items():
            assert (states[row] - alone[layer][0]).norm() <= 1e-5 * alone[layer].norm()


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


def test_custom_factors_must_match_the_pairs(
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


@pytest.mark.parametrize(
    ("personas", "said"),
    [
        (["nurse", " "], "pair 1 has no persona, and the first pair has one. Expected: a persona with every pair"),
        (["", "nurse"], "pair 1 has a persona, and the first pair has none"),
    ],
)
def test_factors_that_some_pairs_lack_are_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, personas: list[str], said: str
) -> None:
    """They were a group of their own: in half of the sets, five personas without an effect were found."""
    factors = [Factors(template="", persona=persona, topic="tea") for persona in personas]
    with pytest.raises(CaptureError, match=said):
        engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, ["w3", "w4"], ["w5", "w6"], factors=factors)


def test_an_unknown_concept_is_refused_with_the_nearest(smollm2: Loaded) -> None:
    with pytest.raises(RequestError, match="did you mean 'honesty'"):
        engine.capture_from_concept(*smollm2, "honestly")


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_rows_are_left_padded_with_zeros(lengths: list[int]) -> None:
    rows = [torch.rand(length, 3) + 1 for length in lengths]
    aligned, mask = align_rows(torch.cat(rows), lengths), aligned_mask(lengths)
    assert aligned.shape == (len(lengths), max(lengths), 3)
    for row, out, real in zip(rows, aligned, mask, strict=True):
        assert torch.equal(out[-len(row) :], row)
        assert not out[: -len(row)].any()
        assert real.tolist() == [False] * (max(lengths) - len(row)) + [True] * len(row)


def test_rows_of_equal_length_are_not_copied() -> None:
    values = torch.rand(6, 3)
    assert align_rows(values, [2, 2, 2]).data_ptr() == values.data_ptr()
