"""Read the header of a file of directions: where they come from, and at which layers; loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import msgspec

from engine.errors import StoreError, first_line
from engine.records.files import DirectionsHeader
from engine.remedies import Advice, Remedy
from engine.store.files import require_inside
from engine.store.names import DIRECTIONS, CapturePaths, store_words
from engine.store.tensor_files import read_metadata

SCHEMA = 1
_FLOAT32_BYTES = 4


class _Versioned(TypedDict):
    """The field that every version of the header has."""

    schema: int


def path_of(paths: CapturePaths) -> Path:
    """Path of the directions file of a capture.

    Raises:
        StoreError: It is a link out of the store, or to itself.
    """
    require_inside(paths.directions, paths.store)
    return paths.directions


def read_header(path: Path) -> DirectionsHeader:
    """Read the header of a directions file, without the vectors; loads no torch.

    Raises:
        StoreError: The file does not exist, is damaged, or was written by another version of layerscope.
    """
    return read_header_and_width(path)[0]


def read_header_and_width(path: Path) -> tuple[DirectionsHeader, int]:
    """Read the header of a directions file and the length of its vectors; loads no torch.

    Raises:
        StoreError: As in `read_header`.
    """
    if not path.exists():
        raise StoreError(
            f"there are no directions at {path}", next_step=directions_advice(Remedy.EXTRACT_DIRECTIONS, path)
        )
    again = directions_advice(Remedy.EXTRACT_AGAIN, path)
    file = read_metadata(path, store=path.parent, remedy=again)
    try:
        text, names = file.metadata["layerscope"], file.places.keys()
        if msgspec.json.decode(text, type=_Versioned)["schema"] != SCHEMA:
            raise StoreError(f"{path} was written by another version of layerscope", next_step=again)
        header = msgspec.json.decode(text, type=DirectionsHeader)
    except (KeyError, msgspec.DecodeError) as error:
        raise StoreError(f"{path} is damaged: {first_line(error)}", next_step=again) from error
    if not header["layers"] or {str(summary["layer"]) for summary in header["layers"]} != names:
        raise StoreError(f"{path} is damaged: its vectors do not match its layers", next_step=again)
    begin, end = next(iter(file.places.values()))
    return header, (end - begin) // _FLOAT32_BYTES


def directions_advice(remedy: Remedy, path: Path, capture: str | None = None) -> Advice:
    """A remedy whose commands name the capture of a file of directions, as far as it is known."""
    paths = CapturePaths(path.parent, path.name.removesuffix(DIRECTIONS))
    source = capture or (paths.name if paths.exist else "CAPTURE")
    named = source if source == paths.name else f"{source} --output {paths.name}"
    return Advice(remedy, store_words(paths.store), named)
