"""Weights that lie on the disk, or in main memory beside a GPU, until the part of the model that they belong to runs.

accelerate puts them there and fetches them. This knows the folder for those that have to be written anew, and how to
see such weights and whether all of them are fetched. Knows nothing of what is captured.
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
    """A folder in the user's cache for weights on the disk that are not in a file of the model as they are run.

    Weights in safetensors are read from where they lie. Those of other formats, and experts that transformers merges,
    are written here. What comes out of the context must go to `keep_while`, or the folder is gone.

    Yields:
        An empty folder.
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
                f"weights that must stay on the disk cannot be written to {parent}: {first_line(error)}",
                expected="room there for what transformers cannot read from the model's own files as it is needed",
                next_step="make room, or set XDG_CACHE_HOME to another folder",
            ) from error
        raise


def _is_full(error: BaseException) -> bool:
    """Whether the system had no room for a file; safetensors hands on its words, not its number."""
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT))


def keep_while(model: PreTrainedModel, folder: Path) -> None:
    """Delete a folder of weights when its model is gone or the process ends; at once if nothing was written there."""
    if any(folder.iterdir()):
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    else:
        folder.rmdir()


def _clear(parent: Path) -> None:
    """Delete what processes of this machine left that were killed."""
    for folder in parent.glob(f"{socket.gethostname()}-*-*"):
        process = folder.name.removeprefix(f"{socket.gethostname()}-").partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def is_offloaded(model: PreTrainedModel) -> bool:
    """Whether some weights are elsewhere until they are run."""
    return any(parameter.is_meta for parameter in model.parameters())


def runs_on_cpu(model: PreTrainedModel) -> bool:
    """Whether every part of a model is run on the CPU, wherever its weights lie."""
    if any(parameter.device.type not in ("cpu", "meta") for parameter in model.parameters()):
        return False
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    return not is_offloaded(model) or places <= {"cpu", "disk"}  # beside a GPU, offloaded weights are run on that


def gpu_count(model: PreTrainedModel) -> int:
    """On how many GPUs a model is run."""
    places = {
        str(weight.device.index or 0) for weight in model.parameters() if weight.device.type not in ("cpu", "meta")
    }
    places |= {str(place).rpartition(":")[2] for place in getattr(model, "hf_device_map", {}).values()}
    return len(places - {"cpu", "disk"})


def weights_at_hand(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every parameter and stored buffer, one module at a time; what lies elsewhere is fetched.

    The order and the names are the same for a model in memory, where tied parameters are one.
    """
    from accelerate.utils import align_module_device

    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[str | int] = set()
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        fetched = any(weight.is_meta for weight in own.values())
        with align_module_device(module) if fetched else nullcontext():
            for name, weight in module.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                marks: set[str | int] = {tied.get(full, full)}
                if not own[name].is_meta:  # the same in two places, whatever it is called
                    marks.add(id(weight))
                if not marks & seen:
                    yield full, weight.detach()
                seen |= marks
            for name, buffer in stored_buffers(module):
                yield f"{path}.{name}" if path else name, buffer


def where_layers_lie(model: PreTrainedModel, blocks: str) -> str:
    """In words, which layers lie where; empty for a model that lies in one place.

    Args:
        model: A model.
        blocks: Dotted path of its blocks.
    """
    places: dict[str, Any] = getattr(model, "hf_device_map", {})
    count = len(list(model.get_submodule(blocks).children()))
    layers = [_places_of(f"{blocks}.{layer}", places) for layer in range(count)]
    if len(set(map(str, places.values()))) < 2 and "on the disk" not in layers:
        return ""
    runs, first = [], 0
    for where, same in groupby(layers):
        last = first + len(list(same)) - 1
        runs.append(f"{first}-{last} {where}" if last > first else f"{first} {where}")
        first = last + 1
    return f"layers {', '.join(runs)}"


def _places_of(path: str, places: dict[str, Any]) -> str:
    """Where a device map puts a part of a model: as a whole, with what it is a part of, or in pieces."""
    pieces = [place for name, place in places.items() if name.startswith(f"{path}.")]
    around = [name for name in places if name in ("", path) or path.startswith(f"{name}.")]
    found = pieces or [places[name] for name in sorted(around, key=len)[-1:]]
    words = {"disk": "on the disk", "cpu": "in main memory"}
    return " and ".join(sorted({words.get(str(place), f"on GPU {place}") for place in found}))


def all_fetched(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """While a model is run, see that what lies elsewhere is fetched before it is used.

    accelerate fetches the weights of a module when that module is called. Some families use the weights of a part
    without calling it; what torch then computes with weights that are not there may be anything, without an error.

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
                f"{self._model} uses weights of its parts without running these, which cannot be while they lie"
                " on the disk or beside a GPU",
                expected="a model whose parts each run with weights of their own",
                next_step="load it whole into memory, or give a device map that leaves its blocks there",
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def quiet_accelerate() -> Iterator[None]:
    """Leave out what accelerate says of weights that lie elsewhere: layerscope says it in its own words."""
    log = logging.getLogger("accelerate.big_modeling")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def stored_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Name and value of a module's own buffers that its checkpoint holds, such as packed weights.

    The others are tables that some families compute anew as prompts get longer.
    """
    derived = module._non_persistent_buffers_set
    buffers = module._buffers.items()
    return [(name, buffer) for name, buffer in buffers if buffer is not None and name not in derived] if buffers else []


def raw_bytes(values: Tensor) -> bytes:
    """The bytes of a one-dimensional tensor on the CPU."""
    return values.contiguous().view(torch.uint8).numpy().tobytes()
