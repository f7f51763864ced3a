"""Loading: the real default model, folders and GGUF files; errors that name what is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import engine
from engine.errors import LayerscopeError, ModelError, RequestError
from engine.models.devices import has_bfloat16_units
from engine.models.loading import load_model_and_tokenizer
from engine.models.registry import find_source
from engine.records.captures import ActivationData
from engine.records.models import ModelConfig
from tests.families import REFUSED, VOCAB, WIDTH, build

Save = Callable[[PreTrainedModel], Path]


@pytest.fixture
def save(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Save:
    """Save a model and a tokenizer with `save_pretrained` to a folder called "mine"."""

    def saved(model: PreTrainedModel) -> Path:
        folder = tmp_path / "mine"
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return saved


@pytest.fixture
def folder(save: Save, tiny_llama: PreTrainedModel) -> Path:
    """A tiny llama with four blocks."""
    return save(tiny_llama)


def test_the_default_model(smollm2_config: tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]) -> None:
    model, tokenizer, config = smollm2_config
    assert (config.num_layers, config.hidden_size) == (30, 576)
    assert (config.source.alias, config.source.kind) == ("smollm2", "package")
    assert config.receipt["blocks"] == "model.layers"
    assert (config.receipt["num_layers"], config.receipt["hidden_size"]) == (30, 576)
    assert 0 <= config.receipt["batched_error"] <= config.receipt["tolerance"]
    assert not any(module.training for module in model.modules())
    assert tokenizer.chat_template
    ids = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
    assert tokenizer.decode(model(**ids).logits[0, -1].argmax()) == " Paris"


def test_the_default_model_in_bfloat16() -> None:
    model, tokenizer, config = load_model_and_tokenizer("smollm2", dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert config.receipt["dtype"] == "bfloat16"
    data = engine.capture_activations(model, tokenizer, "Hello", layers=[15])
    assert data["activations"][15].dtype == torch.bfloat16
    assert data["provenance"]["dtype"] == "bfloat16"


def test_a_folder_has_the_weights_that_were_saved(folder: Path, tiny_llama: PreTrainedModel) -> None:
    model, tokenizer, config = load_model_and_tokenizer(str(folder), "cpu")
    assert (config.source.alias, config.source.kind, config.source.revision) == ("mine", "folder", None)
    assert (config.num_layers, config.hidden_size) == (4, WIDTH)
    loaded = model.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in tiny_llama.state_dict().items())
    assert tokenizer("w5 w6")["input_ids"] == [5, 6]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.bfloat16 if has_bfloat16_units() else torch.float32),
        ("float64", torch.float64),
        (torch.float16, torch.float16),
    ],
)
def test_the_dtype_on_the_cpu(
    save: Save, tiny_llama: PreTrainedModel, dtype: str | torch.dtype, expected: torch.dtype
) -> None:
    folder = save(tiny_llama.to(torch.bfloat16))  # type: ignore[arg-type]  # transformers wraps `to` and loses its type
    model, _, _ = load_model_and_tokenizer(str(folder), "cpu", dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


@pytest.mark.parametrize("device", ["warp", "cpu:x", "cuda:99", "meta"])
def test_a_device_that_cannot_be_used(folder: Path, device: str) -> None:
    with pytest.raises(RequestError, match=f"the device '{device}' cannot be used here"):
        load_model_and_tokenizer(str(folder), device)


def test_a_dtype_that_does_not_exist(folder: Path) -> None:
    with pytest.raises(RequestError, match="no dtype 'float23'; did you mean 'float32'"):
        load_model_and_tokenizer(str(folder), dtype="float23")


def states(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]) -> ActivationData:
    return engine.capture_activations(loaded[0], loaded[1], ["w5 w6 w7", "w8"])


def placed(*kept: str) -> dict[str, Any]:
    """A device map that leaves the last two blocks on disk."""
    rest = {f"model.{name}": "cpu" for name in ("embed_tokens", "rotary_emb", "norm", *kept)}
    return {"lm_head": "cpu", "model.layers.2": "disk", "model.layers.3": "disk"} | rest


@pytest.mark.parametrize("device_map", ["auto", placed("layers.0", "layers.1")], ids=["auto", "disk"])
def test_accelerate_places_the_weights(folder: Path, device_map: str | dict[str, Any]) -> None:
    whole = load_model_and_tokenizer(str(folder), "cpu")
    spread = load_model_and_tokenizer(str(folder), device_map=device_map)
    offloaded = [name for name, parameter in spread[0].named_parameters() if parameter.device.type == "meta"]
    assert {name.split(".")[2] for name in offloaded} == ({"2", "3"} if isinstance(device_map, dict) else set())
    assert spread[2].receipt["num_layers"] == 4
    expected = states(whole)["activations"]
    for layer, captured in states(spread)["activations"].items():
        torch.testing.assert_close(captured, expected[layer])


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "embed", "final_norm"])
def test_sites_are_read_from_offloaded_weights(folder: Path, site: str) -> None:
    model, tokenizer, config = load_model_and_tokenizer(str(folder), device_map=placed("layers.0", "layers.1"))
    assert (config.receipt["attn_out"], config.receipt["mlp_out"]) == ("self_attn", "mlp")
    whole = load_model_and_tokenizer(str(folder), "cpu")
    expected = engine.capture_activations(whole[0], whole[1], "w5 w6 w7", site=site)["activations"]
    for _ in range(2):  # a pass that stops early leaves the weights offloaded
        captured = engine.capture_activations(model, tokenizer, "w5 w6 w7", site=site)["activations"]
        for layer, states_read in captured.items():
            torch.testing.assert_close(states_read, expected[layer])


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"there is no model at {tmp_path / 'nowhere'}: no such file or folder"):
        load_model_and_tokenizer(str(tmp_path / "nowhere"))


def cut_the_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def remove_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_the_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type":')


def name_an_unknown_family(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "unheard"}')


def remove_the_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def take_a_newer_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("WordLevel", "WordLevelTwo"))


def take_a_pickle_that_holds_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Path}, folder / "pytorch_model.bin")


def configured(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return edit


def quantized(method: str, **fields: Any) -> Callable[[Path], None]:
    return configured(quantization_config={"quant_method": method, **fields})


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (cut_the_weights, "header: .*not fully covered"),
        (remove_the_weights, r"model\.safetensors"),
        (break_the_config, r"config\.json' is not a valid JSON file"),
        (name_an_unknown_family, "`unheard`"),
        (remove_the_tokenizer, "tokenizer"),
        (take_a_newer_tokenizer, "untagged enum.*newer version of tokenizers.*pip install --upgrade"),
        (take_a_pickle_that_holds_code, "Weights only load failed.*safetensors"),
        (configured(dtype="bf16"), "has no attribute 'bf16'"),
        (configured(hidden_act="swoosh"), "'swoosh' is missing, or transformers .* does not know it"),
        (configured(rope_scaling={"type": "su"}, rope_parameters=None), "'su' is missing, or transformers"),
        (
            configured(num_attention_heads=5),
            r"hidden size \(32\) is not a multiple of .* heads \(5\)",
        ),
        (configured(num_hidden_layers="four"), "four"),
        (quantized("bitsandbytes", load_in_4bit=True), "requires bitsandbytes.*Next: pip install bitsandbytes"),
        (quantized("gptq", bits=4), "Next: pip install gptqmodel optimum"),
        (quantized("awq", bits=4, group_size=128), r"Next: pip install gptqmodel\."),
        (quantized("compressed-tensors", format="pack-quantized", config_groups={}), "pip install compressed-tensors"),
    ],
)
def test_an_incomplete_folder(folder: Path, break_it: Callable[[Path], None], said: str) -> None:
    break_it(folder)
    with pytest.raises(ModelError, match=f"mine cannot be loaded from {folder}: .*{said}"):
        load_model_and_tokenizer(folder)


def test_missing_tensors_are_refused_instead_of_randomized(folder: Path) -> None:
    """By itself, transformers fills missing tensors with random values and only warns."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model_and_tokenizer(str(folder))


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ModelError, match=r"mlp\.\w+_proj\.weight"):
        load_model_and_tokenizer(str(folder))


def test_a_masked_model_is_refused(save: Save) -> None:
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    folder = save(BertForMaskedLM(config))
    with pytest.raises(ModelError, match="mine is not a causal language model: its class is BertForMaskedLM"):
        load_model_and_tokenizer(str(folder))


def test_a_sequence_to_sequence_model_is_refused(save: Save) -> None:
    config = T5Config(vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    folder = save(T5ForConditionalGeneration(config))
    with pytest.raises(
        ModelError, match="mine is not a causal language model: its class is T5ForConditionalGeneration"
    ):
        load_model_and_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemma3n_text", "fails the load check: the output of block 0 has shape"),
        ("inkling2_text", "load check: the output of the last block is not the input of the final norm"),
        ("rwkv", "cannot be captured: its first forward pass rescales the weights"),
    ],
)
def test_a_family_that_breaks_a_promise_is_refused(save: Save, name: str, said: str) -> None:
    family = next(family for family in REFUSED if family.name == name)
    folder = save(build(family))
    with pytest.raises(ModelError, match=said):
        load_model_and_tokenizer(str(folder))


def test_a_model_that_does_not_fit_is_refused_before_reading_its_weights(tmp_path: Path) -> None:
    LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the weights take 282\.2 GB in float32, but only [\d.]+ GB are free on cpu"):
        load_model_and_tokenizer(str(tmp_path), "cpu")


@pytest.mark.parametrize("name", ["owner/two words", "owner/na--me", "owner/-name"])
def test_an_invalid_hub_id_is_a_readable_error(name: str) -> None:
    with pytest.raises(LayerscopeError, match=name):
        load_model_and_tokenizer(name)


@pytest.fixture
def packaged_gguf() -> Path:
    """The GGUF file of the default model."""
    source = find_source("smollm2")
    return Path(source.location) / str(source.gguf_file)


def test_a_gguf_file_that_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_text("not GGUF")
    with pytest.raises(ModelError, match=r"mine\.gguf is not a GGUF file"):
        load_model_and_tokenizer(str(tmp_path / "mine.gguf"))


@pytest.mark.parametrize("size", [5_000_000, 10_000, 10], ids=["in the weights", "in the header", "at once"])
def test_a_truncated_gguf_file_leaves_nothing_behind(
    tmp_path: Path, packaged_gguf: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with packaged_gguf.open("rb") as whole:
        (tmp_path / "mine.gguf").write_bytes(whole.read(size))
    with pytest.raises(ModelError, match=r"mine\.gguf cannot be read: "):
        load_model_and_tokenizer(str(tmp_path / "mine.gguf"))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.name not in {"layerscope", "converted"}] == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=f"cannot write .* to {tmp_path}/file/layerscope/converted: .*Not a directory"):
        load_model_and_tokenizer("smollm2")
