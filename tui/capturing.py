"""Capture jobs: validate the form without torch, then estimate or run in a thread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.capture.request import CaptureRequest
from engine.concepts.catalog import load_concept
from engine.concepts.text_files import is_text_file, open_texts
from engine.errors import RequestError
from engine.inputs import user_path
from engine.jobs import Job, JobCancelled
from engine.models.registry import find_source
from engine.store.names import CapturePaths, default_name, locate
from engine.store.ownership import require_free
from tui.models import ModelCache

if TYPE_CHECKING:
    from engine.records.captures import CaptureEstimate


@dataclass(frozen=True)
class CaptureForm:
    """The fields of the form as typed.

    Attributes:
        model: Alias, hub ID, folder or `.gguf` file.
        concept: Name or `.toml` file of a concept, or a file of pairs or prompts (`.jsonl`, `.csv`, `.txt`).
        layers: Layers, as for `layerscope capture --layers`.
        positions: Positions, as for `layerscope capture --positions`.
        samples: Maximum number of pairs (0: all).
        name: Name of the capture; empty for the default.
    """

    model: str
    concept: str
    layers: str
    positions: str
    samples: str
    name: str


@dataclass(frozen=True)
class CapturePlan:
    """A validated form.

    Attributes:
        model: Model as typed.
        request: What to capture, and where to save it.
    """

    model: str
    request: CaptureRequest

    @property
    def paths(self) -> CapturePaths:
        """Where the capture is saved."""
        return cast("CapturePaths", self.request.paths)


@dataclass(frozen=True)
class SavedCapture:
    """Result of a capture job: the name of the capture."""

    name: str


def plan_capture(form: CaptureForm, store: Path) -> CapturePlan:
    """Validate a form before a model is loaded.

    Raises:
        LayerscopeError: A field is invalid.
    """
    model, concept = form.model.strip(), form.concept.strip()
    source = find_source(model)
    if not concept:
        raise RequestError("the field Concept is empty", expected="a concept, or a file of pairs or prompts")
    file = user_path(concept)
    if not form.samples.strip().isdecimal():
        raise RequestError(f"{form.samples!r} is not a number of pairs", expected="a whole number (0: all pairs)")
    request = CaptureRequest(
        open_texts(file) if is_text_file(file) else load_concept(concept),
        layers=form.layers.strip(),
        positions=form.positions.strip(),
        max_samples=int(form.samples) or None,
        alias=source.alias,
    )
    paths = locate(form.name.strip() or default_name(source.alias, request.called), store)
    require_free(paths, force=False, resume=True)
    return CapturePlan(model, replace(request, paths=paths))


def estimate_plan(plan: CapturePlan, models: ModelCache, job: Job) -> CaptureEstimate:
    """Estimate the cost, with a timed pass; the model stays loaded for the capture.

    Raises:
        LayerscopeError: The model cannot be loaded, or does not fit the plan.
    """
    job.checkpoint(f"loading {plan.model}")
    model, tokenizer, _ = models.get(plan.model)
    from engine.capture.prepare import prepare_capture
    from engine.store.specificity import estimate_with_neighbours

    prepared = prepare_capture(model, tokenizer, plan.request, steps=job.tell)
    job.checkpoint("timing a forward pass")
    return estimate_with_neighbours(prepared, timed=True)


def run_plan(plan: CapturePlan, models: ModelCache, job: Job) -> SavedCapture:
    """Capture and save.

    `job.kept` names the unfinished capture once it has shards. A cancel after the capture was saved stops only the
    comparison with its neighbours.

    Raises:
        LayerscopeError: The capture failed or cannot be saved.
    """

    def tell(step: str, done: int, total: int) -> None:
        job.kept = plan.paths.name if plan.paths.started else ""
        job.tell(step, done, total)

    try:
        tell(f"loading {plan.model}", 0, 0)
        model, tokenizer, _ = models.get(plan.model)
        from engine.store.save import capture_and_save

        capture_and_save(model, tokenizer, plan.request, progress=partial(tell, "running prompts"), steps=tell)
    except JobCancelled:
        if plan.paths.started or not plan.paths.record.exists():
            raise
    return SavedCapture(plan.paths.name)
