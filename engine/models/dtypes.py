"""In which dtype a model runs. Knows names, checkpoints' dtypes and what a processor has units for; no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from engine.models.options import AUTO, require_dtype

_BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, and of ARM


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype of this name; None for "auto".

    Raises:
        RequestError: There is none.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    require_dtype(dtype)
    found: torch.dtype | None = None if dtype == AUTO else getattr(torch, dtype)
    return found


def natural_dtype(own: object, device: torch.device) -> torch.dtype:
    """What "auto" means: a checkpoint's own dtype where the device computes in it, else float32.

    A GPU computes in every dtype of a checkpoint. A processor with units for bfloat16 takes half the time of float32 or
    less for it; one without takes many times as long. Weights are not rounded for speed alone: a checkpoint in float32,
    or one converted from GGUF, stays in float32.

    Args:
        own: The dtype that the checkpoint's config names, if any.
        device: Where the model is to run.

    Example:
        >>> natural_dtype(torch.float16, torch.device("cpu"))
        torch.float32
    """
    if not isinstance(own, torch.dtype):
        return torch.float32
    if device.type != "cpu" or (own == torch.bfloat16 and has_bfloat16_units()):
        return own
    return torch.float32


def has_bfloat16_units() -> bool:
    """Whether the processor multiplies in bfloat16; False where this version of torch cannot tell."""
    told: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(told.get(unit) for unit in _BFLOAT16_UNITS)
