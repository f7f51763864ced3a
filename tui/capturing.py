"""The work of a capture: what the form says, checked without torch, then estimated or run in a job's thread."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.capture.selection import parse_positions
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import PairFile
from engine.concepts.text_files import PromptFile, is_text_file, open_texts
from engine.errors import RequestError
from engine.inputs import user_path
from engine.models.registry import find_source
from engine.records.captures import Concept
from engine.store.names import MOST_IN_MEMORY, default_name, locate, require_free
from tui.jobs import Job, JobCancelled
from tui.models import ModelKeeper

if TYPE_CHECKING:
    from engine.records.captures import SourceEstimate


@dataclass(frozen=True)
class CaptureForm:
    """What was typed.

    Attributes:
        model: An alias, a hub id, a folder or a `.gguf` file.
        concept: A concept's name, its `.toml` file, or a file of pairs or prompts (`.jsonl`, `.csv`, `.txt`).
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
        what: The concept, or the file of pairs or prompts.
        layers: As in the form.
        positions: As in the form.
        samples: Most pairs of a concept; None for every one.
        store: The folder.
        name: What to save under.
        most_in_memory: Bytes of states above which it goes into shards.
    """

    model: str
    alias: str
    what: Concept | PairFile | PromptFile
    layers: str
    positions: str
    samples: int | None
    store: Path
    name: str
    most_in_memory: int = MOST_IN_MEMORY


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
        raise RequestError("there is nothing to capture", expected="a concept, or a file of pairs or prompts")
    file = user_path(concept)
    what = open_texts(file) if is_text_file(file) else load_concept(concept)
    parse_positions(form.positions.strip())
    if not form.samples.strip().isdecimal():
        raise RequestError(f"{form.samples!r} pairs cannot be drawn", expected="a number, 0 for every pair")
    called = what.name if isinstance(what, Concept) else file.stem
    name = form.name.strip() or default_name(source.alias, called)
    require_free(locate(name, store), force=False, resume=True)
    samples = int(form.samples) or None
    return CapturePlan(
        form.model.strip(), source.alias, what, form.layers.strip(), form.positions.strip(), samples, store, name
    )


def estimate_plan(plan: CapturePlan, models: ModelKeeper, job: Job) -> SourceEstimate:
    """What it would cost; loads the model, which the capture then finds loaded.

    Raises:
        LayerscopeError: The model cannot be loaded, or the plan does not fit it.
    """
    job.checkpoint(f"loading {plan.model}")
    model, tokenizer, _ = models.get(plan.model)
    from engine.store.save import estimate_source

    return estimate_source(model, tokenizer, plan.what, **_how(plan, job))


def run_plan(plan: CapturePlan, models: ModelKeeper, job: Job) -> SavedCapture:
    """Capture and save. When it is cancelled the job is told whether shards are kept; nothing else is.

    Raises:
        LayerscopeError: It cannot be captured or saved.
    """
    try:
        job.checkpoint(f"loading {plan.model}")
        model, tokenizer, _ = models.get(plan.model)
        from engine.store.save import capture_into_store

        capture_into_store(
            model,
            tokenizer,
            plan.what,
            plan.name,
            **_how(plan, job),
            store=plan.store,
            model_key=plan.alias,
            progress=partial(job.tell, "running prompts"),
        )
    except JobCancelled:
        job.kept = plan.name if locate(plan.name, plan.store).unfinished else ""
        raise
    return SavedCapture(plan.name)


def _how(plan: CapturePlan, job: Job) -> dict[str, Any]:
    return {
        "layers": None if plan.layers == "all" else plan.layers,
        "max_samples": plan.samples,
        "positions": plan.positions,
        "most_in_memory": plan.most_in_memory,
        "steps": job.tell,
    }
