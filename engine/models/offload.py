"""Weights that accelerate offloads to disk or main memory until their module runs.

accelerate stores and fetches them. This module provides the folder for weights that have to be rewritten, iterates over
all weights wherever they are, and detects the use of weights that were not fetched.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.errors import ModelError, first_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@contextmanager
def offload_folder() -> Iterator[Path]:
    """Create a cache folder for offloaded weights that must be rewritten.

    Safetensors weights are read from the model's files. Weights in other formats, and experts that transformers merges,
    are written here. The caller passes the folder to `keep_while`, which deletes it with the model. An error inside the
    context deletes it at once.

    Yields:
        An empty folder.

    Raises:
        ModelError: The disk is full.
    """
    parent = platformdirs.user_cache_path("layerscope") / "offloaded"
    parent.mkdir(parents=True, exist_ok=True)
    _clear(parent)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{socket.gethostname()}-{os.getpid()}-"))
    try:
        yield folder
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if _is_full(error):
            raise ModelError(
                f"cannot write offloaded weights to {parent}: {first_line(error)}",
                expected="enough disk space for the weights that cannot be read from the model's own files on demand",
                next_step="free some disk space, or set XDG_CACHE_HOME to another folder",
            ) from error
        raise


def _is_full(error: BaseException) -> bool:
    """Whether an error means a full disk.

    safetensors passes on the system's message, but not the error number.
    """
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT))


def keep_while(model: PreTrainedModel, folder: Path) -> None:
    """Delete an offload folder with its model or at exit; at once if it is empty."""
    if any(folder.iterdir()):
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    else:
        folder.rmdir()


def _clear(parent: Path) -> None:
    """Delete the folders of killed processes on this machine."""
    for folder in parent.glob(f"{socket.gethostname()}-*-*"):
        process = folder.name.removeprefix(f"{socket.gethostname()}-").partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def is_offloaded(model: PreTrainedModel) -> bool:
    """Whether some weights are offloaded to disk or main memory."""
    return any(weight.is_meta for weight in each_parameter(model))


def runs_on_cpu(model: PreTrainedModel) -> bool:
    """Whether every module runs on the CPU, wherever its weights are stored."""
    if any(weight.device.type not in ("cpu", "meta") for weight in each_parameter(model)):
        return False
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return not is_offloaded(model) or places <= {"cpu", "disk"}  # with a GPU, offloaded weights run on it


def gpu_count(model: PreTrainedModel) -> int:
    """Return the number of GPUs that a model runs on."""
    devices = {weight.device for weight in each_parameter(model)}
    places = {str(device.index or 0) for device in devices if device.type not in ("cpu", "meta")}
    places |= {str(place).rpartition(":")[2] for place in getattr(model, "hf_device_map", {}).values()}
    return len(places - {"cpu", "disk"})


def weights_at_hand(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and value of every parameter and stored buffer.

    Offloaded weights are fetched one module at a time.

    Names and order are the same as for a model in memory. Tied parameters are yielded once.
    """
    from accelerate.utils import align_module_device

    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[str | int] = set()
    for path, module in model.named_modules():
        if not module._parameters and not module._buffers:
            continue
        own = own_parameters(module)
        absent = {name for name, weight in own if weight.is_meta}
        with align_module_device(module) if absent else nullcontext():
            for name, weight in module.named_parameters(recurse=False) if absent else own:
                full = f"{path}.{name}" if path else name
                marks = (tied.get(full, full), full if name in absent else id(weight))  # one tensor under two names
                if seen.isdisjoint(marks):
                    yield full, weight.detach()
                seen.update(marks)
            for name, buffer in stored_buffers(module):
                yield f"{path}.{name}" if path else name, buffer


def where_layers_lie(model: PreTrainedModel, blocks: str) -> str:
    """Describe which layers are on which device; empty for a model on a single device.

    Args:
        model: The model.
        blocks: Dotted path of its blocks.
    """
    places: dict[str, Any] = getattr(model, "hf_device_map", {})
    count = len(list(model.get_submodule(blocks).children()))
    layers = [_places_of(f"{blocks}.{layer}", places) for layer in range(count)]
    if len(set(map(str, places.values()))) < 2 and "on disk" not in layers:
        return ""
    runs, first = [], 0
    for where, same in groupby(layers):
        last = first + len(list(same)) - 1
        runs.append(f"{first}-{last} {where}" if last > first else f"{first} {where}")
        first = last + 1
    return f"layers {', '.join(runs)}"


def _places_of(path: str, places: dict[str, Any]) -> str:
    """Describe where a device map puts a module: whole, by parent, or in pieces."""
    pieces = [place for name, place in places.items() if name.startswith(f"{path}.")]
    around = [name for name in places if name in ("", path) or path.startswith(f"{name}.")]
    found = pieces or [places[name] for name in sorted(around, key=len)[-1:]]
    words = {"disk": "on disk", "cpu": "in main memory"}
    return " and ".join(sorted({words.get(str(place), f"on GPU {place}") for place in found}))


def all_fetched(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Return a context that refuses the use of weights that were not fetched.

    accelerate fetches the weights of a module when the module is called. Some families use a module's weights without
    calling it. torch then computes with missing weights and returns arbitrary values, without an error.

    Raises:
        ModelError: Inside the context, at the first such use.
    """
    return _Watch(model) if is_offloaded(model) else nullcontext()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = type(model).__name__

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's own signature
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        absent = sum(tensor.is_meta for tensor in tensors)
        wanted = (kwargs or {}).get("device")
        if absent and (absent < len(tensors) or (wanted is not None and torch.device(wanted).type != "meta")):
            raise ModelError(
                f"{self._model} uses the weights of a module without calling it, so they cannot be offloaded",
                expected="a model whose modules each use only their own weights",
                next_step="load the whole model into memory, or pass a device map that keeps its blocks there",
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def quiet_accelerate() -> Iterator[None]:
    """Silence accelerate's log about offloaded weights: layerscope logs its own."""
    log = logging.getLogger("accelerate.big_modeling")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def each_module(model: nn.Module) -> list[nn.Module]:
    """Return every module once, in the order of `modules`, which takes three times as long."""
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            if below := module._modules:
                waiting += [child for child in reversed(below.values()) if child is not None]
    return [*found]


def each_parameter(model: nn.Module) -> list[Tensor]:
    """Return all parameters; one that several modules share appears more than once."""
    own = (module._parameters for module in each_module(model))
    return [weight for parameters in own if parameters for weight in parameters.values() if weight is not None]


def each_weight(model: nn.Module) -> list[Tensor]:
    """Return all parameters and stored buffers; one that several modules share appears more than once."""
    found: list[Tensor] = []
    for module in each_module(model):
        if module._parameters:
            found += [weight for weight in module._parameters.values() if weight is not None]
        if module._buffers:
            found += [buffer for _, buffer in stored_buffers(module)]
    return found


def own_parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the name and value of a module's own parameters."""
    return [(name, weight) for name, weight in module._parameters.items() if weight is not None]


def stored_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the name and value of a module's own persistent buffers.

    Persistent buffers are in the checkpoint, such as packed weights. The others are tables that some families recompute
    for longer prompts.
    """
    derived = module._non_persistent_buffers_set
    buffers = module._buffers.items()
    return [(name, buffer) for name, buffer in buffers if buffer is not None and name not in derived] if buffers else []


def raw_bytes(values: Tensor) -> bytes:
    """Return the bytes of a one-dimensional CPU tensor."""
    return values.contiguous().view(torch.uint8).numpy().tobytes()
