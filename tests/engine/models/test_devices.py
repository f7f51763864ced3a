"""The device and dtype that a process picks, with mocked GPUs, and the check that weights fit into memory."""

import re
from pathlib import Path

import psutil
import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel

from engine.errors import ModelError, RequestError
from engine.models import devices
from engine.models.devices import (
    choose_device,
    choose_places,
    free_bytes,
    has_bfloat16_units,
    natural_dtype,
    require_room,
    running_device,
    weight_bytes,
)
from engine.runtime import MainMemory
from tests.conftest import family_called
from tests.families import build

GB = 10**9


def within(monkeypatch: pytest.MonkeyPatch, memory: MainMemory) -> None:
    monkeypatch.setattr(devices, "main_memory", lambda: memory)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that reports two GPUs, outside a container."""
    within(monkeypatch, MainMemory(64 * GB, 40 * GB, limited=False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    return monkeypatch


def launch(monkeypatch: pytest.MonkeyPatch, local_rank: int) -> None:
    for name, value in (("RANK", local_rank + 8), ("WORLD_SIZE", 16), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, str(value))


def test_every_process_has_its_own_gpu(two_gpus: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == torch.device("cuda:0")
    for local_rank in (0, 1):
        launch(two_gpus, local_rank)
        assert choose_device("auto") == torch.device("cuda", local_rank)


def test_more_processes_than_gpus_are_refused_without_a_device(two_gpus: pytest.MonkeyPatch) -> None:
    launch(two_gpus, 2)
    with pytest.raises(RequestError, match=r"no GPU is left for this process \(local rank 2\): this machine has 2"):
        choose_device("auto")
    assert choose_device("cpu") == torch.device("cpu")
    assert running_device(choose_places("auto", "auto", None)) == torch.device("cuda")


def test_a_split_model_runs_on_a_gpu_if_it_uses_one(two_gpus: pytest.MonkeyPatch) -> None:
    assert two_gpus
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert running_device(choose_places("auto", "auto", {"cpu": "1GB"})) == cpu
    assert running_device(choose_places("auto", "auto", {1: "1GB", "cpu": "1GB"})) == cuda
    assert running_device(choose_places("auto", {"model": "disk", "lm_head": "cpu"}, None)) == cpu
    assert running_device(choose_places("auto", {"model": 0, "lm_head": "disk"}, None)) == cuda
    with pytest.raises(RequestError, match=r"there is no GPU 2\. Expected: a number below 2"):
        choose_places("auto", "auto", {2: "1GB"})


def test_in_a_container_weights_respect_its_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    within(monkeypatch, MainMemory(8 * GB, 2 * GB, limited=True))
    assert choose_places("auto", "auto", None)["max_memory"]["cpu"] == 1.8 * GB
    assert choose_places("auto", "auto", {"cpu": "5GB"})["max_memory"] == {"cpu": 5 * GB}
    within(monkeypatch, MainMemory(64 * GB, 2 * GB, limited=False))
    assert choose_places("auto", "auto", None) == {"device_map": "auto"}


CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
_KERNEL_SAYS = Path("/proc/cpuinfo")


@pytest.mark.parametrize(
    ("own", "device", "units", "expected"),
    [
        (torch.bfloat16, CPU, True, torch.bfloat16),
        (torch.bfloat16, CPU, False, torch.float32),
        (torch.float16, CPU, True, torch.float32),
        (torch.float32, CPU, True, torch.float32),
        (None, CPU, True, torch.float32),
        (torch.bfloat16, GPU, False, torch.bfloat16),
        (torch.float16, GPU, False, torch.float16),
        ("bfloat16", GPU, False, torch.float32),
    ],
)
def test_a_checkpoint_keeps_its_dtype_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, own: object, device: torch.device, units: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16_units", lambda: units)  # a machine has only one kind of processor
    assert natural_dtype(own, device) == expected


@pytest.mark.skipif(not _KERNEL_SAYS.exists(), reason="this system has no /proc/cpuinfo")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this version of torch cannot tell")
def test_processor_features_match_the_kernels_report() -> None:
    features = set(re.findall(r"\w+", _KERNEL_SAYS.read_text()))
    assert has_bfloat16_units() == bool(features & {"avx512_bf16", "amx_bf16", "bf16"})


ON_CPU = torch.device("cpu")
# 100 TB of weights.
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


def test_free_cpu_memory_matches_the_systems_report() -> None:
    assert 0 < free_bytes(ON_CPU) <= psutil.virtual_memory().total


def test_memory_cached_by_torch_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mocked GPU of 80 GB: torch has reserved 60 and uses 20 of them, another process uses 10."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10 * 10**9, 80 * 10**9))
    known = {"reserved_bytes.all.current": 60 * 10**9, "allocated_bytes.all.current": 20 * 10**9}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda _device: known)
    assert free_bytes(torch.device("cuda")) == 50 * 10**9


def test_a_model_that_fits_is_accepted(tiny_llama: PreTrainedModel) -> None:
    require_room(tiny_llama.config, torch.float64, ON_CPU)


@pytest.mark.parametrize(("dtype", "halved"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_model_that_does_not_fit_is_refused_with_what_would_help(dtype: torch.dtype, halved: bool) -> None:
    with pytest.raises(ModelError) as refusal:
        require_room(GIANT, dtype, ON_CPU)
    needed = weight_bytes(GIANT, dtype) / 1e9
    name = str(dtype).removeprefix("torch.")
    assert f"the weights take {needed:.1f} GB in {name}" in refusal.value.problem
    assert "GB are free on cpu" in refusal.value.problem
    assert ("dtype='bfloat16'" in str(refusal.value)) == halved
    assert "device_map='auto'" in str(refusal.value)


def test_a_device_map_is_suggested_only_if_it_helps() -> None:
    with pytest.raises(ModelError, match="Next: do something else"):
        require_room(GIANT, torch.float32, ON_CPU, "do something else")


def test_packed_weights_are_not_counted_as_unpacked() -> None:
    packed = LlamaConfig(**(GIANT.to_dict() | {"quantization_config": {"quant_method": "mxfp4"}}))
    require_room(packed, torch.bfloat16, ON_CPU)
