"""The memory a model takes is counted exactly, and compared with what is free before anything is read."""

import psutil
import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel

from engine.errors import ModelError
from engine.models.memory import free_bytes, require_room, weight_bytes
from tests.conftest import family_called
from tests.families import build

CPU = torch.device("cpu")
# A hundred terabytes.
GIANT = LlamaConfig(hidden_size=65536, intermediate_size=262144, num_hidden_layers=400, num_attention_heads=64)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "mamba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_count_is_that_of_the_real_model(name: str, dtype: torch.dtype) -> None:
    model = build(family_called(name)).to(dtype)  # type: ignore[arg-type]  # transformers wraps it and loses its type
    real = sum(parameter.nbytes for parameter in model.parameters())
    assert weight_bytes(model.config, dtype) == pytest.approx(real, rel=0.01)


def test_tied_embeddings_count_once() -> None:
    untied = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=1000)
    tied = LlamaConfig(**(untied.to_dict() | {"tie_word_embeddings": True}))
    assert weight_bytes(untied, torch.float32) - weight_bytes(tied, torch.float32) == 1000 * 32 * 4


def test_free_memory_of_the_cpu_is_what_the_system_says() -> None:
    assert 0 < free_bytes(CPU) <= psutil.virtual_memory().total


def test_what_torch_holds_of_a_gpu_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is at hand: torch is made to say that of 80 GB it holds 60, 20 of them in use, and 10 are another's."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 60 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 20 * 10**9)
    assert free_bytes(torch.device("cuda")) == 50 * 10**9


def test_a_model_that_fits_is_let_through(tiny_llama: PreTrainedModel) -> None:
    require_room(tiny_llama.config, torch.float64, CPU)


@pytest.mark.parametrize(("dtype", "halved"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_model_that_does_not_fit_is_refused_with_what_would_help(dtype: torch.dtype, halved: bool) -> None:
    with pytest.raises(ModelError) as refusal:
        require_room(GIANT, dtype, CPU)
    needed = weight_bytes(GIANT, dtype) / 1e9
    name = str(dtype).removeprefix("torch.")
    assert f"the weights take {needed:.1f} GB as {name}" in refusal.value.problem
    assert "GB are free on cpu" in refusal.value.problem
    assert ("dtype='bfloat16'" in str(refusal.value)) == halved
    assert "device_map='auto'" in str(refusal.value)


def test_where_no_device_map_helps_none_is_named() -> None:
    with pytest.raises(ModelError, match="Next: do something else"):
        require_room(GIANT, torch.float32, CPU, "do something else")


def test_packed_weights_are_not_counted_as_if_they_were_whole() -> None:
    packed = LlamaConfig(**(GIANT.to_dict() | {"quantization_config": {"quant_method": "mxfp4"}}))
    require_room(packed, torch.bfloat16, CPU)
