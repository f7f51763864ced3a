"""Word that the store has changed: when captures come, go or are replaced, and at no other time."""

from pathlib import Path

import anyio
import pytest

import engine
from engine.store.delete import delete_capture
from server.changes import changes

pytestmark = pytest.mark.anyio


async def test_captures_that_come_go_or_are_replaced_are_told_of(store: Path, tmp_path: Path) -> None:
    data = engine.load_activations("prompt", store=store)
    new = tmp_path / "not there yet"
    told = changes(new)
    for change in (
        lambda: engine.save_activations(data, "one", store=new),
        lambda: engine.save_activations(data, "one", store=new, force=True),
        lambda: delete_capture("one", store=new),
    ):
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with anyio.fail_after(10):
                    await anext(told)

            tasks.start_soon(wait)
            await anyio.sleep(0.2)
            change()


async def test_looking_is_no_change(store: Path) -> None:
    heard = False

    async def listen() -> None:
        nonlocal heard
        async for _ in changes(store):
            heard = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.sleep(0.2)
        engine.load_activations("prompt", store=store)
        (store / "note.txt").write_text("mine")
        await anyio.sleep(2.2)
        tasks.cancel_scope.cancel()
    assert not heard
