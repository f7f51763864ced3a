"""Built-in neighbours: concepts that a contrast may measure instead of its own, captured once per model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.capture.prepare import prepare_capture
from engine.capture.provenance import trace_provenance
from engine.capture.request import CaptureRequest
from engine.capture.run_settings import Settings
from engine.concepts.catalog import load_concept
from engine.concepts.chat import chat_template_hash
from engine.concepts.pairs import draw_pairs
from engine.errors import RequestError, StoreError
from engine.records.captures import Concept, ContrastData, Provenance, model_differences
from engine.runtime import Steps, ignore_progress
from engine.store.names import CapturePaths, locate
from engine.store.neighbour_cache import alone, limit_cache, mark_used, neighbours_path
from engine.store.plan import ChangedPlanError
from engine.store.read import load_contrast
from engine.store.resume import capture_in_shards, saved_template_time
from engine.store.verify import Status, verify_capture

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

NEIGHBOURS = ("desirability", "sentiment", "formality", "verbosity")
_PAIRS = 72
_ONE_STATE = {"last": "last", "all": "last", "mean": "mean"}  # statistics read the last of all kept tokens
_IDENTIFY = (
    *("model", "revision", "weights", "configuration", "dtype", "attention", "autocast"),
    *("chat_template", "site", "positions"),
)
_MOST_BYTES = 4 * 2**30  # of all in the cache


def built_in_neighbours() -> list[Concept]:
    """The concepts that every contrast is compared with."""
    folder = Path(str(files("engine.concepts").joinpath("data")))
    return [load_concept(folder / f"{name}.toml") for name in NEIGHBOURS]


def capture_neighbours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    like: Provenance,
    *,
    concepts: Sequence[Concept] | None = None,
    folder: Path | None = None,
    steps: Steps | None = None,
) -> dict[str, ContrastData]:
    """Capture the neighbours of a contrast, or read them from an earlier run.

    They are captured with 72 pairs at all layers, once for each model, tokenizer, chat template, site, position and
    version of layerscope and transformers, and kept in the cache folder. Of several processes one captures, and the
    others wait for it. An interrupted capture is resumed. Once all take more than 4 GiB, a new one replaces those used
    longest ago, except any used in the last 24 hours.

    Args:
        model: The model of the contrast.
        tokenizer: Its tokenizer.
        like: Provenance of the contrast: the model must still be the same; the site and positions are copied.
        concepts: The neighbours; by default desirability, sentiment, formality and verbosity.
        folder: Where to keep them; by default in the user's cache folder.
        steps: Called with each step; an exception it raises stops the work.

    Returns:
        Name to contrast, with states read from disk on access.

    Raises:
        RequestError: The model has changed since the contrast was captured, or differs from its checkpoint, or the
            positions keep several tokens.
        CaptureError: A prompt cannot be captured.
        StoreError: The cache folder cannot be written.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=12, positions="last")
        >>> like = contrast["provenance"]
        >>> found = capture_neighbours(model, tokenizer, like, concepts=[load_concept("formality")])
        >>> found["formality"]["num_pairs"]
        72
    """
    steps = steps or ignore_progress
    return {
        concept.name: _one(model, tokenizer, request, paths, steps)
        for concept, request, paths in _requests(model, tokenizer, like, concepts, folder)
    }


def missing_neighbours(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    like: Provenance,
    *,
    concepts: Sequence[Concept] | None = None,
    folder: Path | None = None,
) -> list[Concept]:
    """Neighbours that `capture_neighbours`, with the same arguments, would have to capture first.

    Files are not verified: a damaged neighbour is not missing.

    Raises:
        RequestError: See `capture_neighbours`.
    """
    requests = _requests(model, tokenizer, like, concepts, folder)
    return [concept for concept, _, paths in requests if not paths.record.exists()]


def count_neighbour_prompts(concept: Concept) -> int:
    """Number of prompts of a concept that is captured as a neighbour."""
    return 2 * len(draw_pairs(concept, _PAIRS, 0))


def _requests(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    like: Provenance,
    concepts: Sequence[Concept] | None,
    folder: Path | None,
) -> list[tuple[Concept, CaptureRequest, CapturePaths]]:
    if "responses" in like:
        raise RequestError("neighbours are captured without responses", expected="a contrast without responses")
    if like["positions"] not in _ONE_STATE:
        raise RequestError(
            f"neighbours are not captured at positions {like['positions']}", expected="positions last, mean or all"
        )
    made = []
    for concept in built_in_neighbours() if concepts is None else concepts:
        request = CaptureRequest(
            concept,
            site=like["site"],
            positions=_ONE_STATE[like["positions"]],
            max_samples=_PAIRS,
            alias=like["alias"],
            shards=True,
        )
        now = trace_provenance(
            model,
            Settings.for_model(model, request),
            alias=like["alias"],
            chat_template=chat_template_hash(tokenizer),
            seed=request.seed,
        )
        _require_same_model(like, now)
        paths = locate(f"{concept.name}-{_fingerprint(now, concept, tokenizer)}", folder or neighbours_path())
        made.append((concept, replace(request, paths=paths), paths))
    return made


def _one(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: CaptureRequest,
    paths: CapturePaths,
    steps: Steps,
) -> ContrastData:
    if paths.store == neighbours_path():  # a folder of the caller's own is left alone
        mark_used(paths)  # before it is read, so that no other process deletes it meanwhile
    if _status(paths) != "ok":  # a complete one is only read, so that a shared cache can be read-only
        with alone(paths, steps):
            _complete(model, tokenizer, request, paths, steps)
    return load_contrast(paths.name, store=paths.store)


def _status(paths: CapturePaths) -> Status:
    try:
        return verify_capture(paths.name, store=paths.store).status
    except StoreError:  # there is none yet, or another process is replacing a damaged one
        return "unfinished"


def _complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: CaptureRequest,
    paths: CapturePaths,
    steps: Steps,
) -> None:
    """Capture a neighbour, unless another process has done it while this one waited."""
    status, name = _status(paths), paths.name.rpartition("-")[0]
    if status != "ok":
        log.info("capturing %s once for this model, to compare with; kept in %s", name, paths.store)
        _capture(
            model,
            tokenizer,
            replace(request, force=status in {"damaged", "unreadable"}),
            paths,
            partial(_named, steps, name),
        )
        if paths.store == neighbours_path():
            limit_cache(paths.store, _MOST_BYTES)


def _capture(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: CaptureRequest,
    paths: CapturePaths,
    steps: Steps,
) -> None:
    moment = None if request.force else saved_template_time(paths)
    prepared = prepare_capture(model, tokenizer, request, moment=moment, steps=steps)
    prepared = replace(prepared, settings=replace(prepared.settings, use_hooks=True))
    progress = partial(steps, "running prompts")
    try:
        capture_in_shards(prepared, paths, progress=progress, steps=steps)
    except ChangedPlanError:
        # What an interrupted run left does not fit this one, for example because it was on another device.
        prepared = replace(prepared, request=replace(request, force=True))
        capture_in_shards(prepared, paths, progress=progress, steps=steps)


def _require_same_model(like: Provenance, now: Provenance) -> None:
    if changes := [*like.get("altered", []), *now.get("altered", [])]:
        raise RequestError(
            f"the model differs from its checkpoint: {'; '.join(dict.fromkeys(changes))}",
            expected="a model whose neighbours can be kept for later captures",
        )
    differing = model_differences(like, now)
    if like["model"] != now["model"]:
        differing = [("model", like["model"], now["model"])]
    if differing:
        said = "; ".join(f"{field} was {before}, is now {after}" for field, before, after in differing)
        raise RequestError(
            f"this is not the model that the contrast was captured with: {said}",
            next_step="load that model with the same settings",
        )


def _fingerprint(provenance: Provenance, concept: Concept, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything that determines the states of a neighbour."""
    known = dict(provenance)
    adapters = [dict(adapter) | {"name": ""} for adapter in provenance.get("adapters", [])]
    identity = {name: known.get(name) for name in _IDENTIFY} | {
        "adapters": [adapter for adapter in adapters if adapter["active"] or adapter["merged"]],
        "versions": [provenance["versions"].get(name) for name in ("layerscope", "transformers")],
        "tokens": tokenizer(msgspec.json.encode(asdict(concept)).decode())["input_ids"],
        "concept": asdict(concept),
        "pairs": _PAIRS,
    }
    return hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()[:16]


def _named(steps: Steps, name: str, step: str, done: int, total: int) -> None:
    steps(f"{name}: {step}", done, total)
