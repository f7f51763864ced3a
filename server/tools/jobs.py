"""Tools about jobs: wait for one, cancel one; and how any job is answered."""

from typing import Annotated

import anyio
from mcp.types import CallToolResult
from pydantic import Field

from server.jobs import Job
from server.replies.jobs import JobReply, describe_job
from server.replies.reply import send
from server.tools.arguments import LONGEST_NAME, WaitS
from server.tools.spec import ToolSpec
from server.workbench import Ctx, workbench

_A_STEP = 0.001

Handle = Annotated[str, Field(description="Handle of a job, e.g. capture_contrast-1a2b3c", max_length=LONGEST_NAME)]


async def wait_for_job(ctx: Ctx, job: Handle, wait_s: WaitS = 40) -> Annotated[CallToolResult, JobReply]:
    """Wait for a job that an earlier call has started, and get its result."""
    return await _reply(ctx, workbench(ctx).jobs.find(job), wait_s)


async def cancel_job(ctx: Ctx, job: Handle) -> Annotated[CallToolResult, JobReply]:
    """Cancel a job. What is in the model stops after its current batch; of what is half-done only shards are kept."""
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
    return send(describe_job(job))


TOOLS = (
    ToolSpec(wait_for_job, "Wait for a job"),
    ToolSpec(cancel_job, "Cancel a job", writes=True),
)
