"""Prompts are packed where sharing their prefixes saves more than packing costs."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from engine.capture.prefixes import Trunk
from engine.capture.request import CaptureRequest
from engine.capture.run_settings import Settings

BEGINNING = [*range(20, 30)]


def packs(settings: Settings, shared: int, own: int) -> bool:
    """Whether prompts are packed that share a prefix of some length."""
    rows = [[*BEGINNING[:shared], 50 + number, *range(60, 59 + own)] for number in range(10)]
    plan = settings.plan(rows)
    return any(isinstance(step, Trunk) or step.packed for step in plan)


@pytest.mark.parametrize(
    ("worth", "shared", "own", "packed"),
    [(0.8, 2, 8, False), (0.8, 3, 7, True), (0.9, 1, 9, False), (0.9, 2, 8, True), (float("inf"), 0, 10, True)],
)
def test_a_share_of_the_tokens_decides(
    tiny_llama: PreTrainedModel, worth: float, shared: int, own: int, packed: bool
) -> None:
    settings = Settings.for_model(tiny_llama, CaptureRequest(["a", "b"]))
    assert packs(replace(settings, worth_packing=worth), shared, own) is packed


@pytest.mark.parametrize(("dtype", "packed"), [(torch.float32, True), (torch.bfloat16, False)])
def test_prompts_without_a_shared_prefix_are_packed_in_full_precision(
    tiny_llama: PreTrainedModel, dtype: torch.dtype, packed: bool
) -> None:
    nn.Module.to(tiny_llama, dtype)
    settings = Settings.for_model(tiny_llama, CaptureRequest(["a", "b"]))
    if settings.onednn is False:
        pytest.skip("products through oneDNN are not exact on this processor")
    assert packs(settings, 0, 10) is packed
    assert packs(settings, 2, 8)
