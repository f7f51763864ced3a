"""The dtype that "auto" stands for."""

import re
from pathlib import Path

import pytest
import torch

from engine.models import dtypes
from engine.models.dtypes import has_bfloat16_units, natural_dtype

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
    monkeypatch.setattr(dtypes, "has_bfloat16_units", lambda: units)  # one machine has only one kind of processor
    assert natural_dtype(own, device) == expected


@pytest.mark.skipif(not _KERNEL_SAYS.exists(), reason="the kernel of this system tells it elsewhere")
def test_what_the_processor_has_is_what_the_kernel_says() -> None:
    features = set(re.findall(r"\w+", _KERNEL_SAYS.read_text()))
    assert has_bfloat16_units() == bool(features & {"avx512_bf16", "amx_bf16", "bf16"})
