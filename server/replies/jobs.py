"""What is answered about a job, and what it came to."""

from typing import Literal

from pydantic import BaseModel, Field

from engine.plots.words import describe_findings
from engine.records.files import CaptureRecord, record_warnings
from server.jobs import Job
from server.replies.captures import CaptureSummary, summarise_capture
from server.replies.directions import ReadingReply
from server.replies.models import ModelState
from server.replies.reply import Reply


class Estimate(BaseModel):
    """What a capture costs."""

    prompts: int
    tokens: int
    seconds: float
    bytes: int
    in_shards: bool = Field(default=False, description="If stopped, the same call goes on from the shards saved")


class JobResult(Reply):
    """What a job came to: one of a model, a capture and a reading."""

    model: ModelState | None = Field(default=None, description="What load_model came to")
    capture: CaptureSummary | None = Field(default=None, description="What a capture came to")
    findings: list[str] = Field(default_factory=list)
    reading: ReadingReply | None = Field(default=None, description="What read_text came to")


class JobState(Reply):
    """Where a job stands."""

    job: str = Field(description="Handle for wait_for_job and cancel_job")
    status: Literal["waiting", "running", "done", "failed", "cancelled", "estimated"]
    step: str = ""
    done: int = 0
    total: int = 0
    estimate: Estimate | None = None
    error: str = ""


class JobReply(JobResult, JobState):
    """Where a job stands, and then what it came to."""


def describe_job(job: Job) -> JobReply:
    """A job as clients see it."""
    result = job.result if isinstance(job.result, JobResult) else JobResult(next_step=_next_step(job))
    return JobReply(
        **dict(result),
        job=job.id,
        status="estimated" if job.status == "done" and job.result is None else job.status,
        step="" if job.finished else job.step,
        done=job.done,
        total=job.total,
        estimate=Estimate(**job.estimate) if job.estimate else None,
        error=job.error,
    )


def captured(record: CaptureRecord) -> JobResult:
    """What a capture came to."""
    name = record["name"]
    return JobResult(
        capture=summarise_capture(record),
        findings=describe_findings(record),
        warnings=record_warnings(record),
        next_step=f"rank_layers(name='{name}') for the layers, plot_capture(name='{name}') for the picture"
        if record["ranking"]
        else f"describe_capture(name='{name}')",
    )


def _next_step(job: Job) -> str:
    return {
        "done": "call again without dry_run to capture",
        "failed": "correct what the error says and call again",
        "cancelled": _after_cancel(job.kept),
    }.get(job.status, f"wait_for_job(job='{job.id}'), or cancel_job(job='{job.id}')")


def _after_cancel(kept: str) -> str:
    if not kept:
        return "nothing was saved; call again to start over"
    return (
        "the shards that were saved are kept: the same call, without replace, goes on from them;"
        f" delete_capture(name='{kept}', confirm=true) drops them"
    )
