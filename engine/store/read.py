"""Read captures back, without running anything they might hold."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from engine.errors import Remedy, RequestError, StoreError, first_line
from engine.records.captures import CaptureData, ContrastData
from engine.records.files import CaptureRecord, DataFile
from engine.store.catalog import show_capture
from engine.store.names import CapturePaths, locate
from engine.store.record import make_record, read_record

log = logging.getLogger(__name__)

_REQUIRED = {
    "activations": {"activations", "input_ids", "tokens", "prompt", "num_layers", "captured_layers"},
    "positive": {"positive", "negative", "num_pairs", "concept", "layers"},
}


def load_activations(name: str | Path, *, store: str | Path | None = None) -> CaptureData:
    """Load a capture, tensors and record, and check that they belong together.

    Args:
        name: A path with or without `.pt`; a plain name when `store` is given.
        store: The folder to read from.

    Returns:
        What was saved, provenance and factors included. Tensors without a record (a file that came alone, or a save
        that was interrupted) are returned without them, with a warning. Of a capture in shards the states of a layer
        are read when they are looked at, and not before.

    Raises:
        StoreError: There is no such capture, a file is damaged or holds more than tensors and plain values, or the
            record describes other tensors.

    Example:
        >>> load_activations("activations/smollm2_honesty")["concept"]
        'honesty'
    """
    paths = locate(name, store)
    if paths.in_shards:
        return _map_shards(paths)
    data = _load_tensors(paths.tensors)
    if not paths.record.exists():
        log.warning("%s has no record beside it: provenance and factors are unknown", paths.tensors)
        return data
    record = read_record(paths.record)
    _require_same(paths, data, record)
    if record["provenance"] is not None:
        data["provenance"] = record["provenance"]
    if "positive" in data and record["factors"]:
        data["factors"] = record["factors"]
    return data


def load_contrast(name: str | Path, *, store: str | Path | None = None) -> ContrastData:
    """Load a capture that must be one of pairs.

    Args:
        name: As for `load_activations`.
        store: As for `load_activations`.

    Raises:
        StoreError: It cannot be loaded.
        RequestError: It is a capture of prompts.
    """
    data = load_activations(name, store=store)
    if "positive" not in data:
        raise RequestError(
            f"{name} is a capture of prompts: it has no two sides",
            expected="a contrast",
            next_step=Remedy.CAPTURE_CONTRAST,
        )
    return data


def describe_tensors(name: str | Path) -> CaptureRecord:
    """Make a record for tensors that have none: a `.pt` that came alone.

    Args:
        name: A path with or without `.pt`.

    Raises:
        StoreError: The tensors cannot be read.
    """
    paths = locate(name)
    file = DataFile(name=paths.tensors.name, bytes=paths.tensors.stat().st_size, sha256="")
    return make_record(load_activations(name), paths.name, file)


def _load_tensors(path: Path) -> CaptureData:
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise StoreError(f"there is no capture at {path}", next_step=Remedy.LIST_CAPTURES) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path} is damaged, or holds more than tensors and plain values; nothing in it was run"
            f" ({first_line(error)})",
            expected="a file that layerscope wrote",
            next_step=Remedy.CAPTURE_AGAIN,
        ) from error
    for key, required in _REQUIRED.items():
        if isinstance(data, dict) and key in data and required <= data.keys():
            return data  # type: ignore[return-value]  # just checked
    raise StoreError(f"{path} is not a capture", expected="the dictionaries that the capture functions return")


def _map_shards(paths: CapturePaths) -> CaptureData:
    from engine.store.shards import mapped_contrast, mapped_prompts, open_shards

    record = show_capture(paths.record)
    shards = open_shards(paths.record)
    data: CaptureData
    if record["kind"] == "contrast":
        data = mapped_contrast(shards, record["num_layers"], record["concept"])
    else:
        data = mapped_prompts(shards, record["num_layers"])
    if record["provenance"] is not None:
        data["provenance"] = record["provenance"]
    return data


def _require_same(paths: CapturePaths, data: CaptureData, record: CaptureRecord) -> None:
    with paths.tensors.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    layers = data["layers"] if "positive" in data else data["captured_layers"]
    kind = "contrast" if "positive" in data else "prompt"
    if digest != record["data"]["sha256"] or layers != record["captured_layers"] or kind != record["kind"]:
        raise StoreError(
            f"{paths.record} describes other tensors than {paths.tensors.name} holds",
            expected=f"the two files of one save; without {paths.record.name} the tensors are read alone",
            next_step=Remedy.CAPTURE_AGAIN,
        )
