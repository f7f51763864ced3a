"""The work of capture jobs: estimate, run, save, reporting to the job. Imports torch: used in a job's thread only."""

from typing import Any

from engine.runtime import Progress
from engine.store.catalog import show_capture
from engine.store.names import locate
from engine.store.save import capture_into_store, estimate_source
from server.jobs import Job, JobCancelled
from server.replies.jobs import JobResult, captured
from server.request import CaptureRequest
from server.workbench import Workbench


def capture_and_save(bench: Workbench, request: CaptureRequest, name: str, job: Job) -> JobResult | None:
    """Load a model, capture with it, and save; None when only the estimate was wanted, which the job then has.

    Args:
        bench: What the tools share.
        request: What to capture.
        name: What to save under.
        job: Told how far it is. When it is cancelled, it is told too whether shards are kept.
    """
    store = bench.settings.store
    try:
        if not _capture(bench, request, name, job):
            return None
    except JobCancelled:
        job.kept = name if locate(name, store).unfinished else ""
        raise
    return captured(show_capture(name, store=store))


def _capture(bench: Workbench, request: CaptureRequest, name: str, job: Job) -> bool:
    """Estimate, and capture if that is wanted; whether it was."""
    job.checkpoint(f"loading {request.model}")
    loaded = bench.models.get(request.model)
    what: dict[str, Any] = {
        "layers": None if request.layers == "all" else request.layers,
        "max_samples": request.max_samples,
        "site": request.site,
        "positions": request.positions,
        "most_in_memory": bench.settings.most_in_memory,
        "steps": job.tell,
    }
    job.estimate = estimate_source(loaded.model, loaded.tokenizer, request.source, **what)
    job.progress(0, job.estimate["prompts"])
    if request.dry_run:
        return False
    capture_into_store(
        loaded.model,
        loaded.tokenizer,
        request.source,
        name,
        **what,
        store=bench.settings.store,
        model_key=loaded.name,
        force=request.replace,
        progress=_progress(job),
    )
    return True


def _progress(job: Job) -> Progress:
    def tell(done: int, total: int) -> None:
        job.checkpoint("running prompts")
        job.progress(done, total)

    return tell
