"""The workbench: what it finds in its store, and how it ends."""

import threading
import time

import anyio
import pytest
from mcp import Client

from server.app import LayerscopeServer
from server.jobs import Job
from server.settings import ServerSettings
from server.workbench import open_workbench
from tests.server.conftest import refused

pytestmark = pytest.mark.anyio


async def test_leaving_it_stops_what_runs_and_what_waits(settings: ServerSettings) -> None:
    started = threading.Event()

    def endless(job: Job) -> None:
        started.set()
        while True:
            job.checkpoint()
            time.sleep(0.01)

    at_work = threading.Lock()
    with anyio.fail_after(10):
        async with open_workbench(settings, at_work) as bench:
            jobs = [bench.jobs.start("count", endless) for _ in range(3)]
            await anyio.to_thread.run_sync(started.wait)
    assert [job.status for job in jobs] == ["cancelled"] * 3
    assert not at_work.locked()


async def test_a_capture_that_is_not_there_is_told_from_one_that_cannot_be_used(
    app: LayerscopeServer, settings: ServerSettings
) -> None:
    (settings.store / "warmth.json").write_text('{"schema": 99}')
    (settings.store / "loudness.pt").unlink()
    async with Client(app) as client:
        assert "there is no capture called 'warmt'" in await refused(client, "rank_layers", name="warmt")
        assert "has schema 99" in await refused(client, "rank_layers", name="warmth")
        assert "loudness.pt is missing" in await refused(client, "rank_layers", name="loudness")
