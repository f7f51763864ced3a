"""Where a model goes: to one device, or to the places that a device map names.

Knows which devices this machine has. Does not know models, or whether one fits.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import get_max_memory

from engine.errors import RequestError, first_line
from engine.main_memory import main_memory
from engine.models.placement import MaxMemory, parse_max_memory, require_strategy
from engine.processes import Processes, find_processes

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
