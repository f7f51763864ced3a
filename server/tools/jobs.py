"""Tools for jobs, and the answer of every tool that starts one."""

from typing import Annotated, Any, Literal

import anyio
from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from server.jobs import ServerJob
from server.tools.answer import Outline, Reply, send
from server.tools.spec import LONGEST_NAME, ToolSpec, WaitS
from server.workbench import Ctx, workbench

_A_STEP = 0.001

Handle = Annotated[str, Field(description="Handle of a job, e.g. capture_contrast-1a2b3c", max_length=LONGEST_NAME)]


class Estimate(BaseModel):
    """The cost of a capture."""

    prompts: int
    tokens: int
    bytes: int
    in_shards: bool = False
    seconds: float | None = None


class JobResult(Reply):
    """The result of a job: a model, a capture or a reading.

    Models and captures have the fields that `list_models` and `list_captures` return.
    """

    model: Outline | None = None
    capture: Outline | None = None
    findings: list[str] = Field(default_factory=list)
    reading: Outline | None = None

    def rest(self) -> str:
        """Where the rest of a capture or a reading is."""
        if self.reading is not None:
            return "call read_text with a part of the text"
        return "describe_capture has more" if self.capture is not None else ""


class JobState(Reply):
    """The status of a job; the handle is absent if there is nothing to wait for."""

    job: str | None = None
    status: Literal["waiting", "running", "done", "failed", "cancelled", "estimated"]
    step: str = ""
    done: int = 0
    total: int = 0
    estimate: Outline | None = None
    error: str = ""


class JobReply(JobResult, JobState):
    """The status of a job and, once it is done, its result."""


async def wait_for_job(ctx: Ctx, job: Handle, wait_s: WaitS = 40) -> Annotated[CallToolResult, JobReply]:
    """Wait for a job that an earlier call started, and return its result."""
    return await _reply(ctx, workbench(ctx).jobs.find(job), wait_s)


async def cancel_job(ctx: Ctx, job: Handle) -> Annotated[CallToolResult, JobReply]:
    """Cancel a job. It stops after the current batch; nothing incomplete is kept, except the shards of a capture."""
    found = workbench(ctx).jobs.find(job)
    found.cancel()
    return await _reply(ctx, found, 10)


async def answer(ctx: Ctx, job: ServerJob, wait_s: float) -> CallToolResult:
    """Answer the call that started a job with its result or its handle.

    The result is returned if it is ready in time.

    If the client disconnects before it has the handle, the job is cancelled.
    """
    try:
        return await _reply(ctx, job, wait_s)
    except anyio.get_cancelled_exc_class():
        job.cancel()
        raise


def describe_job(job: ServerJob) -> JobReply:
    """Describe a job as clients see it."""
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


async def _reply(ctx: Ctx, job: ServerJob, wait_s: float) -> CallToolResult:
    reported = -1.0

    async def report(seen: ServerJob) -> None:
        nonlocal reported
        reported = max(float(seen.done), reported + _A_STEP)  # MCP requires progress to grow; a new step has no number
        await ctx.report_progress(reported, seen.total or None, seen.step)

    await workbench(ctx).jobs.wait(job, wait_s, report)
    return send(describe_job(job))


def _next_step(job: ServerJob) -> str:
    steps: dict[Any, str] = {
        "done": "repeat the call without dry_run to capture",
        "failed": "correct what the error names and call again",
        "cancelled": _after_cancel(job.kept),
    }
    return steps.get(job.status, f"wait_for_job(job='{job.id}'), or cancel_job(job='{job.id}')")


def _after_cancel(kept: str) -> str:
    if not kept:
        return "nothing was saved; repeat the call to start over"
    return (
        "the saved shards are kept: repeat the call without replace to resume;"
        f" delete_capture(name='{kept}', confirm=true) deletes them"
    )


TOOLS = (
    ToolSpec(wait_for_job, "Wait for a job"),
    ToolSpec(cancel_job, "Cancel a job", writes=True),
)
