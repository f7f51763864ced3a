"""The load check refuses a model that breaks an assumption and names it; its receipt holds measurements."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from engine.errors import CaptureError, ModelError
from engine.models import description
from engine.models.check import TOLERANCE, check_model
from engine.models.description import describe_model
from engine.models.structure import find_blocks
from engine.records.models import Receipt
from tests.conftest import family_called, framework_hook
from tests.families import build


def test_the_receipt_names_the_modules(tiny_llama: PreTrainedModel) -> None:
    receipt = check_model(tiny_llama)
    assert receipt["blocks"] == "model.layers"
    assert receipt["final_norm"] == "model.norm"
    assert (receipt["attn_out"], receipt["mlp_out"]) == ("self_attn", "mlp")
    assert (receipt["num_layers"], receipt["hidden_size"], receipt["dtype"]) == (4, 32, "float32")
    assert 0 <= receipt["batched_error"] < receipt["tolerance"] == TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_pass_within_their_tolerance(tiny_llama: PreTrainedModel, dtype: torch.dtype) -> None:
    receipt = check_model(tiny_llama.to(dtype))  # type: ignore[arg-type]  # transformers wraps `to` and loses its type
    assert receipt["batched_error"] <= TOLERANCE[dtype]
    assert (receipt["attn_out"], receipt["mlp_out"]) == ("self_attn", "mlp")


class _OwnDecoder(LlamaModel):
    """A decoder with a custom architecture, whose code may break an assumption between or around its blocks."""

    between, before_norm, mixed = 1.0, 0.0, 0.0

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **_more: Any) -> Any:
        states = self.embed_tokens(input_ids)
        positions = torch.arange(states.shape[1])[None] if position_ids is None else position_ids
        rotary, seen = self.rotary_emb(states, positions), [states]
        for number, block in enumerate(self.layers):
            states = states * (self.between if number == 2 else 1.0)
            states = block(states + self.mixed * states.mean(dim=0, keepdim=True), position_embeddings=rotary)
            seen.append(states)
        final = self.norm(states + self.before_norm)
        return BaseModelOutputWithPast(last_hidden_state=final, hidden_states=(*seen[:-1], final))


class _OwnModel(LlamaForCausalLM):
    """A model around such a decoder."""


def own_model(dtype: torch.dtype = torch.float32, breaks: dict[str, float] | None = None) -> PreTrainedModel:
    model: Any = build(family_called("llama")).to(dtype)  # type: ignore[arg-type]  # transformers wraps `to`, loses its type
    model.__class__, model.model.__class__ = _OwnModel, _OwnDecoder
    for name, value in (breaks or {}).items():
        setattr(model.model, name, value)
    own: PreTrainedModel = model
    return own


def test_a_valid_custom_architecture_is_not_an_alteration() -> None:
    model = own_model()
    assert check_model(model)["blocks"] == "model.layers"
    assert describe_model(model).added == ()


def test_sublayers_are_verified_by_their_sum_not_their_names(tiny_llama: PreTrainedModel) -> None:
    """A model without them passes the other checks."""
    find_blocks(tiny_llama).blocks[2].register_forward_hook(lambda _module, _args, output: output * 1.0001)
    receipt = check_model(tiny_llama)
    assert (receipt["attn_out"], receipt["mlp_out"]) == (None, None)


def test_the_check_leaves_no_hook_behind(tiny_llama: PreTrainedModel) -> None:
    check_model(tiny_llama)
    hooks = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    assert not any(getattr(module, name) for module in tiny_llama.modules() for name in hooks)


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        ({"between": 2.0}, "the output of block 1 is not the input of block 2"),
        ({"before_norm": 1.0}, "the output of the last block is not the input of the final norm"),
    ],
)
def test_a_broken_promise_is_named(breaks: dict[str, float], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        check_model(own_model(breaks=breaks))


def test_damaged_weights_are_named(tiny_llama: PreTrainedModel) -> None:
    list(find_blocks(tiny_llama).blocks[1].parameters())[-1].data.fill_(float("nan"))  # the norm before the MLP
    with pytest.raises(ModelError, match=r"the output of block 1 contains non-finite values"):
        check_model(tiny_llama)


class _Mixing(nn.Identity):
    """A custom module that reads the other prompts of a batch."""

    def forward(self, states: Tensor) -> Tensor:
        return states + states.mean(dim=0, keepdim=True)


def mixing_model(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = own_model(dtype)
    block = find_blocks(model).blocks[1]
    block.register_module("mlp", nn.Sequential(_Mixing(), block.get_submodule("mlp")))
    return model


@pytest.mark.parametrize(("dtype", "said"), [(torch.bfloat16, "dtype='float32'"), (torch.float32, "another family")])
def test_a_model_that_attends_to_other_prompts_is_refused(dtype: torch.dtype, said: str) -> None:
    """Half precision may be the cause."""
    with pytest.raises(ModelError, match=said) as refusal:
        check_model(mixing_model(dtype))
    assert "padding and batching change a token's state" in str(refusal.value)


def test_a_model_without_a_list_of_blocks_is_refused(tiny_llama: PreTrainedModel) -> None:
    tiny_llama.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match=r"7 decoder blocks of \w+ \(module lists of that length: none\)"):
        find_blocks(tiny_llama)


def test_a_list_inside_the_blocks_is_not_taken_for_them(tiny_llama: PreTrainedModel) -> None:
    blocks = find_blocks(tiny_llama).blocks
    blocks[0].register_module("experts", nn.ModuleList(nn.Identity() for _ in blocks))
    assert find_blocks(tiny_llama).blocks is blocks


def test_two_lists_of_that_length_in_the_decoder_are_refused(tiny_llama: PreTrainedModel) -> None:
    more = nn.ModuleList(nn.Identity() for _ in find_blocks(tiny_llama).blocks)
    tiny_llama.get_decoder().register_module("more", more)
    with pytest.raises(ModelError, match=r"module lists of that length: model\.layers, model\.more"):
        find_blocks(tiny_llama)


def test_a_vision_tower_of_the_same_depth_is_not_taken_for_the_decoder() -> None:
    assert find_blocks(build(family_called("gemma3"))).path == "model.language_model.layers"


def test_a_users_model_is_checked_again_only_after_a_change(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[PreTrainedModel] = []

    def count(model: PreTrainedModel) -> Receipt:
        checked.append(model)
        return check_model(model)

    monkeypatch.setattr(description, "check_model", count)
    first = description.examine_model(tiny_llama)
    assert first.config.source.kind == "given"
    assert description.examine_model(tiny_llama) == first
    assert len(checked) == 1
    hook = find_blocks(tiny_llama).blocks[0].register_forward_hook(lambda _module, _args, output: output + 1)
    assert "model.layers.0 has the hook" in description.examine_model(tiny_llama).config.added[0]
    assert len(checked) == 2
    hook.remove()
    assert description.examine_model(tiny_llama).config.added == ()


def test_nondeterministic_code_is_named(tiny_llama: PreTrainedModel) -> None:
    noise = torch.Generator().manual_seed(0)

    def add_noise(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + 10 * torch.randn(output.shape, generator=noise)

    find_blocks(tiny_llama).blocks[0].register_forward_hook(add_noise)
    with pytest.raises(ModelError, match=r"with the code added to it.*remove the added code: model.layers.0"):
        check_model(tiny_llama)


def test_a_block_that_outputs_zeros_is_named(tiny_llama: PreTrainedModel) -> None:
    find_blocks(tiny_llama).blocks[1].register_forward_hook(lambda _module, _args, output: output * 0)
    with pytest.raises(
        ModelError, match=r"block 1 outputs 0 for every token\..*blocks whose outputs are not 0"
    ) as said:
        check_model(tiny_llama)
    assert "deterministic" not in str(said.value)


def test_a_model_that_changes_while_it_is_checked_is_not_blamed(tiny_llama: PreTrainedModel) -> None:
    """Another thread may be training it."""
    weight = find_blocks(tiny_llama).blocks[1].get_submodule("mlp.down_proj").get_parameter("weight")

    def train(_module: nn.Module, _args: Any) -> None:
        with torch.no_grad():
            weight.mul_(1.5)

    find_blocks(tiny_llama).blocks[0].register_forward_pre_hook(framework_hook(train))
    with pytest.raises(CaptureError, match="the model was changed while it was checked"):
        describe_model(tiny_llama)


def test_a_compiled_wrapper_is_refused_with_a_next_step(tiny_llama: PreTrainedModel) -> None:
    model: Any = torch.compile(tiny_llama)
    with pytest.raises(ModelError, match=r"pass model._orig_mod"):
        describe_model(model)


@pytest.mark.slow
def test_prompts_are_not_packed_without_support_for_additive_masks(tiny_llama: PreTrainedModel) -> None:
    """On a CPU, FlexAttention reads past the end of such a mask."""
    tiny_llama.set_attn_implementation("flex_attention")
    assert "flex_attention, is not known to accept an additive mask" in check_model(tiny_llama)["separate"]


def test_the_receipt_says_that_attention_needs_the_whole_mask(tiny_llama: PreTrainedModel) -> None:
    """Doge adds the mask to scores of its own; prompts can share a row nevertheless."""
    receipt = check_model(build(family_called("doge")))
    assert (receipt.get("separate"), receipt.get("dense_mask")) == ("", True)
    assert "dense_mask" not in check_model(tiny_llama)
