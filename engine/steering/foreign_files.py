"""Read the vector files of other tools, without running anything in them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import torch

from engine.errors import StoreError, first_line
from engine.records.files import VectorOrigin
from engine.regular import open_regular_file
from engine.steering.gguf_files import UNIT_KEY, read_gguf
from engine.store.archive import unpickle

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 2**30  # bytes; 1000 blocks of width 2^17 take half of that
_LARGEST_METADATA = 2**16
_METADATA = "direction_metadata.json"
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class Found:
    """Vectors of a file, in the numbers of its tool.

    Attributes:
        vectors: Number to vector.
        concept: Name of the concept, if the file has it.
        unit: What the vectors are scaled by, if layerscope wrote the file.
        blocks: Number of blocks of the model, if the file has a vector for every one.
    """

    vectors: dict[int, Tensor] = field(default_factory=dict)
    concept: str | None = None
    unit: str = ""
    blocks: int | None = None


class _Place(msgspec.Struct):
    """Contents of `direction_metadata.json`."""

    layer: int


def read_vectors(path: Path, origin: VectorOrigin) -> Found:
    """Read the vectors of a file.

    Args:
        path: The file.
        origin: The tool that wrote it.

    Raises:
        StoreError: The file does not exist, is damaged, or holds something else.
    """
    read = {"persona-vectors": _persona_vectors, "refusal-direction": _refusal_direction}.get(origin, _gguf)
    try:
        with open_regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _LARGEST:
                raise StoreError(f"{path} has {size} bytes", expected="a file of control vectors")
            return read(file, path)
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {path}") from error
    except MemoryError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
    except Exception as error:  # a hostile file makes torch and zipfile raise almost any type
        raise StoreError(
            f"{path} is not a file of {origin}: {first_line(error)}; no code in it was run",
            expected="the file that the tool wrote",
        ) from error


def _gguf(file: BinaryIO, _path: Path) -> Found:
    content = read_gguf(file, os.fstat(file.fileno()).st_size)
    vectors = {number: torch.from_numpy(vector) for number, vector in content.vectors.items()}
    concept, unit = (content.metadata.get(key) for key in ("layerscope.concept", UNIT_KEY))
    return Found(vectors, concept if isinstance(concept, str) and concept else None, str(unit or ""))


def _persona_vectors(file: BinaryIO, _path: Path) -> Found:
    rows = _tensor(file, 2)  # (blocks + 1, hidden)
    return Found(dict(enumerate(rows)), blocks=len(rows) - 1)


def _refusal_direction(file: BinaryIO, path: Path) -> Found:
    values = _tensor(file, 1, 3)
    if values.ndim == 3:  # (positions, blocks, hidden)
        return Found(dict(enumerate(values[-1])), blocks=values.shape[1])
    place = path.parent / _METADATA
    try:
        with open_regular_file(place) as metadata:
            layer = msgspec.json.decode(metadata.read(_LARGEST_METADATA), type=_Place).layer
    except FileNotFoundError as error:
        raise StoreError(
            f"the layer of {path} is not known: there is no {_METADATA} in its folder",
            next_step='copy that file there, or write one: {"layer": N}, where N is the block whose input it is',
        ) from error
    return Found({layer: values})


def _tensor(file: BinaryIO, *dimensions: int) -> Tensor:
    """The only tensor in a `.pt` file."""
    found = unpickle(file)
    if not isinstance(found, torch.Tensor) or found.layout != torch.strided or found.dtype not in _DTYPES:
        raise ValueError("it does not hold one tensor of numbers")
    if found.ndim not in dimensions or not 0 < found.numel() * found.element_size() <= _LARGEST:
        raise ValueError(f"its tensor has the shape {tuple(found.shape)}")
    return found
