"""A model that changed after its check is captured in its current state, and the record lists the changes."""

import gc
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import ModelError
from engine.models.alterations import find_alterations, hash_configuration
from engine.models.structure import find_blocks
from engine.records.captures import model_differences
from tests.conftest import Loaded, family_called
from tests.families import build, with_other_positions

PROMPTS = ["w3 w4 w5 w6 w7", "w3 w4 w5 w8 w9 w10", "w3 w4 w11"]  # with shared prefixes, so they would be packed


class Steered(nn.Module):
    """A block with a vector added to its output, as steering libraries wrap it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.add = block, 0.0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.block(*args, **kwargs)
        return output + self.add


def wrap(model: PreTrainedModel) -> None:
    steered = Steered(find_blocks(model).blocks[1])
    find_blocks(model).blocks[1] = steered
    steered.add = 5.0


def hook_after(model: PreTrainedModel) -> None:
    find_blocks(model).blocks[1].register_forward_hook(lambda _module, _args, output: output + 5.0)


def hook_behind_the_report(model: PreTrainedModel) -> None:
    """A hook whose effect is missing from the hidden states that the model reports."""
    model(torch.tensor([[3, 4]]), output_hidden_states=True)
    hook_after(model)


def hook_before(model: PreTrainedModel) -> None:
    find_blocks(model).blocks[2].register_forward_pre_hook(lambda _module, args: (args[0] * 2, *args[1:]))


def hook_before_the_norm(model: PreTrainedModel) -> None:
    norm = find_blocks(model).final_norm
    assert norm is not None
    norm.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))


def hook_inside(model: PreTrainedModel) -> None:
    attention = find_blocks(model).blocks[1].get_submodule("self_attn")
    attention.register_forward_hook(lambda _module, _args, output: (output[0] * 3, *output[1:]))


def hook_at_the_last_token(model: PreTrainedModel) -> None:
    """In a padded or packed row, the last position belongs to only one prompt or to padding."""

    def add(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :-1], output[:, -1:] + 5.0], dim=1)

    find_blocks(model).blocks[1].register_forward_hook(add)


def hook_over_the_batch(model: PreTrainedModel) -> None:
    find_blocks(model).blocks[0].register_forward_hook(lambda _m, _a, output: output + output.mean(dim=(0, 1)))


def replace_a_forward(model: PreTrainedModel) -> None:
    block = find_blocks(model).blocks[1]
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs) + 5.0


def edit_weights(model: PreTrainedModel) -> None:
    with torch.no_grad():
        find_blocks(model).blocks[1].get_submodule("mlp.down_proj").get_parameter("weight").mul_(3)


def edit_data(model: PreTrainedModel) -> None:
    """Bypass torch's version counter."""
    find_blocks(model).blocks[1].get_submodule("mlp.down_proj").get_parameter("weight").data[3] = 0.5


def hook_through_accelerate(model: PreTrainedModel) -> None:
    class Doubles(ModelHook):  # type: ignore[misc]  # accelerate is not typed
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:  # noqa: ARG002 - accelerate's signature
            return output * 2

    add_hook_to_module(find_blocks(model).blocks[1].get_submodule("mlp"), Doubles())


CHANGES = [
    *(wrap, hook_after, hook_behind_the_report, hook_before, hook_before_the_norm, hook_inside),
    *(hook_at_the_last_token, hook_over_the_batch, replace_a_forward, edit_weights, edit_data),
    hook_through_accelerate,
]


def received(model: PreTrainedModel, ids: list[int]) -> list[Tensor]:
    """The inputs of blocks 1 and up and of the final norm in a plain pass of one prompt, hooks included."""
    seen: list[Tensor] = []
    norm = find_blocks(model).final_norm
    assert norm is not None
    with ExitStack() as stack, torch.no_grad():
        for part in (*list(find_blocks(model).blocks)[1:], norm):
            hook = part.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
            stack.callback(hook.remove)
        model(torch.tensor([ids]), use_cache=False)
    return seen


@pytest.mark.parametrize("use_hooks", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_the_captured_state_is_what_the_next_block_receives(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    change: Callable[[PreTrainedModel], None],
    use_hooks: bool,
) -> None:
    before = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, use_hooks=use_hooks)
    change(tiny_llama)
    after = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, use_hooks=use_hooks)
    for row, prompt in enumerate(PROMPTS):
        ids = [int(word[1:]) for word in prompt.split()]
        for layer, expected in enumerate(received(tiny_llama, ids)):
            torch.testing.assert_close(
                after["activations"][layer][row : row + 1, -len(ids) :], expected, rtol=1e-4, atol=1e-4
            )
    moved = [not torch.allclose(after["activations"][layer], states) for layer, states in before["activations"].items()]
    assert True in moved
    assert moved == sorted(moved)  # from the changed layer on
    assert "altered" not in before["provenance"]
    assert after["provenance"]["altered"]


@pytest.mark.parametrize("change", CHANGES)
def test_both_modes_give_the_same_bits(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, change: Callable[[PreTrainedModel], None]
) -> None:
    change(tiny_llama)
    one = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, use_hooks=False)["activations"]
    two = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, use_hooks=True)["activations"]
    assert all(torch.equal(one[layer], two[layer]) for layer in one)


def edit_one_value(model: PreTrainedModel) -> None:
    with torch.no_grad():
        find_blocks(model).blocks[1].get_submodule("mlp.down_proj").get_parameter("weight")[3, 5] += 50


def replace_the_activation(model: PreTrainedModel) -> None:
    for block in find_blocks(model).blocks:
        block.get_submodule("mlp").register_module("act_fn", nn.ReLU())


def cast(model: PreTrainedModel) -> None:
    model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers wraps `to` and loses its type


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit_one_value, "the weights were edited after the model was loaded"),
        (replace_the_activation, "model.layers.0.mlp.act_fn is a torch.nn.modules.activation.ReLU and was a"),
        (cast, "the weights were cast from float32 to bfloat16"),
        (wrap, f"model.layers.1 is a {__name__}.Steered"),
        (hook_before, f"model.layers.2 has the hook {__name__}.hook_before.<locals>.<lambda>"),
        (replace_a_forward, f"model.layers.1 has the forward {__name__}.replace_a_forward"),
        (edit_weights, "the weights were edited after the model was loaded"),
        (
            hook_through_accelerate,
            f"model.layers.1.mlp has the hook {__name__}.hook_through_accelerate",
        ),
    ],
)
def test_the_record_lists_the_alterations(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    change: Callable[[PreTrainedModel], None],
    said: str,
) -> None:
    engine.capture_activations(tiny_llama, tiny_tokenizer, "w5")
    change(tiny_llama)
    data = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w6")
    assert any(said in one for one in data["provenance"]["altered"]), data["provenance"]["altered"]


def test_the_record_tells_models_apart_that_differ_in_their_configuration(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    other = with_other_positions(tiny_llama)
    one, two = (engine.capture_activations(model, tiny_tokenizer, "w5 w6 w7") for model in (tiny_llama, other))
    assert not torch.allclose(one["activations"][3], two["activations"][3])
    assert one["provenance"]["weights"] == two["provenance"]["weights"]
    [(field, *_)] = model_differences(one["provenance"], two["provenance"])
    assert field == "configuration"


def test_multipliers_of_outputs_are_part_of_the_configuration(tiny_llama: PreTrainedModel) -> None:
    before = hash_configuration(tiny_llama)
    tiny_llama.config.update({"output_multiplier": 0.5})
    assert hash_configuration(tiny_llama) != before


def test_another_dtype_is_one_difference(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Its weights have another fingerprint, because they are rounded."""
    one = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5")["provenance"]
    two = one | {"dtype": "bfloat16", "weights": "0" * 64}
    assert [field for field, *_ in model_differences(one, two)] == ["dtype"]
    unknown = one | {"versions": {}, "configuration": "0" * 64}
    assert not model_differences(one, unknown)


def test_a_configuration_is_the_same_if_only_what_affects_no_state_changes(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5")["provenance"]
    changes = {
        "use_cache": False,
        "tokenizer_class": "Other",
        "id2label": {0: "a", "b": 1},
        "pad_token_id": 5,
        "attention_dropout": 0.1,
        "output_hidden_states": True,
    }
    tiny_llama.config.update(changes)
    after = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5")["provenance"]
    assert before["configuration"] == after["configuration"]


def test_a_hook_on_every_module_of_the_process_counts(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda _module, _args, _output: None)
    try:
        altered = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w6")["provenance"]["altered"]
    finally:
        hook.remove()
    assert altered[0].startswith("every module has the hook tests.")
    assert "altered" not in engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w6")["provenance"]


def test_an_undone_change_leaves_no_trace(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    first = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS)
    hook = find_blocks(tiny_llama).blocks[1].register_forward_hook(lambda _module, _args, output: output + 5.0)
    engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS)
    hook.remove()
    again = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS)
    assert again["provenance"] == first["provenance"]
    assert all(torch.equal(again["activations"][layer], states) for layer, states in first["activations"].items())


def test_blocks_that_no_longer_run_in_order_are_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine.capture_activations(tiny_llama, tiny_tokenizer, "w5")
    find_blocks(tiny_llama).blocks[2] = find_blocks(tiny_llama).blocks[1]
    with pytest.raises(ModelError, match="its blocks do not each run once, in order"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, "w5")


def test_captures_of_a_changed_model_are_not_compared_silently(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w6")
    edit_weights(tiny_llama)
    after = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w7")
    with pytest.raises(engine.LayerscopeError, match=r"they differ in altered .*, weights"):
        engine.compute_contrastive_diff(before, after)


def hook_that_knows_the_model(model: PreTrainedModel) -> None:
    def look(_module: nn.Module, _args: Any, _output: Any) -> None:
        assert not model.training

    find_blocks(model).blocks[1].register_forward_hook(look)


def test_a_model_is_not_kept_alive_by_its_description(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(family_called("llama"))
    hook_that_knows_the_model(model)
    engine.capture_activations(model, tiny_tokenizer, "w5")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_the_default_model_is_not_altered(smollm2: Loaded) -> None:
    assert find_alterations(smollm2.model) == []


def test_packed_weights_in_buffers_count(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    part = find_blocks(tiny_llama).blocks[1].get_submodule("mlp")
    part.register_buffer("packed", torch.ones(8))
    before = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w6")["provenance"]
    part.get_buffer("packed").mul_(2)
    after = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w6")["provenance"]
    assert before["weights"] != after["weights"]
    assert after["altered"] == ["the weights were edited after the model was loaded"]


def hook_that_adds(model: PreTrainedModel, amount: float) -> None:
    find_blocks(model).blocks[1].register_forward_hook(lambda _module, _args, output: output + amount)


def test_hooks_of_one_name_may_do_different_things(
    tmp_path: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A capture with such code is therefore neither compared silently nor resumed."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"w{3 + i % 100} w{3 + i // 100}\n" for i in range(600)))
    hook_that_adds(tiny_llama, 5.0)
    one = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w6")
    other = engine.capture_activations(tiny_llama, tiny_tokenizer, "w5 w7")
    with pytest.raises(engine.LayerscopeError, match="they differ in altered"):
        engine.compute_contrastive_diff(one, other)
    paths = engine.capture_prompt_file(tiny_llama, tiny_tokenizer, prompts, tmp_path / "mine")
    paths.record.unlink()
    with pytest.raises(engine.LayerscopeError, match="code was added to the model, and layerscope cannot check"):
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, prompts, tmp_path / "mine")


@pytest.mark.parametrize("change", [edit_weights, hook_after])
def test_a_model_that_is_changed_between_two_shards_is_refused(
    tmp_path: Path,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    change: Callable[[PreTrainedModel], None],
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"w{3 + i % 100} w{3 + i // 100}\n" for i in range(600)))
    told: list[int] = []

    def between(done: int, _total: int) -> None:
        if done == 512 and told.count(512) == 1:  # between the first shard and the second
            change(tiny_llama)
        told.append(done)

    with pytest.raises(engine.LayerscopeError, match="the model was changed during the capture"):
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, prompts, tmp_path / "mine", progress=between)
    assert len(list((tmp_path / "mine").glob("*.safetensors"))) == 1
