"""Choose the dtype and devices of a model, and check that its weights fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import get_max_memory

from engine.errors import ModelError, RequestError, first_line
from engine.models.placement import AUTO, MaxMemory, parse_max_memory, require_dtype, require_strategy
from engine.remedies import Remedy
from engine.runtime import Processes, find_processes, main_memory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


_BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Return the torch dtype for a name; None for "auto".

    Raises:
        RequestError: There is no such dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    require_dtype(dtype)
    found: torch.dtype | None = None if dtype == AUTO else getattr(torch, dtype)
    return found


def natural_dtype(own: object, device: torch.device) -> torch.dtype:
    """Resolve the dtype "auto" for a checkpoint and a device.

    The result is the checkpoint's own dtype if the device computes in it, else float32.

    A GPU computes in every dtype of a checkpoint. A CPU with bfloat16 units takes at most half as long in bfloat16 as
    in float32; one without takes many times as long. Weights are never rounded for speed alone: a checkpoint in
    float32, or one converted from GGUF, stays in float32.

    Args:
        own: The dtype in the checkpoint's config, if any.
        device: The device that the model will run on.

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
    """Whether the CPU has bfloat16 units; False if this version of torch cannot tell."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(unit) for unit in _BFLOAT16_UNITS)


def send(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device, without waiting for the work that a GPU has yet to do.

    An ordinary copy waits, because the memory that it reads could change meanwhile. This one reads a copy in pinned
    memory, which PyTorch keeps and uses again.

    Args:
        values: The array. On a CPU the tensor shares its memory.
        device: The device.

    Example:
        >>> send(np.arange(3), torch.device("cpu")).tolist()
        [0, 1, 2]
    """
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


GIGABYTE = 1e9


def weight_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Return the size of all weights in this dtype, in bytes.

    The weights are counted on the meta device, without allocating them.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes.

    On a GPU this includes memory that torch has cached.
    """
    if device.type == "cuda":
        known = torch.cuda.memory_stats(device)  # one slow call; empty before the first tensor
        kept = known.get("reserved_bytes.all.current", 0) - known.get("allocated_bytes.all.current", 0)
        return int(torch.cuda.mem_get_info(device)[0]) + int(kept)
    return main_memory().free


def require_room(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, otherwise: str = "") -> None:
    """Refuse a model whose weights do not fit on a device.

    Args:
        config: Config of the model.
        dtype: Dtype of the weights.
        device: Device to load them on.
        otherwise: Next step for the error when neither a device map nor another dtype helps.

    Raises:
        ModelError: The weights do not fit. The message says how much memory is needed and free, and what would help.
    """
    if getattr(config, "quantization_config", None) or getattr(config, "auto_map", None):
        return  # quantized weights are smaller than counted here, and counting remote code would run it
    needed, free = weight_bytes(config, dtype), free_bytes(device)
    if needed > free:
        remedy = Remedy.USE_SMALLER_MODEL if dtype.itemsize <= 2 else Remedy.USE_SMALLER_MODEL_OR_DTYPE
        raise ModelError(
            f"not enough memory: the weights take {needed / GIGABYTE:.1f} GB in {str(dtype).removeprefix('torch.')}, "
            f"but only {free / GIGABYTE:.1f} GB are free on {device}",
            next_step=otherwise or remedy,
        )


_SHARE_OF_FREE = 0.9  # of main memory, the share that transformers uses outside containers


def choose_places(device: str, device_map: str | dict[str, Any] | None, max_memory: MaxMemory | None) -> dict[str, Any]:
    """Return the placement arguments for `from_pretrained`; empty for a single device.

    Raises:
        RequestError: The arguments exclude each other, or name a device that does not exist.
    """
    if device_map is None:
        if max_memory is not None:
            raise RequestError(
                "a memory limit requires a device map", next_step="add a device map, or drop the memory limit"
            )
        return {}
    if device != "auto":
        raise RequestError(f"a device map and the device {device!r} exclude each other", next_step="give only one")
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
    """Limit main memory in a container.

    accelerate would otherwise use the memory of the whole machine.
    """
    memory = main_memory()
    if not memory.limited:
        return {}
    return {"max_memory": get_max_memory() | {"cpu": int(_SHARE_OF_FREE * memory.free)}}


def running_device(places: dict[str, Any]) -> torch.device:
    """Return the kind of device that a model split across devices runs on.

    That is a GPU if one is among them, else the CPU.
    """
    device_map = places["device_map"]
    named = places.get("max_memory") or (device_map.values() if isinstance(device_map, dict) else None)
    gpu = torch.accelerator.current_accelerator()
    if gpu is None or (named is not None and all(str(place) in ("cpu", "disk") for place in named)):
        return torch.device("cpu")
    return gpu


def choose_device(name: str) -> torch.device:
    """Return the torch device for a name; "auto" picks the best available.

    Raises:
        RequestError: The device cannot be used, or there is no GPU left for this process.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu(find_processes())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # a capture must be able to copy values back
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RequestError(
            f"the device {name!r} cannot be used here: {first_line(error)}",
            expected="auto, cpu, mps, cuda or cuda:N",
            next_step="use auto to let layerscope choose",
        ) from error
    return device


def _own_gpu(processes: Processes) -> torch.device:
    """Return this process's GPU: the current one, or by local rank under a launcher."""
    if processes.count == 1:
        return torch.device("cuda", torch.cuda.current_device())
    if processes.local_rank >= torch.cuda.device_count():
        raise RequestError(
            f"no GPU is left for this process (local rank {processes.local_rank}):"
            f" this machine has {torch.cuda.device_count()}",
            expected="at most one process per GPU, unless a device is given",
            next_step="start fewer processes",
        )
    return torch.device("cuda", processes.local_rank)
