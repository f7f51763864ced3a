"""Tests on a GPU, if there is one: the same states, real out-of-memory errors, and offloaded weights."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import budget
from engine.capture.batches import Limits
from engine.capture.budget import token_budget
from engine.capture.prefill import prefill
from engine.capture.responses import generate_responses
from engine.errors import CaptureError
from engine.models.description import describe_model
from engine.models.structure import EXCEPTIONS, Exceptional
from tests.conftest import Loaded, family_called
from tests.families import FAMILIES, VOCAB, Family, build

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

GPU = torch.device("cuda", 0)
BEGINNING = " ".join(f"w{n}" for n in range(20, 32))
UNLIKE = ["w5 w17 w99 w23 w8 w64 w31", "w7 w8 w9 w50", "w101 w12 w13 w40 w6"]
ALIKE = [f"{BEGINNING} w{33 + n} w{60 + n % 3}" for n in range(8)]
TOLERANCE = 1e-4  # relative to the largest value of a state: products of other shapes sum in another order


COMPILED = 512  # tokens of a row


def moved(model: PreTrainedModel, where: torch.device | torch.dtype) -> PreTrainedModel:
    """The same model on another device or in another dtype."""
    nn.Module.to(model, where)
    return model


def plain_states(model: PreTrainedModel, ids: list[int]) -> list[Tensor]:
    """The hidden states that transformers reports for a single prompt, without those after the final norm."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids], device=model.device), output_hidden_states=True, use_cache=False)
    first = EXCEPTIONS.get(model.config.model_type, Exceptional()).first_state
    return [states.cpu() for states in output.hidden_states[first:-1]]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name, scope="module")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Each family."""
    return moved(build(cast("Family", request.param)), GPU)


@pytest.mark.parametrize("prompts", [UNLIKE, ALIKE], ids=["padded", "packed"])
@pytest.mark.parametrize("use_hooks", [False, True])
def test_states_equal_a_plain_forward_on_the_gpu(
    model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, prompts: list[str], use_hooks: bool
) -> None:
    data = engine.capture_activations(model, tiny_tokenizer, prompts, use_hooks=use_hooks)
    assert data["provenance"]["device"] == "cuda:0"
    for row, prompt in enumerate(prompts):
        ids = [int(word[1:]) for word in prompt.split()]
        for layer, expected in zip(data["captured_layers"], plain_states(model, ids), strict=False):
            captured = data["activations"][layer]
            assert captured.device.type == "cpu"
            assert not captured.is_pinned()  # pinned memory, which the system cannot reclaim
            error = (captured[row : row + 1, -len(ids) :] - expected).abs().max() / expected.abs().max()
            assert error < TOLERANCE, f"layer {layer}, prompt {row}: {error:.1e}"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("reuse", [False, True], ids=["padded", "packed"])
def test_a_bad_state_is_refused_with_its_prompt_and_layer(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, bad: float, reuse: bool
) -> None:
    weights = dict(moved(tiny_llama, GPU).named_parameters())
    with torch.no_grad():
        weights["model.embed_tokens.weight"][62] = bad
        for name, weight in weights.items():
            if not bad and name.startswith("model.layers.0."):  # which adds nothing then
                weight.zero_()
    hit = next(number for number, prompt in enumerate(ALIKE + UNLIKE) if "w62" in prompt.split())
    what = "states that are not finite" if bad else "all-zero states"
    with pytest.raises(CaptureError, match=rf"prompt {hit} .* has {what} at layer 0"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, ALIKE + UNLIKE, positions="last", prefix_reuse=reuse)


@pytest.mark.parametrize("prompts", [UNLIKE, ALIKE], ids=["unlike", "alike"])
def test_means_are_those_of_all_states(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> None:
    model = moved(tiny_llama, GPU)
    means = engine.capture_activations(model, tiny_tokenizer, prompts, positions="mean")["activations"]
    for row, prompt in enumerate(prompts):
        every = engine.capture_activations(model, tiny_tokenizer, prompt, positions="all")["activations"]
        for layer, states in means.items():
            torch.testing.assert_close(states[row, 0], every[layer][0, 1:].mean(dim=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mixtral"])
def test_compiled_blocks_give_the_same_states_on_the_gpu(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved(build(family_called(name)), GPU)
    monkeypatch.setattr(budget, "_RUN_WELL_ON_GPU", COMPILED)
    monkeypatch.setattr(budget, "_MOST_ON_GPU", COMPILED)
    prompts = [f"{BEGINNING} w{33 + n % 90} w{20 + n // 90} w{5 + n % 7}" for n in range(400)]
    expected = engine.capture_activations(model, tiny_tokenizer, prompts, positions="last")["activations"]
    data = engine.capture_activations(model, tiny_tokenizer, prompts, positions="last", compiled=True)
    assert data["provenance"]["compiled"] == "on"
    for layer, states in data["activations"].items():
        assert (states - expected[layer]).abs().max() < TOLERANCE * expected[layer].abs().max()


@pytest.fixture
def saved(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny llama in bfloat16, as `save_pretrained` writes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    moved(build(family_called("llama")), torch.bfloat16).save_pretrained(tmp_path / "mine")
    tiny_tokenizer.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mixtral"])
def test_responses_after_a_shared_prefix_equal_those_to_each_alone_on_the_gpu(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = moved(build(family_called(name)), GPU)
    prompts = [[int(word[1:]) for word in prompt.split()] for prompt in ALIKE]
    assert prefill(model, describe_model(model), prompts, 5, Limits(512)) is not None
    alone = [generate_responses(model, tiny_tokenizer, [prompt], 5)[0] for prompt in prompts]
    assert generate_responses(model, tiny_tokenizer, prompts, 5) == alone


def test_a_model_is_on_the_gpu_in_its_own_dtype_by_default(saved: Path) -> None:
    model, _, _ = engine.load_model_and_tokenizer(str(saved))
    assert (model.device, model.dtype) == (GPU, torch.bfloat16)
    model, _, _ = engine.load_model_and_tokenizer(str(saved), "cpu", "float32")
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("limits", [{0: 100_000, "cpu": "1GB"}, {0: 100_000}], ids=["main memory", "disk"])
def test_offloaded_weights_give_the_same_states_on_the_gpu(saved: Path, limits: dict[int | str, int | str]) -> None:
    whole = Loaded(*engine.load_model_and_tokenizer(str(saved), dtype="float32")[:2])
    spread = Loaded(
        *engine.load_model_and_tokenizer(str(saved), dtype="float32", device_map="auto", max_memory=limits)[:2]
    )
    assert {0} < set(getattr(spread.model, "hf_device_map", {}).values())
    for prompts in (UNLIKE, ALIKE):
        expected = engine.capture_activations(*whole, prompts)["activations"]
        captured = engine.capture_activations(*spread, prompts)["activations"]
        for layer, states in captured.items():
            torch.testing.assert_close(states, expected[layer], rtol=1e-5, atol=1e-5)


def test_shards_hold_the_same_states_as_a_capture_in_memory(saved: Path, tmp_path: Path) -> None:
    loaded = Loaded(*engine.load_model_and_tokenizer(str(saved), dtype="float32")[:2])
    (tmp_path / "prompts.txt").write_text("\n".join(ALIKE))
    engine.capture_prompt_file(*loaded, tmp_path / "prompts.txt", tmp_path / "store" / "some", positions="last")
    (shard,) = engine.open_shards(tmp_path / "store" / "some")
    for layer, states in engine.capture_activations(*loaded, ALIKE, positions="last")["activations"].items():
        torch.testing.assert_close(shard.states(layer), states[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beginning", ["", BEGINNING], ids=["padded", "packed"])
def test_running_out_of_memory_halves_the_batch(
    tiny_tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    beginning: str,
) -> None:
    config = AutoConfig.for_model(
        "llama",
        **{"vocab_size": VOCAB, "hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    )
    loaded = Loaded(moved(build(Family("wide", lambda: config)), GPU), tiny_tokenizer)
    prompts = [f"{beginning} w{5 + n % 100} w{5 + n // 100} {'w7 w8 w9 ' * 6}" for n in range(1000)]
    monkeypatch.setattr(budget, "_MOST_ON_GPU", 4096)
    assert token_budget(loaded.model) == 4096
    expected = engine.capture_activations(*loaded, prompts, positions="last")["activations"]
    torch.cuda.empty_cache()
    most = torch.cuda.memory_allocated(GPU) + 100 * 2**20  # for an MLP whose output takes 134 MB for 4,096 tokens
    torch.cuda.set_per_process_memory_fraction(most / torch.cuda.mem_get_info(GPU)[1], GPU)
    try:
        with caplog.at_level("INFO", "engine"):
            captured = engine.capture_activations(*loaded, prompts, positions="last")["activations"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    assert "out of memory in a batch of" in caplog.text
    for layer, states in captured.items():
        assert (states - expected[layer]).abs().max() < TOLERANCE * expected[layer].abs().max()
