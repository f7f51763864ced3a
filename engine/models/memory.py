"""Whether a model fits into memory, told before its weights are read. Knows sizes only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.errors import ModelError, Remedy
from engine.main_memory import main_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

GIGABYTE = 1e9


def weight_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of all weights in this dtype, counted on a model without memory behind it."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on a device; what torch keeps of a GPU for later use is among them."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return main_memory().free


def require_room(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, otherwise: str = "") -> None:
    """Refuse a model whose weights do not fit on a device.

    Args:
        config: Of the model.
        dtype: What its weights are to be.
        device: Where they are to go.
        otherwise: What to do if they do not fit, where a device map or another dtype is no way out.

    Raises:
        ModelError: The message says how much is needed and free, and what would make it fit.
    """
    if getattr(config, "quantization_config", None) or getattr(config, "auto_map", None):
        return  # packed weights are smaller than counted here, remote code cannot be counted without running it
    needed, free = weight_bytes(config, dtype), free_bytes(device)
    if needed > free:
        remedy = Remedy.USE_SMALLER_MODEL if dtype.itemsize <= 2 else Remedy.USE_SMALLER_MODEL_OR_DTYPE
        raise ModelError(
            f"too little memory: the weights take {needed / GIGABYTE:.1f} GB as {str(dtype).removeprefix('torch.')}, "
            f"{free / GIGABYTE:.1f} GB are free on {device}",
            next_step=otherwise or remedy,
        )
