"""Hostile names and records on the screens of the app: no control character reaches the terminal."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest
from rich.segment import Segment
from textual.color import Color
from textual.widgets import Input

from tests.engine.cli.test_console import CONTROL, HOSTILE, OF_RICH, hostile, make_hostile
from tests.tui.conftest import put, ranked_record
from tests.tui.screen_text import screen_text, wait_for
from tui.app import LayerscopeApp
from tui.widgets.words import NoControls

pytestmark = pytest.mark.anyio
OF_THE_APP = re.compile(r"\x1b\[[0-9;:<>=?$]*[a-zA-Z]|\x1b\]22;[a-z-]*\x07|\r\n?")  # OSC 22: the mouse pointer


@pytest.fixture
def hostile_store(store: Path) -> Path:
    """The store with hostile records, a hostile file name and one that is not UTF-8."""
    for name in ("small_warmth", "small_calm", "some_prompt"):
        make_hostile(store / name)
    (store / f"a{HOSTILE}\n.json").write_text("{")
    Path(os.fsdecode(os.fsencode(store / "b") + b"\xff.json")).write_text("{")
    return store


@pytest.mark.slow
async def test_every_screen_shows_them_escaped(hostile_store: Path) -> None:
    app = LayerscopeApp(hostile_store, filter_text=HOSTILE)
    shown = ""
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        shown += await wait_for(pilot, "of 6 captures")
        await pilot.press("escape")
        shown += await wait_for(pilot, r"✗ a\x1b]0;title", r"✗ b\udcff: ")
        await pilot.press("y")
        shown += await wait_for(pilot, "copied")
        await pilot.press("G", "enter")
        shown += await wait_for(pilot, "cannot be opened")
        await pilot.press("g", "space", "space", "c")
        shown += await wait_for(pilot, "by relative depth")
        await pilot.press("escape")
        await wait_for(pilot, "6 captures")
        await pilot.press("g", "enter")
        shown += await wait_for(pilot, "Held-out projections", r"\x1b]0;title")
        for key in ("2", "3", "4", "space", "e"):
            await pilot.press(key)
            await pilot.pause(0.2)
            shown += screen_text(app)
        app.notify(HOSTILE, title=HOSTILE)
        shown += await wait_for(pilot, "Save this view as", r"\x1b]0;title")
    assert CONTROL.search(shown) is None


async def test_a_terminal_gets_only_what_the_app_itself_sends(hostile_store: Path) -> None:
    environment = os.environ | {
        "TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver",
        "COLUMNS": "160",
        "ROWS": "40",
    }
    command = [sys.executable, "-m", "engine", "tui", str(hostile_store), "--filter", HOSTILE]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment)
    assert process.stdin
    assert process.stdout
    sent = ""
    async with asyncio.timeout(60):
        while await process.stdout.readline() != b"__GANGLION__\n":
            pass
        while "6 captures" not in OF_RICH.sub("", sent):
            kind, size = await process.stdout.readexactly(1), await process.stdout.readexactly(4)
            data = await process.stdout.readexactly(int.from_bytes(size, "big"))
            sent += data.decode() if kind == b"D" else ""
        quits = json.dumps({"type": "quit"}).encode()
        process.stdin.write(b"M" + len(quits).to_bytes(4, "big") + quits)
        await process.wait()
    assert CONTROL.search(OF_THE_APP.sub("", sent)) is None


def test_whatever_a_widget_draws_is_cleared_of_them() -> None:
    drawn = NoControls().apply([Segment("plain"), Segment(f"a{HOSTILE}\n\tb\udcff")], Color(0, 0, 0))
    assert "".join(segment.text for segment in drawn).startswith("plaina]0;title[2J31mb")
    assert CONTROL.search("".join(segment.text for segment in drawn)) is None


async def test_brackets_in_names_are_text(store: Path) -> None:
    record = ranked_record("small_new", peak=3, day=9, model="[b]m[/]")
    put(store, record)
    async with LayerscopeApp(store).run_test(size=(160, 40)) as pilot:
        await wait_for(pilot, "[b]m[/]")


LONG = f"{HOSTILE}\r\udcff {'x' * 3000}"


async def test_the_form_for_a_capture_shows_them_escaped(real_store: Path) -> None:
    app = LayerscopeApp(real_store)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        shown = await wait_for(pilot, "New capture")
        for field in ("model", "concept", "layers", "positions", "samples", "name"):
            entry = app.screen.query_one(f"#{field}", Input)
            usual = {"concept": "honesty", "model": "tiny"}.get(field, entry.value)
            for text in (LONG, f"{LONG}.toml", f"{LONG}.txt", f"/{LONG}"):
                entry.value = text
                entry.focus()
                await pilot.press("enter")
                await pilot.pause(0.1)
                shown += screen_text(app)
            shown += await wait_for(pilot, r"\x1b]0;title")
            assert "This is a bug" not in shown
            entry.value = usual
    assert CONTROL.search(shown) is None


async def test_the_tokens_screen_shows_them_escaped(real_store: Path) -> None:
    path = real_store / "tiny_loud.json"
    record = json.loads(path.read_text())
    for part in ("prompts", "negative_prompts", "factors", "concept", "other_pairs"):
        record[part] = hostile(record.get(part, []), part)
    path.write_text(json.dumps(record, ensure_ascii=False))
    app = LayerscopeApp(real_store, capture="tiny_loud")
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        shown = await wait_for(pilot, "at layer")
        await pilot.press("t")
        shown += await wait_for(pilot, "positive prompt of pair 1 of 12")
        for text in (f"w7 {HOSTILE} w8", "w7 \r\udcff w8", f"w7 {LONG}", "\x1b" * 500):
            await pilot.press("i")
            app.screen.query_one("#text", Input).value = text
            shown += screen_text(app)
            await pilot.press("enter")
            shown += await wait_for(pilot, "your text")
            await pilot.pause(0.5)  # the text is read, or refused
            await pilot.press("y", "e")
            shown += await wait_for(pilot, "Save this view as")
            await pilot.press("escape")
        assert "This is a bug" not in shown
    assert CONTROL.search(shown) is None


async def test_the_steering_screen_shows_them_escaped(real_store: Path) -> None:
    app = LayerscopeApp(real_store, capture="tiny_loud", layer=2)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "at layer 2")
        await pilot.press("w")
        shown = await wait_for(pilot, "Type what the user says")
        for text in (f"w7 {HOSTILE} w8", "w7 \udcff w8", f"w7 {LONG}", "\x1b" * 500):
            app.screen.query_one("#text", Input).value = text
            app.screen.query_one("#text", Input).focus()
            await pilot.press("enter")
            await pilot.pause(0.5)  # the texts are written, or the prompt is refused
            shown += screen_text(app)
            await pilot.press("y", "i")
            shown += screen_text(app)
        assert "This is a bug" not in shown
        assert r"\x1b]0;title" in shown
    assert CONTROL.search(shown) is None
