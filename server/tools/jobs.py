"""Tools for jobs, and the answer of every tool that starts one."""

from typing import Annotated, Any, Literal

import anyio
from mcp.types import CallToolResult
from pydantic import BaseModel, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from engine.errors import RequestError
from server.jobs import Jobs, ServerJob
from server.tools.answer import Outline, Reply, send, shorten
from server.tools.spec import LONGEST_NAME, ToolSpec, WaitS
from server.workbench import Ctx, workbench

_A_STEP = 0.001
_MOST_LISTED = 20

Handle = Annotated[str, Field(description="Handle of a job, e.g. capture_contrast-1a2b3c", max_length=LONGEST_NAME)]


class Estimate(BaseModel):
    """The cost of a capture."""

    prompts: int
    tokens: int
    bytes: int
    in_shards: bool = False
    seconds: float | None = None
    neighbours: int = 0


class JobResult(Reply):
    """The result of a job: a model, a capture, a reading, steered texts or a causal ranking.

    Models and captures have the fields that `list_models` and `list_captures` return.
    """

    model: Outline | None = None
    capture: Outline | None = None
    findings: list[str] = Field(default_factory=list)
    reading: Outline | None = None
    steering: Outline | None = None
    causal: Outline | None = None

    def rest(self) -> str:
        """Where the rest of a capture or a reading is."""
        if self.reading is not None:
            return "call read_text with a part of the text"
        if self.steering is not None:
            return "call steer_text with fewer strengths or new tokens"
        if self.causal is not None:
            return "call rank_causally with fewer layers"
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


class JobOutline(JobReply):
    """The same reply, for tools whose schema need not repeat that of `wait_for_job`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Say only that the answer is an object."""
        return {"type": "object", "description": "As wait_for_job"}


class JobLine(BaseModel):
    """A job in a list; `ahead` counts the jobs that run before it."""

    job: str
    status: str
    ahead: int = 0
    capture: str | None = None
    step: str | None = None
    done: int = 0
    total: int = 0
    error: str | None = None


class WaitReply(JobReply):
    """The status of a job, or all jobs if the call names none."""

    status: Literal["waiting", "running", "done", "failed", "cancelled", "estimated", "listed"]  # type: ignore[assignment]  # only here
    jobs: list[Outline] = Field(default_factory=list, description="Without a handle: status, and jobs ahead, of each")


async def wait_for_job(ctx: Ctx, job: Handle | None = None, wait_s: WaitS = 40) -> Annotated[CallToolResult, WaitReply]:
    """Wait for a job that an earlier call started, and return its result. Over stdio, without job: list all jobs."""
    bench = workbench(ctx)
    if job is not None:
        return await _reply(ctx, bench.jobs.find(job), wait_s)
    if bench.settings.shared:
        raise RequestError(
            "wait_for_job needs the handle of a job: clients share this server",
            expected="job='...', from the answer of the call that started it",
            next_step="list_captures shows the finished captures",
        )
    return send(_list(bench.jobs))


async def cancel_job(ctx: Ctx, job: Handle) -> Annotated[CallToolResult, JobOutline]:
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


def describe_job(job: ServerJob, ahead: int = 0) -> JobReply:
    """Describe a job as clients see it.

    Args:
        job: The job.
        ahead: Number of jobs that run before it.
    """
    result = job.result if isinstance(job.result, JobResult) else JobResult(next_step=_next_step(job))
    return JobReply(
        **dict(result),
        job=job.id,
        status="estimated" if job.status == "done" and job.result is None else job.status,
        step=_step(job, ahead),
        done=job.done,
        total=job.total,
        estimate=Estimate(**job.estimate) if job.estimate else None,
        error=job.error,
    )


async def _reply(ctx: Ctx, job: ServerJob, wait_s: float) -> CallToolResult:
    reported = -1.0

    async def report(seen: ServerJob) -> None:
        nonlocal reported
        value = next_progress(reported, seen.done, seen.total)
        if value > reported:
            reported = value
            await ctx.report_progress(reported, seen.total or None, seen.step)

    jobs = workbench(ctx).jobs
    await jobs.wait(job, wait_s, report)
    return send(describe_job(job, jobs.ahead(job)), failed=job.status == "failed")


def next_progress(told: float, done: int, total: int) -> float:
    """Return the progress to report after `told`; it grows with every report, and stays below the total.

    MCP wants it to grow, but a step other than running prompts does not count: it adds a part of what is left.

    Args:
        told: The last value; -1 for none.
        done: Number of prompts that are done.
        total: Total number of prompts; 0 while unknown.
    """
    if not total:
        return max(float(done), told + _A_STEP)
    return max(min(done, total - 0.5), told + min(_A_STEP, (total - told) / 2))


def _list(jobs: Jobs) -> WaitReply:
    listed = jobs.listed()
    lines: list[BaseModel] = [
        JobLine(
            job=job.id,
            status=job.status,
            ahead=jobs.ahead(job),
            capture=job.capture or None,
            step=_step(job) or None,
            done=job.done,
            total=job.total,
            error=shorten(job.error) or None,
        )
        for job in listed[:_MOST_LISTED]
    ]
    more = f"{len(listed) - len(lines)} finished or later jobs are not shown" if len(listed) > len(lines) else ""
    next_step = "wait_for_job(job='...')" if listed else "there are no jobs; capture_contrast starts one"
    return WaitReply(status="listed", jobs=lines, cut=more, next_step=next_step)


def _step(job: ServerJob, ahead: int = 0) -> str:
    if job.finished:
        return ""
    return f"{job.step}: {ahead} job{'' if ahead == 1 else 's'} ahead" if ahead else job.step


def _next_step(job: ServerJob) -> str:
    steps: dict[Any, str] = {
        "done": "repeat the call without dry_run to capture",
        "failed": "correct what the error names and call again",
        "cancelled": _AFTER_CAUSAL if job.title == "rank_causally" else _after_cancel(job.kept),
    }
    return steps.get(job.status, f"wait_for_job(job='{job.id}'), or cancel_job(job='{job.id}')")


_AFTER_CAUSAL = "the measured parts are kept; repeat the call to resume"


def _after_cancel(kept: str) -> str:
    if not kept:
        return "nothing was saved; repeat the call to start over"
    return (
        "the saved shards are kept: repeat the call without replace to resume;"
        f" delete_capture(name='{kept}', confirm=true) deletes them and what they replace"
    )


TOOLS = (
    ToolSpec(wait_for_job, "Wait for a job"),
    ToolSpec(cancel_job, "Cancel a job", writes=True),
)
