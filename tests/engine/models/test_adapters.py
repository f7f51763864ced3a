"""peft adapters: loaded with their base model, captured, listed in the record, or refused."""

import builtins
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaptionPromptConfig, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import ModelError
from engine.models.adapters import list_adapters
from engine.models.alterations import sample_weights
from engine.records.captures import Provenance
from tests.conftest import family_called
from tests.families import build

PROMPT = "w3 w4 w5 w6"
IDS = torch.tensor([[3, 4, 5, 6]])


def lora(**settings: Any) -> Any:
    known: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    return LoraConfig(**known | {"init_lora_weights": False, "task_type": "CAUSAL_LM"} | settings)


def adapted(model: PreTrainedModel, config: Any = None) -> Any:
    """The model in peft's wrapper, which acts like a transformers model."""
    return get_peft_model(model, config or lora())


@pytest.fixture
def base_folder(tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path / "base"
    tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter_folder(tmp_path: Path, base_folder: Path) -> Path:
    """A LoRA adapter whose configuration, written by peft, names the folder of its base model."""
    model, _, _ = engine.load_model_and_tokenizer(str(base_folder))
    adapted(model).save_pretrained(str(tmp_path / "tuned"))
    return tmp_path / "tuned"


def plain(model: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        states: tuple[Tensor, ...] = model(IDS, output_hidden_states=True, use_cache=False).hidden_states
    return states[1:-1]


def provenance(model: Any, tokenizer: Any) -> Provenance:
    return engine.capture_activations(model, tokenizer, PROMPT)["provenance"]


def assert_captured_as_it_is(model: Any, tokenizer: Any) -> None:
    data = engine.capture_activations(model, tokenizer, PROMPT)
    for layer, expected in enumerate(plain(model)):
        torch.testing.assert_close(data["activations"][layer], expected, rtol=1e-4, atol=1e-4)


def test_an_adapted_model_is_captured_as_adapted(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPT)
    model = adapted(tiny_llama)
    assert_captured_as_it_is(model, tiny_tokenizer)
    after = engine.capture_activations(model, tiny_tokenizer, PROMPT)
    assert not torch.allclose(after["activations"][0], before["activations"][0])
    (found,) = after["provenance"]["adapters"]
    assert (found["name"], found["kind"], found["rank"], found["scales"]) == ("default", "LORA", 4, [2.0])
    assert (found["active"], found["merged"], len(found["weights"])) == (True, False, 64)
    assert after["provenance"]["weights"] == before["provenance"]["weights"]  # those of the base model
    assert after["provenance"]["model"] == before["provenance"]["model"]
    assert "altered" not in after["provenance"]


def change_weights(model: Any) -> None:
    with torch.no_grad():
        next(weight for name, weight in model.named_parameters() if "lora_B" in name).add_(1)


def change_scale(model: Any) -> None:
    model.base_model.model.model.layers[1].self_attn.q_proj.set_scale("default", 3.0)


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        change_scale,
        lambda model: next(w for name, w in model.named_parameters() if "lora_B" in name).data.mul_(20),
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: model.merge_adapter(),
        lambda model: (model.add_adapter("other", lora()), model.set_adapter("other")),
    ],
    ids=["weights", "scale", "data", "disabled", "merged", "switched"],
)
def test_changes_to_an_adapter_are_captured_and_recorded(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, change: Callable[[Any], object]
) -> None:
    model = adapted(tiny_llama)
    before = provenance(model, tiny_tokenizer)
    change(model)
    assert_captured_as_it_is(model, tiny_tokenizer)
    assert provenance(model, tiny_tokenizer)["adapters"] != before["adapters"]


def test_an_adapter_that_was_merged_for_good_leaves_edited_weights(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    provenance(tiny_llama, tiny_tokenizer)
    merged = adapted(tiny_llama).merge_and_unload()
    assert_captured_as_it_is(merged, tiny_tokenizer)
    assert provenance(merged, tiny_tokenizer)["altered"] == ["the weights were edited after the model was loaded"]


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, config: Any
) -> None:
    model = adapted(tiny_llama, config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match=r"a (PROMPT|PREFIX)_TUNING adapter cannot be captured: it prepends virtual"):
        engine.capture_activations(model, tiny_tokenizer, PROMPT)


def test_a_wrapper_that_gives_the_decoder_other_tokens_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """The states of the decoder alone then differ from those of the whole model."""
    model = build(family_called("llama"))
    forward = model.forward

    def with_a_token_more(input_ids: Tensor, **_more: Any) -> Any:
        return forward(input_ids=torch.cat([input_ids[:, :1], input_ids], dim=1))

    model.forward = with_a_token_more
    with pytest.raises(ModelError, match="its decoder receives 12 tokens for a prompt of 11"):
        engine.capture_activations(model, tiny_tokenizer, PROMPT)


def test_an_adapter_folder_loads_the_base_model_with_the_adapter(adapter_folder: Path, base_folder: Path) -> None:
    model, tokenizer, config = engine.load_model_and_tokenizer(str(adapter_folder))
    assert config.source.alias == "tuned"
    assert [adapter["active"] for adapter in config.adapters] == [True]
    assert_captured_as_it_is(model, tokenizer)
    plain_model, _, plain_config = engine.load_model_and_tokenizer(str(base_folder))
    wrapped: Any = PeftModel.from_pretrained(plain_model, str(adapter_folder))
    assert list_adapters(wrapped)[0]["weights"] == list_adapters(model)[0]["weights"]
    assert sample_weights(wrapped) == config.weights == plain_config.weights
    for one, other in zip(plain(model), plain(wrapped), strict=True):
        torch.testing.assert_close(one, other)


def test_an_adapter_in_the_folder_of_its_base_model(adapter_folder: Path, base_folder: Path) -> None:
    shutil.copytree(base_folder, adapter_folder, dirs_exist_ok=True)
    shutil.rmtree(base_folder)
    model, tokenizer, config = engine.load_model_and_tokenizer(str(adapter_folder))
    assert [adapter["active"] for adapter in config.adapters] == [True]
    assert_captured_as_it_is(model, tokenizer)


def test_without_peft_an_adapter_is_refused_with_what_to_install(
    adapter_folder: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the base model is in the same folder and would load without the adapter."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else find(name, *more))
    real = builtins.__import__

    def without_peft(name: str, *more: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError(name)
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"contains a peft adapter \(LORA\).*pip install 'layerscope\[peft\]'"):
            engine.load_model_and_tokenizer(str(adapter_folder))
        shutil.copytree(base_folder, adapter_folder, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "it prepends virtual tokens"),
        ({"base_model_name_or_path": "/nowhere/base"}, "base model .* cannot be found: there is no model at /nowhere"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"alora_invocation_tokens": [5]}, "it takes effect in the middle of a prompt"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_says_why(adapter_folder: Path, changes: dict[str, object], said: str) -> None:
    path = adapter_folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=said):
        engine.load_model_and_tokenizer(str(adapter_folder))


def test_a_damaged_adapter_is_an_error(adapter_folder: Path) -> None:
    weights = adapter_folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="the adapter tuned cannot be loaded"):
        engine.load_model_and_tokenizer(str(adapter_folder))
    (adapter_folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        engine.load_model_and_tokenizer(str(adapter_folder))


def test_a_capture_in_shards_is_not_resumed_with_another_adapter(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"w{3 + i % 100} w{3 + i // 100}\n" for i in range(600)))
    model = adapted(tiny_llama)
    paths = engine.capture_prompt_file(model, tiny_tokenizer, prompts, tmp_path / "mine", positions="last")
    paths.record.unlink()
    sorted(paths.shards.glob("*.safetensors"))[-1].unlink()
    change_weights(model)
    with pytest.raises(engine.LayerscopeError, match="adapters"):
        engine.capture_prompt_file(model, tiny_tokenizer, prompts, tmp_path / "mine", positions="last")


def test_an_adapter_that_lacks_weights_is_refused(adapter_folder: Path) -> None:
    """Otherwise peft leaves them at their random initial values."""
    path = adapter_folder / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: weight for name, weight in weights.items() if "layers.0" in name}, path)
    with pytest.raises(ModelError, match=r"do not match its configuration: model.layers.1.* is missing, and \d+ more"):
        engine.load_model_and_tokenizer(str(adapter_folder))


def test_an_adapter_of_an_adapter_is_refused(adapter_folder: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(adapter_folder, tmp_path / "second"))
    path = second / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(adapter_folder)}))
    with pytest.raises(ModelError, match="is itself an adapter"):
        engine.load_model_and_tokenizer(str(second))


def test_an_adapter_switched_off_during_a_capture_is_detected(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = adapted(tiny_llama)

    def switch(done: int, _total: int) -> None:
        if done == 2:
            model.base_model.disable_adapter_layers()

    prompts = [f"w{3 + i} w{20 + i}" for i in range(4)]
    with pytest.raises(engine.LayerscopeError, match="the model was changed during the capture"):
        engine.capture_activations(model, tiny_tokenizer, prompts, batch_size=1, progress=switch)


def test_an_adapter_outside_the_layers_that_peft_keeps_is_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = adapted(tiny_llama, AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=2))
    with pytest.raises(ModelError, match="are outside the layers and cannot be recorded"):
        engine.capture_activations(model, tiny_tokenizer, PROMPT)


def test_a_renamed_adapter_counts_as_the_same(tiny_llama: PreTrainedModel) -> None:
    one = get_peft_model(tiny_llama, lora(), adapter_name="one")
    hashes = [list_adapters(one)[0]["weights"]]
    weights = {name: weight.clone() for name, weight in one.named_parameters() if ".one." in name}
    other = get_peft_model(build(family_called("llama")), lora(), adapter_name="other")
    other.load_state_dict({name.replace(".one.", ".other."): weight for name, weight in weights.items()}, strict=False)
    assert hashes == [list_adapters(other)[0]["weights"]]


def test_an_adapter_on_offloaded_weights_is_refused(adapter_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"does not fit into memory.*merge the adapter into its base model"):
        engine.load_model_and_tokenizer(str(adapter_folder), device_map="auto", max_memory={"cpu": 0})
