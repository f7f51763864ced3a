"""The app: the list of keys, the command palette and themes."""

import threading
from pathlib import Path

import pytest

from engine.jobs import Job
from tests.tui.screen_text import wait_for, wait_until
from tui.app import LayerscopeApp, describe_left
from tui.jobs import JobEnded
from tui.widgets.rows import RowsView

pytestmark = pytest.mark.anyio


async def test_help_lists_the_keys_of_its_screen_and_can_be_searched(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(100, 60)) as pilot:
        await wait_for(pilot, "4 captures")
        await pilot.press("question_mark")
        text = await wait_for(pilot, "search the keys", "Compare the marked", "Project the tokens", "Filter by words")
        assert "Scroll Left" not in text
        await pilot.press(*"unmark")
        text = await wait_until(pilot, lambda text: "Compare" not in text.partition("╰")[0].partition("╭")[2], "found")
        assert "space" in text.partition("╭")[2]
        await pilot.press("escape")
        await wait_for(pilot, "4 captures")
        await pilot.press("enter")
        await wait_for(pilot, "projections at layer 16")
        await pilot.press("question_mark")
        await wait_for(
            pilot, "search the keys", "Misordered pairs", "Sort by rank or by layer", "Findings, warnings and baselines"
        )


async def test_help_is_readable_and_scrolls_in_a_small_terminal(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(40, 20)) as pilot:
        await wait_for(pilot, "layer")
        await pilot.press("question_mark")
        first = await wait_for(pilot, "search the keys", " ↓ j ", " Down ", " shift+tab ", " Back ")
        assert "…" not in first
        await pilot.press("end")
        last = await wait_for(pilot, " ^x ", "Cancel the running job", "with and without the")
        assert " Down " not in last
        await pilot.press("home")
        await wait_for(pilot, " ↓ j ", " Down ", " Back ")
        await pilot.press("pagedown")
        await wait_until(
            pilot, lambda text: " Down " not in text and "Project the tokens of a" in text, "the next page"
        )
        await pilot.press("pageup", "down")
        await wait_until(pilot, lambda text: " Down " not in text and " ↑ k " in text, "the second row")
        await pilot.press("up")
        await wait_for(pilot, " ↓ j ", " Down ", " Back ")
        await pilot.press(*"findings")
        await wait_for(pilot, " 4 ", "Findings, warnings and", "baselines")
        await pilot.resize_terminal(80, 24)
        await wait_for(pilot, "Findings, warnings and baselines")


async def test_a_job_that_ends_while_the_app_closes_does_not_crash_it(store: Path) -> None:
    app = LayerscopeApp(store)
    async with app.run_test():
        pass
    app.show_job(JobEnded(Job("counting", status="done")))


async def test_the_list_of_help_has_a_cursor_when_it_is_focused(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(40, 20)) as pilot:
        await wait_for(pilot, "layer")
        await pilot.press("question_mark")
        await wait_for(pilot, "search the keys")
        await pilot.press("tab", "down", "down")
        await pilot.pause(0.1)
        view = pilot.app.screen.query_one(RowsView)
        assert view.has_focus
        assert view.cursor == 2
        await pilot.press("end")
        await wait_for(pilot, "Cancel the running job")


async def test_the_palette_runs_an_action_by_name(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(100, 40), notifications=True) as pilot:
        await wait_for(pilot, "4 captures")
        await pilot.press("ctrl+p")
        await wait_for(pilot, "Search for commands")
        await pilot.press(*"compare")
        await wait_for(pilot, "key c")
        await pilot.pause(0.5)
        await pilot.press("down", "enter")
        await wait_for(pilot, "mark 2 to 4 captures")


async def test_a_small_terminal_keeps_the_keys_that_matter(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(40, 20)) as pilot:
        text = await wait_for(pilot, "small_warmth", "q Quit  ? Help")
        assert "t Tokens" not in text
        await pilot.press("enter")
        await wait_for(pilot, "esc Back  ? Help")
        await pilot.resize_terminal(80, 24)
        await wait_for(pilot, "t Tokens  w Steer  ? Help")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
async def test_the_line_of_a_job_fits(store: Path, width: int) -> None:
    finish = threading.Event()

    def work(job: Job) -> None:
        job.tell("running prompts", 96, 576)
        finish.wait()

    app = LayerscopeApp(store)
    async with app.run_test(size=(120, 24)) as pilot:
        await wait_for(pilot, "4 captures")
        app.jobs.start("capturing smollm2_verbosity", work, app)
        await wait_for(pilot, "capturing smollm2_verbosity: running prompts ━━━")
        await pilot.resize_terminal(width, 24)
        text = await wait_until(pilot, lambda text: " 96/576 · ctrl+x cancels\n" in text, "the hint")
        assert "\n capturing smo" in text
        finish.set()


async def test_the_question_before_quitting_goes_when_the_job_ends(store: Path) -> None:
    finish = threading.Event()
    app = LayerscopeApp(store)
    async with app.run_test(size=(100, 40)) as pilot:
        await wait_for(pilot, "4 captures")
        app.jobs.start("comparing directions", lambda _job: finish.wait(), app)
        await pilot.press("q")
        await wait_for(pilot, "Stop and quit?", "comparing directions: nothing is saved yet")
        finish.set()
        await wait_until(pilot, lambda text: "4 captures" in text and "Stop and quit?" not in text, "the library")
        await pilot.press("q")
        await pilot.pause(0.1)
        assert not app.is_running
    assert app.left == []


async def test_quitting_in_a_screen_over_the_question_returns_to_it(store: Path) -> None:
    finish = threading.Event()
    app = LayerscopeApp(store)
    async with app.run_test(size=(100, 40)) as pilot:
        await wait_for(pilot, "4 captures")
        app.jobs.start("comparing directions", lambda _job: finish.wait(), app)
        await pilot.press("ctrl+q")
        await wait_for(pilot, "Stop and quit?")
        await pilot.press("ctrl+p")
        await wait_for(pilot, "Search for commands")
        await pilot.press("ctrl+q")
        await wait_until(pilot, lambda text: "Esc stays" in text and "Search for" not in text, "the question")
        await pilot.press("n")
        await wait_until(pilot, lambda text: "4 captures" in text and "Stop and quit?" not in text, "the library")
        finish.set()


async def test_a_job_that_is_being_cancelled_is_not_asked_about(store: Path) -> None:
    finish = threading.Event()
    app = LayerscopeApp(store)

    def slow(job: Job) -> None:
        finish.wait()
        job.checkpoint()

    async with app.run_test(size=(100, 40)) as pilot:
        await wait_for(pilot, "4 captures")
        job = app.jobs.start("comparing directions", slow, app)
        await wait_for(pilot, "comparing directions: starting")
        await pilot.press("ctrl+x", "q")
        await pilot.pause(0.1)
        assert not app.is_running
    assert app.left == [job]
    finish.set()
    assert app.jobs.join(30)
    assert describe_left(job) == "stopped comparing directions; nothing was saved"


async def test_dark_and_light(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(100, 40)) as pilot:
        await wait_for(pilot, "4 captures")
        dark = pilot.app.theme_variables["background"]
        await pilot.press("T")
        await pilot.pause(0.2)
        assert pilot.app.theme == "layerscope-light"
        assert pilot.app.theme_variables["background"] != dark
        await wait_for(pilot, "layer 16,")


async def test_any_theme_of_textual_works(store: Path) -> None:
    app = LayerscopeApp(store, theme="nord")
    async with app.run_test(size=(100, 40)) as pilot:
        await wait_for(pilot, "4 captures", "layer 16,")
        await pilot.press("enter")
        await wait_for(pilot, "projections at layer 16")
        await pilot.press("2")
        await wait_for(pilot, "│ 95%")
