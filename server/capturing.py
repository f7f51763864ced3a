"""The work of capture jobs: estimate, run, save, reporting to the job. Imports torch: used in a job's thread only."""

from collections.abc import Callable, Sequence
from typing import Any

from engine.capture.activations import capture_activations
from engine.capture.contrast import capture_contrastive_activations, capture_from_concept
from engine.capture.estimate import estimate_capture
from engine.concepts.rendered import render_pairs
from engine.records.captures import CaptureData
from engine.records.concepts import Concept, Factors
from engine.store.catalog import show_capture
from engine.store.write import save_activations
from server.jobs import Job
from server.replies.jobs import JobResult, captured
from server.shelf import LoadedModel
from server.workbench import Workbench


def capture_and_save(
    bench: Workbench,
    model: str,
    name: str,
    capture: Callable[[LoadedModel, Job], CaptureData | None],
    job: Job,
    *,
    replace: bool,
) -> JobResult | None:
    """Load a model, capture with it, and save; None when only the estimate was wanted."""
    job.checkpoint(f"loading {model}")
    loaded = bench.models.get(model)
    job.checkpoint("running prompts")
    data = capture(loaded, job)
    if data is None:
        return None
    job.checkpoint("ranking layers and saving")
    store = bench.settings.store
    save_activations(data, name, store=store, force=replace)
    return captured(show_capture(name, store=store))


def capture_concept(
    loaded: LoadedModel, concept: Concept, max_samples: int, how: dict[str, str], job: Job, *, dry_run: bool
) -> CaptureData | None:
    """Capture a concept; None when only the estimate was wanted, which the job then has."""
    pairs = render_pairs(loaded.tokenizer, concept, max_samples)
    _estimate(loaded, [*pairs.positive, *pairs.negative], how, job, rendered=pairs.chat_template is not None)
    if dry_run:
        return None
    return capture_from_concept(
        loaded.model, loaded.tokenizer, concept, loaded.name, max_samples=max_samples, **_run(how, job)
    )


def capture_pairs(
    loaded: LoadedModel,
    pairs: Sequence[tuple[str, str]],
    factors: list[Factors] | None,
    how: dict[str, str],
    job: Job,
    *,
    dry_run: bool,
) -> CaptureData | None:
    """Capture pairs of the client's own."""
    positive, negative = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    _estimate(loaded, [*positive, *negative], how, job)
    if dry_run:
        return None
    return capture_contrastive_activations(
        loaded.model, loaded.tokenizer, positive, negative, factors=factors, **_run(how, job)
    )


def capture_text(
    loaded: LoadedModel, prompt: str, how: dict[str, str], job: Job, *, dry_run: bool
) -> CaptureData | None:
    """Capture one prompt."""
    _estimate(loaded, [prompt], how, job)
    return None if dry_run else capture_activations(loaded.model, loaded.tokenizer, prompt, **_run(how, job))


def _estimate(
    loaded: LoadedModel, prompts: list[str], how: dict[str, str], job: Job, *, rendered: bool = False
) -> None:
    job.estimate = estimate_capture(loaded.model, loaded.tokenizer, prompts, **_how(how), rendered=rendered)
    job.progress(0, len(prompts))


def _run(how: dict[str, str], job: Job) -> dict[str, Any]:
    return {**_how(how), "use_hooks": True, "progress": job.progress}


def _how(how: dict[str, str]) -> dict[str, Any]:
    return {**how, "layers": None if how["layers"] == "all" else how["layers"]}
