"""The answer about a job in every status."""

import pytest

from engine.jobs import Status
from server.jobs import ServerJob
from server.tools.jobs import Estimate, JobResult, describe_job


@pytest.mark.parametrize("status", ["waiting", "running"])
def test_a_running_job_says_how_to_wait_and_cancel(status: Status) -> None:
    job = ServerJob(
        "capture_contrast", id="capture_contrast-1a2b3c", status=status, done=3, total=9, step="running prompts"
    )
    said = describe_job(job)
    assert (said.status, said.done, said.total, said.step) == (status, 3, 9, "running prompts")
    assert "wait_for_job(job='capture_contrast-1a2b3c')" in said.next_step
    assert "cancel_job" in said.next_step


def test_a_finished_job_returns_its_result_and_a_next_step() -> None:
    result = JobResult(findings=["layer 3 leads"], warnings=["few pairs"], next_step="rank_layers")
    said = describe_job(ServerJob("x", id="x-1", status="done", step="saving", result=result))
    assert (said.status, said.step, said.findings, said.warnings) == ("done", "", ["layer 3 leads"], ["few pairs"])
    assert said.next_step == "rank_layers"


def test_a_dry_run_returns_only_the_estimate() -> None:
    job = ServerJob("x", id="x-1", status="done", estimate={"prompts": 2, "tokens": 9, "seconds": 0.5, "bytes": 100})
    said = describe_job(job)
    assert said.status == "estimated"
    assert isinstance(said.estimate, Estimate)
    assert (said.estimate.prompts, said.estimate.bytes) == (2, 100)
    assert "dry_run" in said.next_step


@pytest.mark.parametrize(("status", "next_step"), [("failed", "correct"), ("cancelled", "nothing was saved")])
def test_failed_and_cancelled_jobs_say_so(status: Status, next_step: str) -> None:
    said = describe_job(ServerJob("x", id="x-1", status=status, error="too short"))
    assert (said.status, said.error) == (status, "too short")
    assert next_step in said.next_step


def test_kept_shards_are_reported_with_next_steps() -> None:
    said = describe_job(ServerJob("x", id="x-1", status="cancelled", kept="large"))
    assert "are kept: repeat the call without replace to resume" in said.next_step
    assert "delete_capture(name='large', confirm=true)" in said.next_step
