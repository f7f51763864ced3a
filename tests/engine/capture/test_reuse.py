"""Prefix sharing gives the states of separate prompts, in every family that supports it."""

import logging
from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import budget
from engine.models import attention, shortcuts
from engine.models.description import describe_model
from engine.models.products import onednn_possible
from tests.conftest import Loaded, family_called, framework_hook
from tests.engine.capture.test_families import TOLERANCE, plain_states
from tests.families import _HEADS, FAMILIES, REPRESENTATIVE, Family, _family, build, each_of

# A trunk of 40 tokens, two branches, leaves of several lengths, one prompt twice and one that is a prefix of another.
_TRUNK = " ".join(f"w{3 + i * 7 % 120}" for i in range(40))
_ENDS = ["w5 w17 w99", "w5 w17 w23 w8 w64 w31", "w5 w17", "w90 w7", "w90 w8 w9 w50", "w90 w7", "w101 w12 w13 w40 w6 w3"]
PROMPTS = [f"{_TRUNK} {end}" for end in _ENDS]

# Families without prefix sharing, each with the reason from its load check.
SEPARATE = {
    *("bloom", "mpt", "bart", "openai-gpt", "falcon_alibi", "mamba", "falcon_mamba", "mamba2", "xlstm"),
    *("minimax", "lfm2", "lfm2_moe", "zaya", "bamba", "falcon_h1", "granitemoehybrid", "jamba", "zamba", "zamba2"),
    *("nemotron_h", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear"),
    # Attention windows of four tokens or less, as in the tiny models, are too short for the check.
    *("mistral", "qwen2_sliding", "starcoder2", "exaone4", "granite_swa", "lfm3", "olmo3", "gemma2", "gemma3_text"),
    *("gemma4_text", "vaultgemma", "modernbert-decoder", "cohere2", "gemma3", "gpt_neo", "gpt_oss", "llama4_text"),
    *("deepseek_v32", "glm_moe_dsa", "afmoe", "exaone_moe", "mimo_v2_flash", "cohere2_moe", "recurrent_gemma"),
}
WINDOWED = tuple(
    _family(f"{name}_wide", _HEADS, {"sliding_window": 48, **more}, model_type=name)
    for name, more in {
        "mistral": {},
        "gemma2": {"query_pre_attn_scalar": 8},
        "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "olmo3": {},
    }.items()
)


@pytest.fixture(params=["trunks", "one_row", "batched_trunks", "batched_row"])
def _budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A token budget small enough for trunks to pay off, or large enough to pack all prompts into one row.

    In all, attention is computed in blocks as small as these prompts, and batched as on a GPU in two.
    """
    monkeypatch.setitem(budget._RUN_WELL, "cpu", 16 if "trunks" in request.param else 10_000)
    monkeypatch.setattr(attention, "_LEAST_QUERIES", 4)
    if "batched" in request.param:
        for module in (attention, shortcuts):
            monkeypatch.setattr(module, "batches_blocks", lambda _device: True)
            monkeypatch.setattr(module, "BATCHED_QUERIES", 8)
        monkeypatch.setattr(attention, "_GPU_LANES", 8)
    yield


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("family", each_of([*FAMILIES, *WINDOWED], REPRESENTATIVE | {"gemma2_wide"}))
def test_states_equal_a_plain_forward(family: Family, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(family)
    assert bool(describe_model(model).receipt["separate"]) == (family.name in SEPARATE)
    for use_hooks in (False, True):
        data = engine.capture_activations(model, tiny_tokenizer, PROMPTS, use_hooks=use_hooks)
        assert data["provenance"]["prefix_reuse"].startswith("no: " if family.name in SEPARATE else "on")
        for row, prompt in enumerate(PROMPTS):
            ids = [int(word[1:]) for word in prompt.split()]
            plain, _ = plain_states(model, ids)
            for layer, expected in zip(data["captured_layers"], plain, strict=False):
                captured = data["activations"][layer][row : row + 1, -len(ids) :]
                error = (captured - expected).abs().max() / expected.abs().max()
                assert error < TOLERANCE, f"layer {layer}, prompt {row}: {error:.1e}"


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("prompts", [["w5"] * 3, [f"{_TRUNK} w5"] * 9 + [f"{_TRUNK} w6"]], ids=["alone", "on_a_trunk"])
def test_identical_prompts_of_one_token_that_is_not_shared(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> None:
    """One row of one token, for which transformers lays out grouped heads differently."""
    shared = engine.capture_activations(tiny_llama, tiny_tokenizer, prompts)
    plain = engine.capture_activations(tiny_llama, tiny_tokenizer, prompts, batch_size=1)
    for layer, states in plain["activations"].items():
        torch.testing.assert_close(shared["activations"][layer], states, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("positions", ["last", "mean", "0", "38:42", "-3:", "mean:30:"])
def test_positions_on_both_sides_of_a_fork(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, positions: str
) -> None:
    prompts = [prompt for prompt in PROMPTS if len(prompt.split()) >= 42]
    shared = engine.capture_activations(tiny_llama, tiny_tokenizer, prompts, positions=positions)
    plain = engine.capture_activations(tiny_llama, tiny_tokenizer, prompts, positions=positions, prefix_reuse=False)
    for layer, states in plain["activations"].items():
        torch.testing.assert_close(shared["activations"][layer], states, rtol=1e-5, atol=1e-5)
    assert (plain["provenance"]["prefix_reuse"], shared["provenance"]["prefix_reuse"]) == ("off", "on")


@pytest.mark.usefixtures("_budget")
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "embed", "final_norm"])
def test_other_sites(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, site: str) -> None:
    shared = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, site=site)
    plain = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, site=site, batch_size=1)
    for layer, states in plain["activations"].items():
        torch.testing.assert_close(shared["activations"][layer], states, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_budget")
def test_fewer_tokens_are_run(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    engine.capture_activations(tiny_llama, tiny_tokenizer, "w3")  # runs the load check
    ran: list[int] = []
    tiny_llama.get_submodule("model.layers.0").register_forward_hook(
        framework_hook(lambda _module, _args, output: ran.append(output.shape[0] * output.shape[1]))
    )
    engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, positions="last")
    distinct = {tuple(prompt.split()[: i + 1]) for prompt in PROMPTS for i in range(len(prompt.split()))}
    padding = 7 * len(ran) if attention.batches_blocks(torch.device("cpu")) else 0
    # Two batches may share tokens that are too few for a forward pass of their own.
    assert sum(ran) <= len(distinct) + 2 + padding
    ran.clear()
    engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, positions="last", prefix_reuse=False)
    assert sum(ran) >= sum(len(prompt.split()) for prompt in PROMPTS)


def test_prompts_that_share_nothing_are_packed_where_that_is_faster(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """In float32 on a CPU, unless the model computes attention over the whole row."""
    unlike = [" ".join(f"w{3 + i * 9 + j}" for j in range(2 + i % 5)) for i in range(8)]
    ran: list[torch.Size] = []
    for attention_name, packed in (("sdpa", onednn_possible()), ("eager", False)):
        tiny_llama.set_attn_implementation(attention_name)
        engine.capture_activations(tiny_llama, tiny_tokenizer, "w3")  # runs the load check
        seen = tiny_llama.get_submodule("model.layers.0").register_forward_hook(
            framework_hook(lambda _module, _args, output: ran.append(output.shape[:2]))
        )
        shared = engine.capture_activations(tiny_llama, tiny_tokenizer, unlike, positions="last")["activations"]
        seen.remove()
        assert ran.pop() == ((1, sum(len(text.split()) for text in unlike)) if packed else (8, 6))
        plain = engine.capture_activations(tiny_llama, tiny_tokenizer, unlike, positions="last", batch_size=1)
        for layer, states in plain["activations"].items():
            torch.testing.assert_close(shared[layer], states, rtol=1e-5, atol=1e-5)


def test_a_prompt_longer_than_the_window_disables_sharing_with_a_message(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(WINDOWED[0])
    prompts = [f"{prompt} w9 w8 w7 w6 w5 w4 w3" for prompt in PROMPTS]
    with caplog.at_level(logging.INFO, "engine"):
        data = engine.capture_activations(model, tiny_tokenizer, prompts)
    assert data["provenance"]["prefix_reuse"] == "on, if no prompt is longer than 48 tokens"
    assert "some prompts are longer than the model's attention window of 48 tokens" in caplog.text
    for row, prompt in enumerate(prompts):
        ids = [int(word[1:]) for word in prompt.split()]
        plain, _ = plain_states(model, ids)
        captured = data["activations"][2][row : row + 1, -len(ids) :]
        assert (captured - plain[2]).abs().max() < TOLERANCE * plain[2].abs().max()


def test_a_family_without_sharing_gives_the_reason(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "engine"):
        data = engine.capture_activations(build(family_called("jamba")), tiny_tokenizer, PROMPTS)
    assert "shared prefixes once per prompt: it has layers of type linear_attention" in caplog.text
    assert data["provenance"]["prefix_reuse"] == "no: it has layers of type linear_attention"


def test_the_real_model(smollm2: Loaded) -> None:
    ends = ["Tell me a story.", "Tell me a joke about lighthouses and ships.", "Hello!", "Tell me a story."]
    prompts = ["You are an honest assistant who never lies, whatever it may cost. " * 3 + end for end in ends]
    shared = engine.capture_activations(*smollm2, prompts, positions="last")["activations"]
    for row, prompt in enumerate(prompts):
        alone = engine.capture_activations(*smollm2, prompt, positions="last")["activations"]
        for layer, states in shared.items():
            assert (states[row] - alone[layer][0]).norm() <= 1e-5 * alone[layer].norm()
