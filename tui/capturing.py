"""The work of a capture: what the form says, checked without torch, then estimated or run in a job's thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.capture.positions import parse_positions
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import WrittenPairs, read_pairs
from engine.errors import RequestError
from engine.models.registry import find_source
from engine.records.concepts import Concept
from engine.store.names import default_name, locate, require_free
from tui.jobs import Job
from tui.models import ModelKeeper

if TYPE_CHECKING:
    from engine.records.captures import CaptureEstimate


@dataclass(frozen=True)
class CaptureForm:
    """What was typed.

    Attributes:
        model: An alias, a hub id, a folder or a `.gguf` file.
        concept: A concept's name, its `.toml` file, or a file of pairs (`.jsonl`, `.csv`).
        layers: As the command line takes them.
        positions: As the command line takes them.
        samples: Most pairs; 0 for every one.
        name: What to save under; empty for the usual name.
    """

    model: str
    concept: str
    layers: str
    positions: str
    samples: str
    name: str


@dataclass(frozen=True)
class CapturePlan:
    """A form that has been found sensible.

    Attributes:
        model: As in the form.
        alias: The model's short name.
        what: The concept or the pairs.
        layers: As in the form.
        positions: As in the form.
        samples: Most pairs of a concept; None for every one.
        store: The folder.
        name: What to save under.
    """

    model: str
    alias: str
    what: Concept | WrittenPairs
    layers: str
    positions: str
    samples: int | None
    store: Path
    name: str


@dataclass(frozen=True)
class SavedCapture:
    """What a capture job comes to: the name to open."""

    name: str


def plan_capture(form: CaptureForm, store: Path) -> CapturePlan:
    """Find whatever is wrong with a form before minutes are spent on it.

    Raises:
        LayerscopeError: What is wrong, and what would be right.
    """
    source = find_source(form.model.strip())
    concept = form.concept.strip()
    if not concept:
        raise RequestError("there is nothing to capture", expected="a concept, or a file of pairs")
    written = concept.endswith((".jsonl", ".csv"))
    what = read_pairs(Path(concept).expanduser()) if written else load_concept(concept)
    parse_positions(form.positions.strip())
    if not form.samples.strip().isdecimal():
        raise RequestError(f"{form.samples!r} pairs cannot be drawn", expected="a number, 0 for every pair")
    called = what.name if isinstance(what, Concept) else Path(concept).stem
    name = form.name.strip() or default_name(source.alias, called)
    require_free(locate(name, store), force=False)
    samples = int(form.samples) or None
    return CapturePlan(
        form.model.strip(), source.alias, what, form.layers.strip(), form.positions.strip(), samples, store, name
    )


def estimate_plan(plan: CapturePlan, models: ModelKeeper, job: Job) -> CaptureEstimate:
    """What it would cost; loads the model, which the capture then finds loaded.

    Raises:
        LayerscopeError: The model cannot be loaded, or the plan does not fit it.
    """
    job.checkpoint(f"loading {plan.model}")
    model, tokenizer, _ = models.get(plan.model)
    from engine.capture.estimate import estimate_capture
    from engine.concepts.rendered import render_pairs

    job.checkpoint("timing two prompts")
    if isinstance(plan.what, WrittenPairs):
        prompts, rendered = [*plan.what.positive, *plan.what.negative], False
    else:
        pairs = render_pairs(tokenizer, plan.what, plan.samples)
        prompts, rendered = [*pairs.positive, *pairs.negative], pairs.chat_template is not None
    layers, positions = _layers(plan), plan.positions
    return estimate_capture(model, tokenizer, prompts, layers, positions=positions, rendered=rendered)


def run_plan(plan: CapturePlan, models: ModelKeeper, job: Job) -> SavedCapture:
    """Capture and save; when cancelled nothing is saved.

    Raises:
        LayerscopeError: It cannot be captured or saved.
    """
    job.checkpoint(f"loading {plan.model}")
    model, tokenizer, _ = models.get(plan.model)
    from engine.capture.contrast import capture_contrastive_activations, capture_from_concept
    from engine.store.write import save_activations

    how: dict[str, Any] = {
        "layers": _layers(plan),
        "positions": plan.positions,
        "use_hooks": True,
        "progress": job.progress,
    }
    capture: Callable[..., Any]
    if isinstance(plan.what, WrittenPairs):
        what = plan.what
        capture = partial(
            capture_contrastive_activations, model, tokenizer, what.positive, what.negative, factors=what.factors
        )
    else:
        capture = partial(capture_from_concept, model, tokenizer, plan.what, plan.alias, max_samples=plan.samples)
    data = capture(**how)
    job.checkpoint("ranking the layers and saving")
    save_activations(data, plan.name, store=plan.store)
    return SavedCapture(plan.name)


def _layers(plan: CapturePlan) -> str | None:
    return None if plan.layers == "all" else plan.layers
