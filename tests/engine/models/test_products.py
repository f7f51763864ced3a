"""oneDNN is enabled only while states are read, and only where it is as exact as PyTorch's default."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.models import description
from engine.models.check import check_model
from engine.models.products import onednn_possible, onednn_products
from engine.models.shortcuts import ONEDNN_TOLERANCE
from engine.models.structure import find_blocks
from tests.conftest import Loaded, framework_hook

pytestmark = pytest.mark.skipif(not onednn_possible(), reason="this build of PyTorch has no oneDNN")


SETTINGS: Any = torch.backends.mkldnn


def setting() -> str:
    return str(SETTINGS.matmul.fp32_precision)


def choose(precision: str) -> None:
    SETTINGS.matmul.fp32_precision = precision


@pytest.fixture
def _own_setting() -> Iterator[None]:
    before = setting()
    yield
    choose(before)


def watch(model: PreTrainedModel, seen: list[str], error: type[BaseException] | None = None) -> None:
    def hook(_module: nn.Module, _args: Any) -> None:
        seen.append(setting())
        if error is not None:
            raise error

    find_blocks(model).blocks[2].register_forward_pre_hook(framework_hook(hook))


@pytest.mark.usefixtures("_own_setting")
@pytest.mark.parametrize("before", ["none", "ieee"])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_users_setting_is_put_back(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    before: str,
    error: type[BaseException] | None,
) -> None:
    choose(before)
    onednn = description.describe_model(tiny_llama).receipt["onednn_error"] or 0.0
    seen: list[str] = []
    watch(tiny_llama, seen, error)
    if error is None:
        data = engine.capture_activations(tiny_llama, tiny_tokenizer, ["w3 w4", "w5"])
        assert (data["provenance"]["products"] == "oneDNN") == (onednn <= ONEDNN_TOLERANCE)
    else:
        with pytest.raises(error):
            engine.capture_activations(tiny_llama, tiny_tokenizer, ["w3 w4", "w5"])
    assert set(seen) == ({"bf16"} if onednn <= ONEDNN_TOLERANCE else {before})
    assert setting() == before


def test_two_threads_restore_the_original_setting() -> None:
    before, inside, go_on = setting(), threading.Event(), threading.Event()

    def other() -> None:
        with onednn_products(wanted=True):
            inside.set()
            go_on.wait(10)

    thread = threading.Thread(target=other)
    with onednn_products(wanted=True):
        thread.start()
        inside.wait(10)
    assert setting() == "bf16"  # the other thread still uses it
    go_on.set()
    thread.join()
    assert setting() == before


def test_a_machine_that_rounds_to_bfloat16_is_detected(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A block that rounds when allowed stands in for a processor with bfloat16 units."""

    def round_where_allowed(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.bfloat16().float() if setting() == "bf16" else output

    find_blocks(tiny_llama).blocks[1].register_forward_hook(framework_hook(round_where_allowed))
    error = check_model(tiny_llama)["onednn_error"]
    assert error is not None
    assert error > ONEDNN_TOLERANCE
    data = engine.capture_activations(tiny_llama, tiny_tokenizer, ["w3 w4", "w5"])
    assert data["provenance"]["products"] == "default"


def test_a_machine_that_rounds_only_large_products_is_detected(tiny_llama: PreTrainedModel) -> None:
    """With AMX, oneDNN does so; the check has too few tokens to show it."""

    class RoundLarge(TorchFunctionMode):
        def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            large = func is torch.nn.functional.linear and setting() == "bf16" and args[0].flatten(0, -2).shape[0] >= 64
            return output.bfloat16().float() if large else output

    with RoundLarge():
        error = check_model(tiny_llama)["onednn_error"]
    assert error is not None
    assert error > ONEDNN_TOLERANCE


def test_half_precision_is_not_measured(tiny_llama: PreTrainedModel) -> None:
    assert check_model(tiny_llama.bfloat16())["onednn_error"] is None


@pytest.mark.usefixtures("_own_setting")
def test_the_real_model_keeps_its_states(smollm2: Loaded) -> None:
    """Compared with PyTorch's default products, for as many tokens as a forward pass has."""
    model, tokenizer = smollm2
    text = "Tell me a story about a lighthouse keeper. " * 50
    captured = engine.capture_activations(model, tokenizer, text)["activations"]
    choose("ieee")
    with torch.no_grad():
        inputs = tokenizer(text, return_tensors="pt").to(model.device)
        plain = [states.cpu() for states in model(**inputs, output_hidden_states=True).hidden_states]
    for layer in range(29):
        moved = (captured[layer] - plain[layer + 1]).norm(dim=-1) / plain[layer + 1].norm(dim=-1)
        assert moved.max() < ONEDNN_TOLERANCE
