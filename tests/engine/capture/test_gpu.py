"""On a GPU, where there is one: the same states, memory that really runs out, and weights that lie beside it."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.batches import token_budget
from engine.models.structure import EXCEPTIONS, Exceptional
from tests.conftest import Loaded, family_called
from tests.families import FAMILIES, VOCAB, Family, build

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

GPU = torch.device("cuda", 0)
BEGINNING = " ".join(f"w{n}" for n in range(20, 32))
UNLIKE = ["w5 w17 w99 w23 w8 w64 w31", "w7 w8 w9 w50", "w101 w12 w13 w40 w6"]
ALIKE = [f"{BEGINNING} w{33 + n} w{60 + n % 3}" for n in range(8)]
TOLERANCE = 1e-4  # of the largest value of a state: products of another shape add up in another order


def moved(model: PreTrainedModel, where: torch.device | torch.dtype) -> PreTrainedModel:
    """The model itself, elsewhere or in another dtype."""
    nn.Module.to(model, where)
    return model


def plain_states(model: PreTrainedModel, ids: list[int]) -> list[Tensor]:
    """What transformers reports for one prompt on its own, without what has been through the final norm."""
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
            assert not captured.is_pinned()  # memory that the system cannot use for anything else
            error = (captured[row : row + 1, -len(ids) :] - expected).abs().max() / expected.abs().max()
            assert error < TOLERANCE, f"layer {layer}, prompt {row}: {error:.1e}"


@pytest.fixture
def saved(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny llama in bfloat16, as `save_pretrained` writes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    moved(build(family_called("llama")), torch.bfloat16).save_pretrained(tmp_path / "mine")
    tiny_tokenizer.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_model_goes_to_the_gpu_in_its_own_dtype_unless_told_otherwise(saved: Path) -> None:
    model, _, _ = engine.load_model_and_tokenizer(str(saved))
    assert (model.device, model.dtype) == (GPU, torch.bfloat16)
    model, _, _ = engine.load_model_and_tokenizer(str(saved), "cpu", "float32")
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("limits", [{0: 100_000, "cpu": "1GB"}, {0: 100_000}], ids=["main memory", "disk"])
def test_weights_beside_the_gpu_give_the_states_of_weights_on_it(
    saved: Path, limits: dict[int | str, int | str]
) -> None:
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


def test_shards_hold_what_a_capture_in_memory_does(saved: Path, tmp_path: Path) -> None:
    loaded = Loaded(*engine.load_model_and_tokenizer(str(saved), dtype="float32")[:2])
    (tmp_path / "prompts.txt").write_text("\n".join(ALIKE))
    engine.capture_prompt_file(*loaded, tmp_path / "prompts.txt", tmp_path / "store" / "some", positions="last")
    (shard,) = engine.open_shards(tmp_path / "store" / "some")
    for layer, states in engine.capture_activations(*loaded, ALIKE, positions="last")["activations"].items():
        torch.testing.assert_close(shard.states(layer), states[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beginning", ["", BEGINNING], ids=["padded", "packed"])
def test_memory_that_runs_out_halves_what_is_run(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, beginning: str
) -> None:
    config = AutoConfig.for_model(
        "llama",
        **{"vocab_size": VOCAB, "hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    )
    loaded = Loaded(moved(build(Family("wide", lambda: config)), GPU), tiny_tokenizer)
    prompts = [f"{beginning} w{5 + n % 100} w{5 + n // 100} {'w7 w8 w9 ' * 6}" for n in range(1000)]
    expected = engine.capture_activations(*loaded, prompts, positions="last")["activations"]
    assert token_budget(loaded.model) == 4096
    torch.cuda.empty_cache()
    most = torch.cuda.memory_allocated(GPU) + 100 * 2**20  # for an MLP that puts out 134 MB for 4,096 tokens
    torch.cuda.set_per_process_memory_fraction(most / torch.cuda.mem_get_info(GPU)[1], GPU)
    try:
        with caplog.at_level("INFO", "engine"):
            captured = engine.capture_activations(*loaded, prompts, positions="last")["activations"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    assert "out of memory with" in caplog.text
    for layer, states in captured.items():
        assert (states - expected[layer]).abs().max() < TOLERANCE * expected[layer].abs().max()
