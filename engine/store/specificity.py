"""Measure the specificity of saved contrasts, and keep it in their records."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.capture.estimate import estimate_capture
from engine.errors import LayerscopeError, RequestError, StoreError
from engine.jobs import JobCancelled
from engine.records.captures import CaptureEstimate, Concept, ContrastData
from engine.records.files import CaptureRecord
from engine.records.results import SpecificityReport
from engine.runtime import ALONE, Processes, Steps, ignore_progress
from engine.stats.comparison_rules import (
    differences_between,
    groups_in_common,
    provenance_of,
    require_contrasts,
    require_same_reading,
)
from engine.stats.specificity import measure_specificity, not_measured
from engine.store.catalog import show_capture
from engine.store.names import CapturePaths, locate
from engine.store.neighbours import built_in_neighbours, capture_neighbours, count_neighbour_prompts, missing_neighbours
from engine.store.ownership import require_amendable
from engine.store.read import load_contrast
from engine.store.record import read_record
from engine.store.write import amend_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.capture.prepare import PreparedCapture
    from engine.capture.request import CaptureRequest

log = logging.getLogger(__name__)

SPECIFICITY = "comparing with neighbours"
"""Step name reported while specificity is measured."""


def add_specificity(
    name: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    neighbours: Iterable[str | Path] = (),
    *,
    store: str | Path | None = None,
    steps: Steps | None = None,
) -> SpecificityReport:
    """Measure the specificity of a saved contrast and keep it in its record.

    Args:
        name: A path, such as "activations/honesty"; a plain name when `store` is given.
        model: The model that it was captured with.
        tokenizer: Its tokenizer.
        neighbours: Captures to compare with besides the built-in neighbours, on the same model, site and positions.
        store: The store folder, also of neighbours that are plain names.
        steps: Called with each step; an exception it raises stops the work.

    Returns:
        The report, see `measure_specificity`.

    Raises:
        RequestError: The capture is not a contrast, was not ranked, or cannot be compared with a neighbour.
        CaptureError: A neighbour cannot be captured.
        StoreError: A capture does not exist or is damaged, or the store cannot be written.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=12, positions="last")
        >>> paths = save_activations(contrast, "runs/twelve", force=True)
        >>> report = add_specificity("runs/twelve", model, tokenizer)
        >>> "formality" in [row["name"] for row in report["layers"][0]["neighbours"]]
        True
    """
    record, paths = show_capture(name, store=store), locate(name, store)
    require_contrasts(record)
    require_amendable(paths)
    others, warnings = _others(record, paths, neighbours, store)
    report = _measure(record, load_contrast(name, store=store), model, tokenizer, others, steps or ignore_progress)
    report["warnings"] += warnings
    amend_record(paths, record, {"specificity": report}, "compared with its neighbours")
    return report


def add_captured_specificity(
    request: CaptureRequest,
    paths: CapturePaths,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: ContrastData | None,
    *,
    steps: Steps,
    processes: Processes = ALONE,
) -> None:
    """Measure the specificity of a concept that was just saved; if that fails, its record says why.

    Args:
        request: The request of the capture.
        paths: Where it was saved.
        model: The model that it was captured with.
        tokenizer: Its tokenizer.
        data: The capture, if it is in memory.
        steps: Called with each step; an exception it raises stops the work, and the capture stays without specificity.
            A cancelled job ends here without an error, because the capture is saved.
        processes: The processes that shared the capture.
    """
    if not request.specificity or not isinstance(request.source, Concept) or not processes.is_main:
        return
    try:
        record = read_record(paths.record)
        if data is not None and not _describes(record, data):
            data = None  # replaced by another process since it was saved
        if record["ranking"] is not None:
            report = _attempt(request, record, paths, data, model, tokenizer, steps, processes)
            amend_record(paths, record, {"specificity": report}, "compared with its neighbours")
    except JobCancelled:
        log.info("cancelled after the capture was saved: it was not compared with its neighbours")
    except StoreError as error:  # replaced or deleted by another process meanwhile
        log.warning("%s", error)


def _describes(record: CaptureRecord, data: ContrastData) -> bool:
    ours = data.get("provenance"), data["num_pairs"], data["concept"]
    return (record["provenance"], record["num_pairs"], record["concept"]) == ours


def estimate_with_neighbours(prepared: PreparedCapture, *, timed: bool = False) -> CaptureEstimate:
    """Estimate a capture that is saved, with the prompts of the neighbours that it is compared with afterwards.

    Args:
        prepared: From `prepare_capture`.
        timed: See `estimate_capture`. The seconds are those of the capture alone.

    Raises:
        CaptureError: See `estimate_capture`.
    """
    estimate = estimate_capture(prepared, timed=timed)
    estimate["neighbours"] = _neighbour_prompts(prepared)
    return estimate


def _neighbour_prompts(prepared: PreparedCapture) -> int:
    """Number of prompts of neighbours that a capture runs besides its own; 0 if they are all cached."""
    from engine.models.offload import is_offloaded

    request, model = prepared.request, prepared.model
    if not (request.specificity and request.new_neighbours and isinstance(request.source, Concept)):
        return 0
    if is_offloaded(model):
        return 0
    like, concepts = prepared.provenance(prepared.settings), _built_in(request.source.name)
    try:
        missing = missing_neighbours(model, prepared.tokenizer, like, concepts=concepts)
    except RequestError:  # the neighbours cannot be captured, as the record will say
        return 0
    return sum(count_neighbour_prompts(concept) for concept in missing)


def _attempt(
    request: CaptureRequest,
    record: CaptureRecord,
    paths: CapturePaths,
    data: ContrastData | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    steps: Steps,
    processes: Processes,
) -> SpecificityReport:
    from engine.models.offload import is_offloaded

    if processes.count > 1:
        return not_measured(f"{processes.count} processes shared the capture", postponed=True)
    if is_offloaded(model):
        reason = "some weights are offloaded, and neighbours would take as long as the capture"
        return not_measured(reason, postponed=True)
    try:
        if not request.new_neighbours and missing_neighbours(
            model, tokenizer, provenance_of(record), concepts=_built_in(record["concept"])
        ):
            return not_measured("a quick capture", postponed=True)
        whole = data or load_contrast(paths.store / paths.name)
        return _measure(record, whole, model, tokenizer, {}, steps)
    except LayerscopeError as error:
        return not_measured(error.problem)


def _measure(
    record: CaptureRecord,
    data: ContrastData,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    others: dict[str, ContrastData],
    steps: Steps,
) -> SpecificityReport:
    ranking = record["ranking"]
    if ranking is None:
        raise RequestError(f"{record['name']} has no ranking: {record['unranked']}", expected="a ranked contrast")
    concepts = _built_in(record["concept"], *others)
    provenance, layer = provenance_of(record), ranking["layers"][0]["layer"]
    built_in = capture_neighbours(model, tokenizer, provenance, concepts=concepts, steps=steps)
    report = measure_specificity(data, built_in | others, layer=layer, progress=partial(steps, SPECIFICITY))
    if any(found["provenance"]["chat_template"] != provenance["chat_template"] for found in built_in.values()):
        report["warnings"].append("the built-in neighbours went through another chat template than these pairs")
    return report


def _built_in(*but: str | None) -> list[Concept]:
    return [concept for concept in built_in_neighbours() if concept.name not in but]


def _others(
    record: CaptureRecord, paths: CapturePaths, neighbours: Iterable[str | Path], store: str | Path | None
) -> tuple[dict[str, ContrastData], list[str]]:
    """Load the captures to compare with; also the warnings about how they differ."""
    found: dict[str, ContrastData] = {}
    warnings: list[str] = []
    for name in neighbours:
        if locate(name, store) == paths:
            raise RequestError(f"{record['name']} cannot be its own neighbour", expected="another contrast")
        other = show_capture(name, store=store)
        require_contrasts(other)
        require_same_reading(record, other, same_model=True)
        warnings += [f"{other['name']}: {warning}" for warning in differences_between(record, other)]
        warnings += groups_in_common(record, other)
        found[other["name"] if other["name"] not in found else str(name)] = load_contrast(name, store=store)
    return found, warnings
