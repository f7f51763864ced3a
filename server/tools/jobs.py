"""Tools about jobs: wait for one, cancel one; and how any job is answered."""

from typing import Annotated

import anyio
from mcp.types import CallToolResult
from pydantic import Field

from engine.records.files import CaptureRecord
from server.jobs import Job
from server.replies import (
    Estimate,
    JobReply,
    ModelState,
    ReadingReply,
    findings_of,
    send,
    summarise,
    warnings_of,
)
from server.tools.spec import ToolSpec, WaitS
from server.workbench import Ctx, workbench

_A_STEP = 0.001

Handle = Annotated[str, Field(description="Handle of a job, e.g. capture_contrast-1a2b3c")]


async def wait_for_job(ctx: Ctx, job: Handle, wait_s: WaitS = 40) -> Annotated[CallToolResult, JobReply]:
    """Wait for a job that an earlier call has started, and get its result."""
    return await _reply(ctx, workbench(ctx).jobs.find(job), wait_s)


async def cancel_job(ctx: Ctx, job: Handle) -> Annotated[CallToolResult, JobReply]:
    """Cancel a job. What is in the model stops after its current batch; nothing half-done is saved."""
    found = workbench(ctx).jobs.find(job)
    found.cancel()
    return await _reply(ctx, found, 10)


async def answer(ctx: Ctx, job: Job, wait_s: float) -> CallToolResult:
    """Answer the call that started a job: with its result if that comes in time, else with its handle.

    A client that goes away before it has the handle takes the job with it.
    """
    try:
        return await _reply(ctx, job, wait_s)
    except anyio.get_cancelled_exc_class():
        job.cancel()
        raise


async def _reply(ctx: Ctx, job: Job, wait_s: float) -> CallToolResult:
    told = -1.0

    async def report(seen: Job) -> None:
        nonlocal told
        told = max(float(seen.done), told + _A_STEP)  # must grow with every word, and a new step has no number
        await ctx.report_progress(told, seen.total or None, seen.step)

    await workbench(ctx).jobs.wait(job, wait_s, report)
    return send(describe(job))


def describe(job: Job) -> JobReply:
    """A job as clients see it."""
    reply = JobReply(
        job=job.id,
        status=job.status,
        step="" if job.finished else job.step,
        done=job.done,
        total=job.total,
        estimate=Estimate(**job.estimate) if job.estimate else None,
        error=job.error,
        next_step=_next_step(job),
    )
    if isinstance(job.result, ModelState):
        reply.model = job.result
        reply.next_step = f"capture_contrast(concept='honesty', model='{job.result.name}')"
    elif isinstance(job.result, tuple):
        reading, warnings = job.result
        if isinstance(reading, ReadingReply):
            reply.reading, reply.warnings = reading, warnings
            reply.next_step = "read_text with a text of the other side, or another layer, and compare"
    elif job.status == "done" and job.result is None:
        reply.status = "estimated"
        reply.next_step = "call again without dry_run to capture"
    elif isinstance(job.result, dict):
        record: CaptureRecord = job.result  # type: ignore[assignment]  # what a capture's work returns
        reply.capture, reply.findings, reply.warnings = summarise(record), findings_of(record), warnings_of(record)
        name = record["name"]
        reply.next_step = (
            f"rank_layers(name='{name}') for the layers, plot_capture(name='{name}') for the picture"
            if record["ranking"]
            else f"describe_capture(name='{name}')"
        )
    return reply


def _next_step(job: Job) -> str:
    return {
        "done": "",
        "failed": "correct what the error says and call again",
        "cancelled": "nothing was saved; call again to start over",
    }.get(job.status, f"wait_for_job(job='{job.id}'), or cancel_job(job='{job.id}')")


TOOLS = (
    ToolSpec(wait_for_job, "Wait for a job"),
    ToolSpec(cancel_job, "Cancel a job", writes=True),
)
