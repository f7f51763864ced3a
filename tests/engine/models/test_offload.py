"""Models larger than their memory limit: with weights on disk, the states are the same bit for bit."""

import gc
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import ModelError, RequestError
from engine.models.alterations import sample_weights
from engine.models.loading import load_model_and_tokenizer
from engine.models.offload import (
    each_module,
    each_parameter,
    gpu_count,
    is_offloaded,
    runs_on_cpu,
    weights_at_hand,
    where_layers_lie,
)
from engine.models.structure import find_blocks
from tests.conftest import Loaded, family_called
from tests.families import build

# Prompts of different lengths, two of them with a shared prefix that is long enough to share.
BEGINNING = "w5 w6 w7 w8 w9 w10 w11 w12"
PROMPTS = [f"{BEGINNING} w13", f"{BEGINNING} w14 w15", "w5", "w20 w21 w22"]

Save = Callable[[str], Path]


@pytest.fixture
def save(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Save:
    """Save a model of a family with `save_pretrained`; the user's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def saved(family: str) -> Path:
        build(family_called(family)).save_pretrained(tmp_path / "mine")
        tiny_tokenizer.save_pretrained(tmp_path / "mine")
        return tmp_path / "mine"

    return saved


def load(folder: Path, share: float | None = None) -> Loaded:
    """Load a model with at most this share of its weights in main memory."""
    if share is None:
        return Loaded(*load_model_and_tokenizer(str(folder), "cpu")[:2])
    size = sum(path.stat().st_size for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    limits: dict[int | str, int | str] = {"cpu": int(size * share)}
    return Loaded(*load_model_and_tokenizer(str(folder), device_map="auto", max_memory=limits)[:2])


def written(tmp_path: Path) -> list[Path]:
    """Weights that were rewritten to the cache."""
    return sorted((tmp_path / "cache" / "layerscope" / "offloaded").glob("*/*"))


def require_same_states(one: Loaded, other: Loaded, prompts: list[str], **how: Any) -> None:
    expected = engine.capture_activations(*one, prompts, **how)["activations"]
    captured = engine.capture_activations(*other, prompts, **how)["activations"]
    assert captured.keys() == expected.keys()
    for layer, states in captured.items():
        assert torch.equal(states, expected[layer]), layer


FAMILIES = {
    "llama": "plain",
    "gpt2": "other names for everything, tied embeddings",
    "opt_350m": "projections around the blocks",
    "gemma2": "norms on both sides, tied embeddings",
    "phi": "attention and MLP side by side",
    "bloom": "no positions",
    "mistral": "a window",
    "mixtral": "experts, which transformers merges",
    "deepseek_v3": "latent attention, shared experts",
    "qwen3_next": "linear attention",
    "mamba": "no attention",
    "gemma3": "a vision tower",
}


# The fast tier tests half of the families with one share, the others with the other.
@pytest.mark.parametrize(
    ("family", "share"),
    [
        pytest.param(family, share, id=f"{family}, {where}", marks=() if number % 2 == way else pytest.mark.slow)
        for number, family in enumerate(FAMILIES)
        for way, (share, where) in enumerate([(0.6, "some in memory"), (0.0, "all on disk")])
    ],
)
def test_states_are_those_of_the_model_in_memory(save: Save, family: str, share: float) -> None:
    folder = save(family)
    whole, spread = load(folder), load(folder, share)
    assert is_offloaded(spread.model)
    assert not is_offloaded(whole.model)
    before = [name for name, weight in spread.model.named_parameters() if weight.is_meta]
    for how in ({"use_hooks": False}, {"use_hooks": True}, {"use_hooks": True, "layers": [0], "prefix_reuse": False}):
        require_same_states(whole, spread, PROMPTS, **how)
    receipts = [engine.capture_activations(*loaded, "w5")["provenance"]["receipt"] for loaded in (whole, spread)]
    assert receipts[1] == receipts[0]
    assert [name for name, weight in spread.model.named_parameters() if weight.is_meta] == before


def test_states_are_the_same_with_a_shared_prefix(save: Save) -> None:
    folder = save("llama")
    whole, spread = load(folder), load(folder, 0.3)
    prompts = [f"{BEGINNING} {' '.join(f'w{i}' for i in range(20, 60))} w{i}" for i in range(60, 90)]
    for how in ({}, {"use_hooks": True}, {"site": "mlp_out"}, {"site": "embed"}, {"batch_size": 3}):
        require_same_states(whole, spread, prompts, positions="last", **how)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "bart", "zamba"])
def test_the_fingerprint_does_not_depend_on_placement(save: Save, family: str) -> None:
    folder = save(family)
    whole = load(folder)
    for share in (0.6, 0.0):
        spread = load(folder, share)
        assert sample_weights(spread.model) == sample_weights(whole.model)
    names = [name for name, _ in weights_at_hand(whole.model)]
    assert names == [name for name, _ in whole.model.named_parameters()]
    with torch.no_grad():
        next(whole.model.parameters()).mul_(1.01)
    assert sample_weights(spread.model) != sample_weights(whole.model)


def test_modules_that_appear_twice_are_counted_once(tiny_llama: PreTrainedModel) -> None:
    blocks = find_blocks(tiny_llama).blocks
    blocks[2] = blocks[0]
    assert each_module(tiny_llama) == [*tiny_llama.modules()]
    assert {id(weight) for weight in each_parameter(tiny_llama)} == {id(weight) for weight in tiny_llama.parameters()}


def test_a_capture_of_a_file_is_resumed_with_other_placement(save: Save, tmp_path: Path) -> None:
    folder = save("llama")
    whole, spread = load(folder), load(folder, 0.3)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    for loaded, name in ((whole, "one"), (spread, "other"), (spread, "begun")):
        engine.capture_prompt_file(*loaded, tmp_path / "prompts.txt", name, store=tmp_path)
    shards = [sorted((tmp_path / name).glob("*.safetensors")) for name in ("one", "other")]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    (tmp_path / "begun.json").unlink()
    engine.capture_prompt_file(*whole, tmp_path / "prompts.txt", "begun", store=tmp_path)


@pytest.mark.parametrize("family", ["dbrx", "jetmoe", "longcat_flash"])
def test_a_family_that_uses_weights_of_uncalled_modules_is_refused(save: Save, family: str) -> None:
    """For longcat_flash, torch would compute from arbitrary memory without an error."""
    folder = save(family)
    load(folder)
    with pytest.raises(ModelError, match="uses the weights of a module without calling it"):
        load(folder, 0.6)


def test_safetensors_weights_are_read_in_place(save: Save, tmp_path: Path) -> None:
    spread = load(save("llama"), 0.0)
    assert written(tmp_path) == []
    assert list((tmp_path / "cache" / "layerscope" / "offloaded").iterdir()) == []
    require_same_states(spread, spread, PROMPTS)


def as_bin(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_rewritten_weights_exist_as_long_as_the_model(save: Save, tmp_path: Path, family: str) -> None:
    """Weights that transformers cannot read on demand: torch files, and experts that it merges."""
    folder = save(family)
    if family == "llama":
        as_bin(folder)
    whole, spread = load(folder), load(folder, 0.3)
    assert written(tmp_path)
    require_same_states(whole, spread, PROMPTS)
    del spread
    gc.collect()
    assert list((tmp_path / "cache" / "layerscope" / "offloaded").iterdir()) == []


def test_leftovers_of_a_killed_process_are_deleted(save: Save, tmp_path: Path) -> None:
    folder = save("llama")
    parent = tmp_path / "cache" / "layerscope" / "offloaded"
    dead = max(psutil.pids()) + 10**6
    for name in (f"{socket.gethostname()}-{dead}-x", f"{socket.gethostname()}-{os.getpid()}-x", f"elsewhere-{dead}-x"):
        (parent / name).mkdir(parents=True)
        (parent / name / "weight.safetensors").touch()
    load(folder, 0.3)
    left = sorted(path.name for path in parent.iterdir())
    assert left == sorted([f"{socket.gethostname()}-{os.getpid()}-x", f"elsewhere-{dead}-x"])


def test_a_failed_load_leaves_nothing_behind(save: Save, tmp_path: Path) -> None:
    folder = save("llama")
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model_and_tokenizer(str(folder), device_map="auto", max_memory={"cpu": 0})
    assert list((tmp_path / "cache" / "layerscope" / "offloaded").iterdir()) == []


def test_a_full_disk_is_named(save: Save, tmp_path: Path) -> None:
    folder = save("mixtral")
    resource = pytest.importorskip("resource")
    found = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, found[1]))
    try:
        with pytest.raises(ModelError, match=r"cannot write .*offloaded: .*File too large.* free some disk space"):
            load(folder, 0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, found)
    assert list((tmp_path / "cache" / "layerscope" / "offloaded").iterdir()) == []


def test_the_placement_of_layers_is_logged(
    save: Save, tiny_llama: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save("llama")
    with caplog.at_level("INFO", logger="engine"):
        spread = load(folder, 0.6)
    assert "layers 0 in main memory, 1-3 on disk" in caplog.text
    assert "meta device" not in caplog.text  # accelerate's own log
    assert runs_on_cpu(spread.model)
    assert where_layers_lie(tiny_llama, "model.layers") == ""
    assert where_layers_lie(load(folder, 100.0).model, "model.layers") == ""
    tiny_llama.hf_device_map = {"model.embed_tokens": 0, "model.layers": 1, "lm_head": "cpu"}  # type: ignore[assignment]
    assert where_layers_lie(tiny_llama, "model.layers") == "layers 0-3 on GPU 1"
    assert (gpu_count(tiny_llama), gpu_count(spread.model)) == (2, 0)
    tiny_llama.hf_device_map = {"": "cpu", "model.layers.1.mlp": "disk", "model.layers.1.self_attn": 0}  # type: ignore[assignment]
    assert where_layers_lie(tiny_llama, "model.layers") == (
        "layers 0 in main memory, 1 on GPU 0 and on disk, 2-3 in main memory"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_memory": {"cpu": "1GB"}}, "a memory limit requires a device map"),
        ({"device_map": "auto", "device": "cpu"}, "a device map and the device 'cpu' exclude each other"),
        ({"device_map": "atuo"}, "no device map 'atuo'.*did you mean 'auto'"),
        ({"device_map": "auto", "max_memory": {"cpu": "lots"}}, "'lots' is not a size"),
        ({"device_map": "auto", "max_memory": {99: "1GB"}}, "there is no GPU 99"),
    ],
)
def test_invalid_options_are_refused(save: Save, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        load_model_and_tokenizer(str(save("llama")), **options)


def test_without_a_gpu_the_dtype_is_that_of_the_cpu(save: Save, tiny_llama: PreTrainedModel) -> None:
    folder = save("llama")
    tiny_llama.to(torch.float16).save_pretrained(folder)  # type: ignore[arg-type]  # transformers wraps it
    assert {weight.dtype for weight in load(folder, 0.3).model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_the_default_model_with_weights_on_disk(smollm2: Loaded) -> None:
    model, tokenizer, config = load_model_and_tokenizer("smollm2", device_map="auto", max_memory={"cpu": "200MB"})
    offloaded = {name.split(".")[2] for name, weight in model.named_parameters() if weight.is_meta and "layers" in name}
    assert len(offloaded) == 25
    assert sample_weights(model) == sample_weights(smollm2.model)
    prompts = ["Tell me a story", "Tell me a story about the sea, and about the people who live beside it", "Hello"]
    for how in ({}, {"use_hooks": True, "positions": "last", "layers": [3, 20]}, {"prefix_reuse": False}):
        require_same_states(smollm2, Loaded(model, tokenizer), prompts, **how)
    assert config.receipt == engine.capture_activations(*smollm2, "Hello")["provenance"]["receipt"]
