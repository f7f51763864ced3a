"""Captured states equal those of a plain, unpadded forward pass: every family, both modes, batched and one by one."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import ModelError
from engine.models.blocks import EXCEPTIONS, Exceptional
from tests.families import FAMILIES, REFUSED, Family, build

PROMPTS = ["w5 w17 w99 w23 w8 w64 w31", "w7 w8 w9 w50", "w101 w12 w13 w40 w6"]
# Largest difference of a value, relative to the largest value of the state: summation order, over four blocks.
TOLERANCE = 1e-5


def plain_states(model: PreTrainedModel, ids: list[int]) -> tuple[list[Tensor], Tensor]:
    """What transformers reports for one prompt: the blocks, most often without the last, and the final state.

    The whole model with its logits, no mask, no positions, no padding: the simplest forward pass there is.
    """
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    first = EXCEPTIONS.get(model.config.model_type, Exceptional()).first_state
    return list(output.hidden_states[first:-1]), output.hidden_states[-1]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name, scope="module")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny random model of each family."""
    return build(request.param)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("use_hooks", [False, True])
def test_states_equal_a_plain_forward(
    model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    use_hooks: bool,
    batch_size: int,
    padding_side: str,
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "padding_side", padding_side)
    data = engine.capture_activations(model, tiny_tokenizer, PROMPTS, use_hooks=use_hooks, batch_size=batch_size)
    layers = data["captured_layers"]
    assert layers == list(range(data["num_layers"]))
    for row, prompt in enumerate(PROMPTS):
        ids = [int(word[1:]) for word in prompt.split()]
        plain, _ = plain_states(model, ids)
        assert len(plain) >= len(layers) - 1
        for layer, expected in zip(layers, plain, strict=False):
            captured = data["activations"][layer][row : row + 1, -len(ids) :]
            error = (captured - expected).abs().max() / expected.abs().max()
            assert error < TOLERANCE, f"layer {layer}, prompt {row}: {error:.1e}"


def test_the_last_layer_is_before_the_final_norm(
    model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """What the model does after its last block, done by hand to what was captured, gives its final hidden state."""
    data = engine.capture_activations(model, tiny_tokenizer, PROMPTS[0])
    _, final = plain_states(model, data["input_ids"][0].tolist())
    state = data["activations"][data["num_layers"] - 1]
    receipt = data["provenance"]["receipt"]
    if receipt["final_norm"]:
        with torch.no_grad():
            state = model.get_submodule(receipt["final_norm"])(state)
    if model.config.model_type == "opt" and model.get_submodule("model.decoder").project_out is not None:
        with torch.no_grad():
            state = model.get_submodule("model.decoder.project_out")(state)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)


def test_both_modes_give_the_same_bits(model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    one = engine.capture_activations(model, tiny_tokenizer, PROMPTS, use_hooks=False)["activations"]
    two = engine.capture_activations(model, tiny_tokenizer, PROMPTS, use_hooks=True)["activations"]
    assert all(torch.equal(one[layer], two[layer]) for layer in one)


def test_enough_families_are_claimed() -> None:
    wanted = (
        "llama qwen2 qwen3 mixtral olmo2 gemma2 gemma3_text phi3 mistral gpt2 gpt_neox falcon bloom opt cohere gpt_oss"
    )
    assert set(wanted.split()) <= {family.name for family in FAMILIES}


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.name)
def test_families_whose_blocks_do_not_put_out_the_stream_are_refused(
    family: Family, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(family)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"check at load|decoder blocks|cannot be captured"):
        engine.capture_activations(model, tiny_tokenizer, PROMPTS[0])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
