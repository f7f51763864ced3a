"""Load captures from a store without running any code they contain."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from engine.errors import RequestError, StoreError
from engine.records.captures import CaptureData, ContrastData
from engine.records.files import CaptureRecord, DataFile
from engine.remedies import Remedy
from engine.store.archive import load_archive
from engine.store.catalog import show_capture
from engine.store.contents import require_capture
from engine.store.files import regular_size
from engine.store.names import CapturePaths, is_present, locate
from engine.store.record import make_record, read_record
from engine.store.replace import read_whole

log = logging.getLogger(__name__)


def load_activations(name: str | Path, *, store: str | Path | None = None) -> CaptureData:
    """Load a capture, and check that its tensors match its record.

    Args:
        name: A path with or without `.pt`; a plain name when `store` is given.
        store: The store folder.

    Returns:
        The saved capture with provenance and factors. If the record is missing (a `.pt` copied alone, or an interrupted
        save), both are absent and a warning is logged. Captures in shards load the states of a layer on first access.

    Raises:
        StoreError: The capture does not exist, a file is damaged or holds more than tensors and plain values, or the
            record describes other tensors. Checksums are checked first, so damaged tensors are never unpickled.
        MemoryError: The tensors do not fit in memory.

    Example:
        >>> load_activations("activations/smollm2_honesty")["concept"]
        'honesty'
    """
    paths = locate(name, store)
    return read_whole(paths, partial(_load, paths))


def _load(paths: CapturePaths) -> CaptureData:
    if paths.in_shards:
        return _map_shards(paths)
    record = read_record(paths.record) if is_present(paths.record) and is_present(paths.tensors) else None
    found = load_archive(paths.tensors, paths.store, record["data"]["sha256"] if record else None)
    data = require_capture(found, paths.tensors)
    if record is None:
        log.warning("%s has no JSON record: provenance and factors are unknown", paths.tensors)
        return data
    _require_same(paths, data, record)
    if record["provenance"] is not None:
        data["provenance"] = record["provenance"]
    if "positive" in data and record["factors"]:
        data["factors"] = record["factors"]
    _add_responses(data, record)
    return data


def _add_responses(data: CaptureData, record: CaptureRecord) -> None:
    if "positive" not in data:
        responses = record.get("responses", [])
        if responses:
            data["response"] = responses[0] if isinstance(data["prompt"], str) else responses
        return
    for prompts, responses in (
        (data["positive"], record.get("responses", [])),
        (data["negative"], record.get("negative_responses", [])),
    ):
        for prompt, response in zip(prompts, responses, strict=bool(responses)):
            prompt["response"] = response


def load_contrast(name: str | Path, *, store: str | Path | None = None) -> ContrastData:
    """Load a capture of pairs, and refuse a capture of prompts.

    Args:
        name: See `load_activations`.
        store: See `load_activations`.

    Raises:
        StoreError: See `load_activations`.
        RequestError: The capture holds prompts, not pairs.
    """
    data = load_activations(name, store=store)
    if "positive" not in data:
        raise RequestError(
            f"{name} is a capture of prompts: it has no positive and negative class",
            expected="a contrast",
            next_step=Remedy.CAPTURE_CONTRAST,
        )
    return data


def describe_tensors(name: str | Path) -> CaptureRecord:
    """Make a record for a `.pt` file that has none.

    Args:
        name: A path with or without `.pt`.

    Raises:
        StoreError: The tensors cannot be read.
    """
    paths = locate(name)
    data = load_activations(name)
    file = DataFile(name=paths.tensors.name, bytes=regular_size(paths.tensors), sha256="")
    return make_record(data, paths.name, file)


def _map_shards(paths: CapturePaths) -> CaptureData:
    from engine.store.shards import mapped_contrast, mapped_prompts, open_shards

    record = show_capture(paths.record)
    shards = open_shards(paths.record)
    if not shards:
        raise StoreError(f"the capture {paths.name!r} has no shards", next_step=Remedy.CAPTURE_AGAIN)
    data: CaptureData
    if record["kind"] == "contrast":
        data = mapped_contrast(shards, record["num_layers"], record["concept"], responses="responses" in record)
    else:
        data = mapped_prompts(shards, record["num_layers"], responses="responses" in record)
    if record["provenance"] is not None:
        data["provenance"] = record["provenance"]
    return data


def _require_same(paths: CapturePaths, data: CaptureData, record: CaptureRecord) -> None:
    if "positive" in data:
        found = ("contrast", data["layers"], data["num_pairs"], data["num_pairs"])
    else:
        found = ("prompt", data["captured_layers"], 0, len(data["input_ids"]))
    if found != (record["kind"], record["captured_layers"], record["num_pairs"], len(record["prompts"])):
        raise StoreError(
            f"{paths.record} does not match the tensors in {paths.tensors.name}",
            expected=f"two files from the same save; without {paths.record.name}, the tensors load on their own",
            next_step=Remedy.CAPTURE_AGAIN,
        )
