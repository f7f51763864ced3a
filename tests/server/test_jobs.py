"""Jobs: handles, progress, cancel that stops the model, many clients."""

import threading
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client

from engine.errors import RequestError
from server.app import LayerscopeServer, build_server
from server.jobs import Jobs, ServerJob
from server.settings import ServerSettings
from server.tools.jobs import next_progress
from tests.server.conftest import (
    DONE,
    ERAS,
    Json,
    allow,
    call,
    contents,
    failed,
    many_pairs,
    refused,
    running_http,
)
from tests.server.test_journey import finished

pytestmark = pytest.mark.anyio

MANY = 400  # pairs: some fifty batches of the slow model


async def start_long(client: Client) -> Json:
    """Start a capture that takes seconds; return once prompts are running."""
    job = await call(
        client,
        "capture_contrast",
        pairs=many_pairs(MANY),
        model="slow",
        positions="last",
        name="long",
        wait_s=0,
    )
    with anyio.fail_after(30):
        while job["done"] == 0:
            assert job["status"] in {"waiting", "running"}, job
            job = await call(client, "wait_for_job", job=job["job"], wait_s=0.1)
    return job


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_that_does_not_wait_answers_with_a_handle(app: LayerscopeServer, era: str) -> None:
    async with Client(app, mode=era) as client:
        job = await call(client, "load_model", model="tiny", wait_s=0)
        assert job["status"] in {"waiting", "running"}
        assert job["job"] in job["next_step"]
        done = await call(client, "wait_for_job", job=job["job"])
        assert (done["status"], done["model"]["name"], done["model"]["layers"]) == ("done", "tiny", 4)


@pytest.mark.parametrize("era", ERAS)
async def test_progress_grows_with_every_report(app: LayerscopeServer, era: str) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async with Client(app, mode=era) as client:
        asked = {"pairs": many_pairs(64), "model": "slow", "positions": "last"}
        await client.call_tool("capture_contrast", asked, progress_callback=note)
    values = [progress for progress, _, _ in seen]
    assert len(values) > 2
    assert all(before < after for before, after in pairwise(values)), values
    assert {total for _, total, _ in seen} <= {None, 128}
    assert all(progress <= total for progress, total, _ in seen if total)
    assert all(message for _, _, message in seen)


@pytest.mark.parametrize("era", ERAS)
async def test_cancel_stops_the_model_within_a_batch_and_saves_nothing(
    app: LayerscopeServer, store: Path, era: str
) -> None:
    before = contents(store)
    async with Client(app, mode=era) as client:
        job = await start_long(client)
        begun = time.perf_counter()
        ended = await call(client, "cancel_job", job=job["job"])
        assert ended["status"] == "cancelled"
        assert time.perf_counter() - begun < 2
        assert 0 < ended["done"] < ended["total"] == 2 * MANY
        assert (await call(client, "wait_for_job", job=job["job"]))["status"] == "cancelled"
        again = await finished(client, await call(client, "load_model", model="tiny"))
        assert again["status"] == "done"  # the turn was released
    assert contents(store) == before


async def test_a_waiting_job_is_cancelled_at_once(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        running = await start_long(client)
        waiting = await call(client, "load_model", model="tiny", wait_s=0)
        begun = time.perf_counter()
        assert (await call(client, "cancel_job", job=waiting["job"]))["status"] == "cancelled"
        assert time.perf_counter() - begun < 1
        still = await call(client, "wait_for_job", job=running["job"], wait_s=0)
        assert still["status"] == "running"
        await call(client, "cancel_job", job=running["job"])


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_disconnects_before_the_answer_cancels_its_job(
    app: LayerscopeServer, store: Path, era: str
) -> None:
    async with Client(app, mode=era) as client:
        await finished(client, await call(client, "load_model", model="slow"))
        with anyio.move_on_after(0.5) as patience:
            await client.call_tool(
                "capture_contrast", {"pairs": many_pairs(MANY), "model": "slow", "positions": "last", "name": "long"}
            )
        assert patience.cancelled_caught
        begun = time.perf_counter()
        other = await finished(client, await call(client, "load_model", model="tiny"))
        assert other["status"] == "done"
        assert time.perf_counter() - begun < 3  # a running job would have delayed this
    assert not (store / "long.pt").exists()


async def test_stopping_the_server_cancels_the_running_job(settings: ServerSettings, store: Path) -> None:
    async with Client(build_server(settings)) as client:
        await start_long(client)
        begun = time.perf_counter()
    assert time.perf_counter() - begun < 2
    assert not (store / "long.pt").exists()


@pytest.mark.slow
async def test_twenty_clients_at_once(store: Path, tiny_folder: Path) -> None:
    """Each captures under its own name and under a shared one, which one client wins."""
    outcomes: list[str] = []

    async def visit(url: str, number: int) -> None:
        async with Client(url, mode=ERAS[number % 2]) as client:
            await call(client, "list_captures")
            own = await call(client, "capture_prompts", prompts=["w5 w6"], model="tiny", name=f"own-{number}")
            assert (await finished(client, own))["status"] == "done"
            result = await client.call_tool("capture_prompts", {"prompts": ["w7"], "model": "tiny", "name": "wanted"})
            structure: Any = getattr(result, "structured_content", None)
            job = await finished(client, structure) if structure else {"status": "refused"}
            outcomes.append(job["status"])
            assert (await call(client, "describe_capture", name=f"own-{number}"))["capture"]["prompts"] == 1

    with running_http(store, *allow(tiny_folder)) as (url, _), anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(visit, url, number)
    assert outcomes.count("done") == 1
    assert set(outcomes) == {"done", "refused"}
    assert {f"own-{number}.json" for number in range(20)} <= set(contents(store))
    assert not list(store.glob(".*"))


async def test_an_unknown_handle_names_the_nearest(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        job = await finished(client, await call(client, "load_model", model="tiny"))
        said = await refused(client, "wait_for_job", job=job["job"][:-1])
        assert job["job"] in said


@pytest.mark.parametrize("era", ERAS)
async def test_a_job_that_fails_is_an_error_and_says_why(app: LayerscopeServer, era: str) -> None:
    async with Client(app, mode=era) as client:
        job = await failed(client, "capture_prompts", prompts=["w5"], model="tiny", layers="99", name="no")
        assert job["status"] == "failed"
        assert "99" in job["error"]
        assert await failed(client, "wait_for_job", job=job["job"]) == job
        assert await failed(client, "cancel_job", job=job["job"]) == job
        assert (await call(client, "wait_for_job"))["jobs"][0]["error"] == job["error"]


async def test_clients_of_a_shared_server_learn_nothing_of_the_jobs_of_others(settings: ServerSettings) -> None:
    async with Client(build_server(replace(settings, shared=True))) as client:
        job = await finished(client, await call(client, "load_model", model="tiny"))
        assert len(job["job"]) > len("load_model-") + 20  # nobody guesses it
        for handle in (job["job"][:-1], "load_model-1a2b3c"):
            for tool in ("wait_for_job", "cancel_job"):
                said = await refused(client, tool, job=handle)
                assert job["job"] not in said
                assert "from the answer of the call that started the job" in said
        said = await refused(client, "wait_for_job")
        assert "needs the handle of a job" in said
        assert job["job"] not in said
        assert await call(client, "wait_for_job", job=job["job"]) == job


async def test_without_a_handle_the_jobs_are_listed_with_what_is_ahead(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        none = await call(client, "wait_for_job")
        assert (none["status"], none["jobs"]) == ("listed", [])
        before = await finished(client, await call(client, "load_model", model="tiny"))
        running = await start_long(client)
        first = await call(client, "load_model", model="tiny", wait_s=0)
        second = await call(client, "capture_prompts", prompts=["w5"], model="tiny", name="mine", wait_s=0)
        assert second["step"] == "waiting for its turn: 2 jobs ahead"
        listed = (await call(client, "wait_for_job"))["jobs"]
        assert [(job["job"], job["status"], job["ahead"]) for job in listed] == [
            (running["job"], "running", 0),
            (first["job"], "waiting", 1),
            (second["job"], "waiting", 2),
            (before["job"], "done", 0),
        ]
        assert (listed[0]["capture"], listed[2]["capture"], "capture" in listed[1]) == ("long", "mine", False)
        assert 0 < listed[0]["done"] < listed[0]["total"]
        for job in (second, first, running):
            await call(client, "cancel_job", job=job["job"])


async def test_a_long_list_of_jobs_says_what_it_leaves_out(app: LayerscopeServer) -> None:
    async with Client(app) as client:
        for _ in range(25):
            job = await call(client, "load_model", model="tiny", wait_s=0)
        await finished(client, job)
        listed = await call(client, "wait_for_job")
    assert (len(listed["jobs"]), listed["jobs"][0]["job"]) == (20, job["job"])
    assert listed["cut"] == "5 finished or later jobs are not shown"


@pytest.mark.parametrize("shared", [False, True])
async def test_a_name_that_a_job_captures_is_taken_unless_it_is_to_be_replaced(
    settings: ServerSettings, store: Path, shared: bool
) -> None:
    async with Client(build_server(replace(settings, shared=shared))) as client:
        running = await start_long(client)
        asked = {"prompts": ["w5 w6"], "model": "tiny", "wait_s": 0}
        one = await call(client, "capture_prompts", **asked, name="wanted")
        for name, job in (("long", running), ("wanted", one), ("wanted.pt", one)):
            said = await refused(client, "capture_prompts", **asked, name=name)
            assert repr(name.removesuffix(".pt")) in said
            assert "replace=true" in said
            assert (job["job"] in said) is not shared
        estimate = await call(client, "capture_prompts", **asked, name="wanted", dry_run=True)
        later = await call(client, "capture_prompts", **asked, name="wanted", replace=True, positions="last")
        await call(client, "cancel_job", job=running["job"])
        assert (await finished(client, estimate))["status"] == "estimated"
        assert (await finished(client, one))["status"] == "done"
        assert (await finished(client, later))["capture"]["positions"] == "last"
        assert (await finished(client, await call(client, "capture_prompts", **asked, name="long")))["status"] == "done"
    assert {"wanted.json", "long.json"} <= set(contents(store))


async def test_jobs_run_one_at_a_time_in_order() -> None:
    order: list[int] = []
    at_work = threading.Semaphore(1)

    def work(number: int, _job: ServerJob) -> int:
        assert at_work.acquire(blocking=False)
        time.sleep(0.01)
        order.append(number)
        at_work.release()
        return number

    async with anyio.create_task_group() as tasks:
        jobs = Jobs(tasks, threading.Lock())
        started = [jobs.start("count", partial(work, number)) for number in range(5)]
        for job in started:
            await jobs.wait(job, 5)
    assert [job.result for job in started] == order == [0, 1, 2, 3, 4]
    assert {job.status for job in started} <= DONE


async def test_old_finished_jobs_are_forgotten() -> None:
    async with anyio.create_task_group() as tasks:
        jobs = Jobs(tasks, threading.Lock())
        first = jobs.start("count", lambda _job: 0)
        await jobs.wait(first, 5)
        for _ in range(4):
            for _ in range(50):
                last = jobs.start("count", lambda _job: 0)
            await jobs.wait(last, 10)
    with pytest.raises(RequestError, match="no job"):
        jobs.find(first.id)
    assert jobs.find(last.id) is last


async def test_too_many_jobs_are_refused() -> None:
    go_on = threading.Event()
    async with anyio.create_task_group() as tasks:
        jobs = Jobs(tasks, threading.Lock())
        started = [jobs.start("count", lambda _job: go_on.wait(10)) for _ in range(100)]
        with pytest.raises(RequestError, match="100 jobs"):
            jobs.start("count", lambda _job: 0)
        go_on.set()
        for job in started:
            await jobs.wait(job, 10)
        last = jobs.start("count", lambda _job: 7)
        await jobs.wait(last, 10)
    assert last.result == 7


def test_only_prompts_are_counted() -> None:
    """Other steps report text, so the count of prompts does not change."""
    job = ServerJob("count", id="count-1")
    assert job.step == "waiting for its turn"
    job.progress(2, 2)
    job.tell("ranking layers", 1, 4)
    assert (job.step, job.done, job.total) == ("ranking layers: 1 of 4", 2, 2)
    job.tell("reading prompts", 7, 0)
    assert (job.step, job.done, job.total) == ("reading prompts: 7", 2, 2)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40))
def test_progress_never_exceeds_its_total_nor_goes_back(reports: list[tuple[int, int]]) -> None:
    """Whatever a step reports: prompts of a batch that runs again count once."""
    job, told = ServerJob("count", id="count-1"), -1.0
    for done, total in reports:
        before = (job.done, job.total)
        job.progress(done, total)
        assert before <= (job.done, job.total)
        assert job.done <= job.total
        value = next_progress(told, job.done, job.total)
        assert value >= told
        assert value <= (job.total or value)
        told = value
