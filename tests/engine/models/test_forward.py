"""The model is left exactly as it was found: after a capture, after an error, after Ctrl+C."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.sites import SITES, find_taps
from engine.models.check import check_model
from engine.models.forward import TokenBatch, read_blocks, read_taps, stream_tap
from engine.models.structure import find_blocks


def whole_state(model: PreTrainedModel) -> dict[str, Any]:
    """All that a capture could disturb: weights, training modes, hooks, attributes of every module, configuration."""
    return {
        "weights": {name: weight.clone() for name, weight in model.state_dict().items()},
        "modules": {
            name: (
                module.training,
                list(module._forward_hooks.values()),
                list(module._forward_pre_hooks.values()),
                sorted(module.__dict__),
            )
            for name, module in model.named_modules()
        },
        "config": model.config.to_dict(),
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
    }


def assert_untouched(model: PreTrainedModel, before: dict[str, Any]) -> None:
    after = whole_state(model)
    assert all(torch.equal(weight, after["weights"][name]) for name, weight in before.pop("weights").items())
    del after["weights"]
    assert after == before


@pytest.fixture
def used_model(tiny_llama: PreTrainedModel) -> PreTrainedModel:
    """A model in the middle of somebody's work: in training mode but for one block, with a hook of their own."""
    tiny_llama.train()
    find_blocks(tiny_llama).blocks[1].eval()
    find_blocks(tiny_llama).blocks[2].register_forward_hook(lambda _module, _args, output: output)
    return tiny_llama


@pytest.mark.parametrize("use_hooks", [False, True])
def test_after_a_capture(used_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, use_hooks: bool) -> None:
    before = whole_state(used_model)
    tokenizer_before = repr(tiny_tokenizer)
    engine.capture_activations(used_model, tiny_tokenizer, ["w3 w4", "w5 w6 w7"], use_hooks=use_hooks)
    assert_untouched(used_model, before)
    assert repr(tiny_tokenizer) == tokenizer_before


@pytest.mark.parametrize("site", SITES)
def test_after_a_capture_of_any_site(
    used_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, site: str
) -> None:
    before = whole_state(used_model)
    engine.capture_activations(used_model, tiny_tokenizer, ["w3 w4", "w5 w6 w7"], site=site)
    assert_untouched(used_model, before)


@pytest.mark.parametrize("to_the_end", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_in_the_middle_of_a_forward(
    used_model: PreTrainedModel, to_the_end: bool, error: type[BaseException]
) -> None:
    blocks = find_blocks(used_model)

    def fail(_module: nn.Module, _args: Any) -> None:
        raise error

    blocks.blocks[2].register_forward_pre_hook(fail)
    before, batch = whole_state(used_model), TokenBatch.of([[3, 4, 5]], torch.device("cpu"))
    taps = {layer: stream_tap(blocks, layer) for layer in (0, 3)}
    with pytest.raises(error):
        read_taps(used_model, blocks, batch, taps, Tensor.clone, to_the_end=to_the_end)
    assert_untouched(used_model, before)


def test_hooks_stop_after_the_last_wanted_layer(tiny_llama: PreTrainedModel) -> None:
    blocks = find_blocks(tiny_llama)
    ran: list[int] = []
    for layer, block in enumerate(blocks.blocks):
        attention = block.get_submodule("self_attn")
        attention.register_forward_hook(lambda _module, _args, _output, layer=layer: ran.append(layer))
    read_blocks(tiny_llama, blocks, TokenBatch.of([[3, 4, 5]], torch.device("cpu")), [0, 1], Tensor.clone)
    assert ran == [0, 1]


@pytest.mark.parametrize(
    ("site", "parts"),
    [("resid_pre", []), ("attn_out", ["self_attn"]), ("mlp_out", ["self_attn", "mlp"])],
)
def test_nothing_runs_after_the_last_part_that_is_read(
    tiny_llama: PreTrainedModel, site: str, parts: list[str]
) -> None:
    blocks, receipt = find_blocks(tiny_llama), check_model(tiny_llama)
    ran: list[str] = []
    for name, part in blocks.blocks[2].named_children():
        part.register_forward_pre_hook(lambda _module, _args, name=name: ran.append(name))
    taps = find_taps(site, [1, 2], blocks, receipt)
    read = read_taps(tiny_llama, blocks, TokenBatch.of([[3, 4, 5]], torch.device("cpu")), taps, Tensor.clone)
    assert list(read) == [1, 2]
    assert [name for name in ran if "norm" not in name] == parts


def test_a_batch_is_padded_on_the_right() -> None:
    batch = TokenBatch.of([[7, 8, 9], [5]], torch.device("cpu"))
    assert batch.input_ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
