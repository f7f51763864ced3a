"""The check at load refuses a model that breaks a promise, and says which; what it writes down is measured."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.models.blocks import find_blocks
from engine.models.check import TOLERANCE, check_model
from engine.models.description import describe_model
from tests.conftest import family_called
from tests.families import build


def test_the_receipt_says_where_the_parts_are(tiny_llama: PreTrainedModel) -> None:
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


def _scale_between_blocks(model: PreTrainedModel) -> None:
    find_blocks(model).blocks[2].register_forward_pre_hook(lambda _module, args: (args[0] * 2, *args[1:]))


def _scale_before_the_norm(model: PreTrainedModel) -> None:
    norm = find_blocks(model).final_norm
    assert norm is not None
    norm.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))


def _look_at_the_other_prompts(model: PreTrainedModel) -> None:
    def mix(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + output.mean(dim=0, keepdim=True)

    find_blocks(model).blocks[0].register_forward_hook(mix)


def _put_out_nan(model: PreTrainedModel) -> None:
    list(find_blocks(model).blocks[1].parameters())[-1].data.fill_(float("nan"))  # the norm before the MLP


def test_sublayers_are_believed_by_their_sum_and_not_by_their_names(tiny_llama: PreTrainedModel) -> None:
    """A model without them keeps its other promises and passes."""
    find_blocks(tiny_llama).blocks[2].register_forward_hook(lambda _module, _args, output: output * 1.0001)
    receipt = check_model(tiny_llama)
    assert (receipt["attn_out"], receipt["mlp_out"]) == (None, None)


def test_the_check_leaves_no_hook_behind(tiny_llama: PreTrainedModel) -> None:
    check_model(tiny_llama)
    hooks = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    assert not any(getattr(module, name) for module in tiny_llama.modules() for name in hooks)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (_scale_between_blocks, "block 1 puts out is not what block 2 takes in"),
        (_scale_before_the_norm, "last block puts out is not what the final norm takes in"),
        (_look_at_the_other_prompts, "padding and batching change a token's state"),
        (_put_out_nan, "block 1 puts out .* not finite"),
    ],
)
def test_a_broken_promise_is_named(
    tiny_llama: PreTrainedModel, break_it: Callable[[PreTrainedModel], None], said: str
) -> None:
    break_it(tiny_llama)
    with pytest.raises(ModelError, match=said):
        check_model(tiny_llama)


@pytest.mark.parametrize(("dtype", "said"), [(torch.bfloat16, "dtype='float32'"), (torch.float32, "another family")])
def test_half_precision_may_be_why(tiny_llama: PreTrainedModel, dtype: torch.dtype, said: str) -> None:
    _look_at_the_other_prompts(tiny_llama.to(dtype))  # type: ignore[arg-type]  # transformers wraps `to`, loses its type
    with pytest.raises(ModelError, match=said):
        check_model(tiny_llama)


def test_a_model_without_a_list_of_blocks_is_refused(tiny_llama: PreTrainedModel) -> None:
    tiny_llama.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match=r"7 decoder blocks \(lists of that length: none\)"):
        find_blocks(tiny_llama)


def test_a_vision_tower_of_the_same_depth_is_not_taken_for_the_decoder() -> None:
    assert find_blocks(build(family_called("gemma3"))).path == "model.language_model.layers"


def test_a_model_of_the_users_own_is_described_and_checked_once(tiny_llama: PreTrainedModel) -> None:
    first = describe_model(tiny_llama)
    assert first.source.kind == "given"
    find_blocks(tiny_llama).blocks[0].register_forward_hook(_raise)
    assert describe_model(tiny_llama) is first


def _raise(*_args: Any) -> None:
    raise AssertionError("the model was run again")
