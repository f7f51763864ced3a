"""What the tools of one server share: settings, loaded models, jobs."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from mcp.server.mcpserver import Context

from engine.errors import Remedy, RequestError, nearest
from engine.records.files import CaptureRecord
from engine.store.catalog import list_captures, show_capture
from engine.store.names import locate
from server.jobs import Jobs
from server.settings import ServerSettings
from server.shelf import ModelShelf


@dataclass(frozen=True)
class Workbench:
    """What the tools of one server share.

    Attributes:
        settings: What they may do.
        models: Loaded models.
        jobs: Work that goes on.
    """

    settings: ServerSettings
    models: ModelShelf
    jobs: Jobs


Ctx = Context[Workbench, Any]


@asynccontextmanager
async def open_workbench(settings: ServerSettings, at_work: threading.Lock) -> AsyncIterator[Workbench]:
    """A workbench for as long as the server runs; at its end jobs are cancelled, and waited for.

    Args:
        settings: What the server may do.
        at_work: Held while a job runs.
    """
    async with anyio.create_task_group() as tasks:
        jobs = Jobs(tasks, at_work)
        try:
            yield Workbench(settings, ModelShelf(settings), jobs)
        finally:
            jobs.cancel_all()


def find_capture(ctx: Ctx, name: str) -> CaptureRecord:
    """The record of a capture.

    Raises:
        RequestError: There is none of that name; the message lists the nearest.
        StoreError: It cannot be used.
    """
    store = workbench(ctx).settings.store
    paths = locate(name, store)
    if not paths.exist:
        names = [entry.name for entry in list_captures(store)] if store.exists() else []
        raise RequestError(
            f"there is no capture called {name!r}; {nearest(name, names)}", next_step=Remedy.LIST_CAPTURES
        )
    return show_capture(name, store=store)


def workbench(ctx: Ctx) -> Workbench:
    """The workbench behind a call."""
    found: Workbench = ctx.request_context.lifespan_context
    return found
