"""Captured states equal those of a plain, unpadded forward pass, for every family, mode, site and batch size."""

from contextlib import ExitStack
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.sites import available_sites
from engine.errors import ModelError
from engine.models.description import describe_model
from engine.models.products import onednn_products
from engine.models.structure import EXCEPTIONS, Exceptional
from engine.records.models import Receipt
from tests.families import FAMILIES, REFUSED, Family, build, each_of

PROMPTS = ["w5 w17 w99 w23 w8 w64 w31", "w7 w8 w9 w50", "w101 w12 w13 w40 w6"]
# Largest difference of a value, relative to the largest value of the state: within one library from summation order
# over four blocks, between two libraries over two blocks.
SAME_LIBRARY, TOLERANCE = 1e-5, 2e-5

# Families without two submodules per block whose outputs sum to the update of the residual stream.
WITHOUT_SUBLAYERS = {
    *(
        "granite",
        "granitemoeshared",
        "granitemoehybrid",
        "minicpm3",
        "gemma4_text",
    ),  # outputs are scaled when added
    *("doge", "minimax", "zaya"),  # the residual stream is scaled too
    *("openai-gpt", "opt_350m", "bart"),  # a norm is applied to the residual stream
    *(
        "mamba",
        "falcon_mamba",
        "mamba2",
        "nemotron_h",
        "zamba",
        "zamba2",
    ),  # one output, or that of another block
    *("falcon_h1", "longcat_flash"),  # more than two outputs are added
    "gpt_neox_japanese",  # the last block adds the attention bias outside of the attention
    "olmo_hybrid",  # two kinds of block with different submodule names
}
# The fast tier is pairwise: it covers every pair of values of mode, batch size and padding side.
WAYS = [
    (False, 1, "left"),
    (False, 3, "right"),
    (True, 1, "right"),
    (True, 3, "left"),
    *(
        pytest.param(*way, marks=pytest.mark.slow)
        for way in ((False, 1, "right"), (False, 3, "left"), (True, 1, "left"), (True, 3, "right"))
    ),
]
# Families with attention only in some blocks, or under two names.
WITHOUT_ATTENTION = {
    *("lfm2", "lfm2_moe", "lfm3", "bamba", "jamba", "xlstm", "recurrent_gemma"),
    *("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
}


def plain_states(model: PreTrainedModel, ids: list[int]) -> tuple[list[Tensor], Tensor]:
    """The hidden states that transformers reports for one prompt: all blocks but usually the last, and the final state.

    The simplest forward pass: the whole model with logits, without mask, positions or padding.
    """
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    first = EXCEPTIONS.get(model.config.model_type, Exceptional()).first_state
    return list(output.hidden_states[first:-1]), output.hidden_states[-1]


def plain_sites(model: PreTrainedModel, ids: list[int], receipt: Receipt) -> dict[str, list[Tensor]]:
    """What the test's own hooks see in the same pass: resid_pre, and the submodules that the receipt names."""
    seen: dict[str, list[Tensor]] = {"resid_pre": [], "attn_out": [], "mlp_out": []}

    def see(site: str, states: Any) -> None:
        first = states[0] if isinstance(states, tuple) else states
        seen[site].append(first.detach().clone().reshape(1, len(ids), -1))

    with ExitStack() as stack:
        for block in cast("nn.ModuleList", model.get_submodule(receipt["blocks"])):
            before = block.register_forward_pre_hook(
                lambda _m, args, kwargs: see("resid_pre", args or kwargs["hidden_states"]), with_kwargs=True
            )
            stack.callback(before.remove)
            for site, name in (("attn_out", receipt["attn_out"]), ("mlp_out", receipt["mlp_out"])):
                if name is not None:
                    part = block.get_submodule(name)
                    stack.callback(part.register_forward_hook(lambda _m, _a, out, site=site: see(site, out)).remove)
        states, final = plain_states(model, ids)
    assert all(torch.equal(one, other) for one, other in zip(seen["resid_pre"][1:], states, strict=False))
    return {**seen, "embed": seen["resid_pre"][:1], "final_norm": [final]}


@pytest.fixture(params=each_of(FAMILIES), scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    """Each family."""
    return cast("Family", request.param)


@pytest.fixture(scope="module")
def model(family: Family) -> PreTrainedModel:
    """A tiny random model of it."""
    return build(family)


@pytest.mark.parametrize(("use_hooks", "batch_size", "padding_side"), WAYS)
def test_states_equal_a_plain_forward(
    model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    use_hooks: bool,
    batch_size: int,
    padding_side: str,
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "padding_side", padding_side)
    data = engine.capture_activations(
        model, tiny_tokenizer, PROMPTS, use_hooks=use_hooks, batch_size=batch_size, prefix_reuse=False
    )
    layers = data["captured_layers"]
    assert layers == list(range(data["num_layers"]))
    for row, prompt in enumerate(PROMPTS):
        ids = [int(word[1:]) for word in prompt.split()]
        for onednn, tolerance in ((data["provenance"]["products"] == "oneDNN", SAME_LIBRARY), (False, TOLERANCE)):
            with onednn_products(wanted=onednn):
                plain, _ = plain_states(model, ids)
            assert len(plain) >= len(layers) - 1
            for layer, expected in zip(layers, plain, strict=False):
                captured = data["activations"][layer][row : row + 1, -len(ids) :]
                error = (captured - expected).abs().max() / expected.abs().max()
                assert error < tolerance, f"layer {layer}, prompt {row}: {error:.1e}"


def test_the_last_layer_is_before_the_final_norm(
    model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Applying the layers after the last block to the captured states gives the final hidden state."""
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
    for packed in (False, True):
        one, two = (
            engine.capture_activations(model, tiny_tokenizer, PROMPTS, use_hooks=use_hooks, prefix_reuse=packed)[
                "activations"
            ]
            for use_hooks in (False, True)
        )
        assert all(torch.equal(one[layer], two[layer]) for layer in one)


def test_sites_equal_a_plain_forward(
    family: Family, model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    receipt = describe_model(model).receipt
    assert (receipt["mlp_out"] is None) == (family.name in WITHOUT_SUBLAYERS)
    assert (receipt["attn_out"] is None) == (family.name in WITHOUT_SUBLAYERS | WITHOUT_ATTENTION)
    used = engine.capture_activations(model, tiny_tokenizer, PROMPTS[0])["provenance"]["products"]
    with onednn_products(wanted=used == "oneDNN"):
        plain = [plain_sites(model, [int(word[1:]) for word in prompt.split()], receipt) for prompt in PROMPTS]
    for batch_size in (1, 3):
        read = {
            site: engine.capture_activations(model, tiny_tokenizer, PROMPTS, site=site, batch_size=batch_size)
            for site in available_sites(receipt)
        }
        states = {site: list(data["activations"].values()) for site, data in read.items()}
        for site in set(states) - {"resid_post"}:
            for row, expected in enumerate(plain):
                for captured, wanted in zip(states[site], expected[site], strict=True):
                    error = (captured[row, -wanted.shape[1] :] - wanted[0]).abs().max() / wanted.abs().max()
                    assert error < SAME_LIBRARY, f"{site}, prompt {row}: {error:.1e}"
        if {"attn_out", "mlp_out"} <= set(states):
            four = (states[site] for site in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
            for before, attention, feed_forward, after in zip(*four, strict=True):
                assert (before + attention + feed_forward - after).abs().max() < SAME_LIBRARY * after.abs().max()


def test_enough_families_are_claimed() -> None:
    wanted = (
        "llama qwen2 qwen3 mixtral olmo2 gemma2 gemma3_text phi3 mistral gpt2 gpt_neox falcon bloom opt cohere gpt_oss"
    )
    assert set(wanted.split()) <= {family.name for family in FAMILIES}


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.name)
def test_families_whose_blocks_do_not_output_the_stream_are_refused(
    family: Family, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(family)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"load check|decoder blocks|cannot be captured"):
        engine.capture_activations(model, tiny_tokenizer, PROMPTS[0])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
