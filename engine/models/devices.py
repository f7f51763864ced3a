"""In which dtype a model runs. Knows names, checkpoints' dtypes and what a processor has units for; no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import get_max_memory

from engine.errors import ModelError, Remedy, RequestError, first_line
from engine.models.placement import AUTO, MaxMemory, parse_max_memory, require_dtype, require_strategy
from engine.runtime import Processes, find_processes, main_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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


_SHARE_OF_FREE = 0.9  # of main memory, as transformers does outside of containers


def choose_places(device: str, device_map: str | dict[str, Any] | None, max_memory: MaxMemory | None) -> dict[str, Any]:
    """What transformers is to be told of places; nothing where the model goes to one device.

    Raises:
        RequestError: These exclude each other, or there are no such places.
    """
    if device_map is None:
        if max_memory is not None:
            raise RequestError(
                "the memory of places is limited, but the model goes to one", next_step="give a device map too"
            )
        return {}
    if device != "auto":
        raise RequestError(f"a device map and the device {device!r} exclude each other", next_step="leave out one")
    if isinstance(device_map, str):
        require_strategy(device_map)
    if max_memory is None:
        return {"device_map": device_map} | (_within_container() if isinstance(device_map, str) else {})
    limits, gpus = parse_max_memory(max_memory), torch.accelerator.device_count()
    for place in limits:
        if isinstance(place, int) and place >= gpus:
            raise RequestError(f"there is no GPU {place}", expected=f"a number below {gpus}" if gpus else "no GPU")
    return {"device_map": device_map, "max_memory": limits}


def _within_container() -> dict[str, Any]:
    """What may be used of each place, where accelerate would fill a machine of which a container has a part."""
    memory = main_memory()
    if not memory.limited:
        return {}
    return {"max_memory": get_max_memory() | {"cpu": int(_SHARE_OF_FREE * memory.free)}}


def running_device(places: dict[str, Any]) -> torch.device:
    """On what kind of device a model runs that lies in several places: a GPU, if one is among them."""
    device_map = places["device_map"]
    named = places.get("max_memory") or (device_map.values() if isinstance(device_map, dict) else None)
    gpu = torch.accelerator.current_accelerator()
    if gpu is None or (named is not None and all(str(place) in ("cpu", "disk") for place in named)):
        return torch.device("cpu")
    return gpu


def choose_device(name: str) -> torch.device:
    """The device of this name; for "auto" the best there is.

    Raises:
        RequestError: It cannot be used, or this process has no GPU of its own.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu(find_processes())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # a device that cannot give a number back cannot be captured from
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RequestError(
            f"the device {name!r} cannot be used here: {first_line(error)}",
            expected="auto, cpu, mps, cuda or cuda:N",
            next_step="leave the device out to let layerscope choose",
        ) from error
    return device


def _own_gpu(processes: Processes) -> torch.device:
    """The GPU of this process: the current one, or where a launcher started several the one of its number."""
    if processes.count == 1:
        return torch.device("cuda", torch.cuda.current_device())
    if processes.local_rank >= torch.cuda.device_count():
        raise RequestError(
            f"this process, number {processes.local_rank} from 0, has no GPU of its own:"
            f" this machine has {torch.cuda.device_count()}",
            expected="at most one process for each GPU, unless a device is named",
            next_step="start fewer processes",
        )
    return torch.device("cuda", processes.local_rank)
