"""Make, encode and decode the JSON record of a capture; reading needs no torch."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import msgspec

from engine.errors import RequestError, StoreError
from engine.records.captures import CaptureData, ResponseText
from engine.records.files import CaptureRecord, DataFile
from engine.records.results import Count
from engine.remedies import Remedy
from engine.runtime import Steps, ignore_progress
from engine.store.files import open_regular
from engine.store.record_check import contradiction

if TYPE_CHECKING:
    from engine.records.captures import ActivationData, ContrastData
    from engine.records.results import ClassSummary, ConfoundReport, Ranking
    from engine.stats.held_out import HeldOutLayer

SCHEMA = 3
_LARGEST = 256 * 1024 * 1024  # bytes; 20,000 pairs take about 20 MB
CONFOUNDS, RANKING = "looking for confounds", "ranking layers"
"""Step names reported after the forward passes."""

Decoded = TypeVar("Decoded")


class Findings(TypedDict):
    """The record fields computed from a contrast."""

    ranking: Ranking | None
    sides: list[ClassSummary]
    unranked: str
    confounds: ConfoundReport | None


NO_FINDINGS = Findings(ranking=None, sides=[], unranked="", confounds=None)


class _Versioned(TypedDict):
    """The field that every version of the record has."""

    schema: Count


_VERSION = msgspec.json.Decoder(_Versioned)
_WHOLE = msgspec.json.Decoder(CaptureRecord)


def make_record(data: CaptureData, name: str, file: DataFile, steps: Steps | None = None) -> CaptureRecord:
    """Make the JSON record of a capture; for a contrast, rank its layers.

    Args:
        data: The capture.
        name: Its name in the store.
        file: The tensor file it was written to.
        steps: Called with each analysis step of a contrast; an exception it raises stops the work.
    """
    from engine.stats.summary import layer_table, prompts_of

    prompts = prompts_of(data)
    layers = prompts[0]["captured_layers"]
    positive, negative = (data["positive"], data["negative"]) if "positive" in data else (prompts, [])
    findings = find_in(data, steps) if "positive" in data else NO_FINDINGS
    record = CaptureRecord(
        schema=SCHEMA,
        name=name,
        kind="contrast" if "positive" in data else "prompt",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data=file,
        concept=data["concept"] if "positive" in data else None,
        num_pairs=len(negative),
        num_layers=prompts[0]["num_layers"],
        hidden_size=prompts[0]["activations"][layers[0]].shape[-1],
        captured_layers=layers,
        prompts=_texts(positive),
        negative_prompts=_texts(negative),
        factors=data.get("factors", []) if "positive" in data else [],
        statistics=layer_table(data),
        ranking=findings["ranking"],
        sides=findings["sides"],
        unranked=findings["unranked"],
        confounds=findings["confounds"],
        provenance=data.get("provenance"),
    )
    add_responses(record, responses_of(positive), responses_of(negative))
    return record


def responses_of(prompts: Sequence[ActivationData]) -> list[ResponseText]:
    """The responses to prompts; empty without responses."""
    given = [data["response"] for data in prompts if "response" in data]
    return [one for entry in given for one in (entry if isinstance(entry, list) else [entry])]


def add_responses(record: CaptureRecord, positive: list[ResponseText], negative: list[ResponseText]) -> None:
    """Add responses to a record, if there are any.

    Args:
        record: The record.
        positive: The responses to its `prompts`.
        negative: The responses to its `negative_prompts`.
    """
    if positive:
        record["responses"] = positive
    if negative:
        record["negative_responses"] = negative


def find_in(data: ContrastData, steps: Steps | None = None) -> Findings:
    """Rank the layers of a contrast and look for confounds.

    A contrast that cannot be ranked gets no ranking and a reason in `unranked`.

    Args:
        data: A contrast.
        steps: Called with each step, how many layers or confounds are done, and their total; an exception it raises
            stops the work.
    """
    from engine.stats.classes import summarise_layer
    from engine.stats.confounds import find_confounds
    from engine.stats.ranking import rank_layers

    sides: list[ClassSummary] = []

    def sum_up(layer: int, held_out: HeldOutLayer) -> None:
        summary = summarise_layer(layer, held_out)
        if summary is not None:
            sides.append(summary)

    report = steps or ignore_progress
    ranking: Ranking | None = None
    unranked = ""
    try:
        ranking = rank_layers(data, progress=partial(report, RANKING), look=sum_up)
    except RequestError as error:
        sides, unranked = [], error.problem
    confounds = find_confounds(data, ranking, progress=partial(report, CONFOUNDS))
    return Findings(ranking=ranking, sides=sides, unranked=unranked, confounds=confounds)


def _texts(prompts: list[ActivationData]) -> list[str]:
    texts = [data["prompt"] for data in prompts]
    return [text for entry in texts for text in ([entry] if isinstance(entry, str) else entry)]


def encode_record(record: CaptureRecord) -> bytes:
    """Encode a record as indented, readable JSON, with NaN as null."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode_whole(path: Path, content: bytes) -> CaptureRecord:
    """Decode a record that names its files as they are.

    Raises:
        StoreError: See `read_record`.
    """
    record = decode_record(path, content, _WHOLE)
    if problem := contradiction(record):
        raise StoreError(f"{path} is damaged: {problem}", next_step=Remedy.CAPTURE_AGAIN)
    return record


def read_record(path: Path) -> CaptureRecord:
    """Read the JSON record of a capture; the names in it become those of its files.

    Raises:
        StoreError: The file is missing, is not JSON, has another schema, lacks a field or contradicts itself; the
            message says which.
    """
    record = decode_whole(path, read_content(path))
    record["name"] = path.stem
    record["data"]["name"] = path.stem + ("/" if record["data"]["name"].endswith("/") else ".pt")
    return record


def read_content(path: Path) -> bytes:
    """Read the bytes of a record.

    Raises:
        StoreError: The file is missing, is not a regular file in its folder, is too large or cannot be read.
    """
    try:
        with open_regular(path, path.parent) as file:
            if os.fstat(file.fileno()).st_size > _LARGEST:
                raise StoreError(
                    f"{path} is damaged: it is too large for a record",
                    expected=f"at most {_LARGEST >> 20} MB",
                    next_step=Remedy.CAPTURE_AGAIN,
                )
            return file.read(_LARGEST)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", next_step="check the path") from error


def decode_record(path: Path, content: bytes, decoder: msgspec.json.Decoder[Decoded]) -> Decoded:
    """Decode a record, or only the fields that the decoder's type names.

    Args:
        path: Path of the record, for error messages.
        content: Bytes of the record.
        decoder: Decoder of the wanted type.

    Raises:
        StoreError: The content is not JSON, has another schema or lacks a field; the message says which.
    """
    try:
        schema = _VERSION.decode(content)["schema"]
        if schema != SCHEMA:
            raise StoreError(
                f"{path} has schema {schema}",
                expected=f"schema {SCHEMA}; another version of layerscope wrote this file",
                next_step=Remedy.CAPTURE_AGAIN,
            )
        return decoder.decode(content)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: text that is not UTF-8
        raise StoreError(f"{path} is damaged: {error}", next_step=Remedy.CAPTURE_AGAIN) from error
