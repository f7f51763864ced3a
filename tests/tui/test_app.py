"""The app: the list of keys, the command palette and themes."""

from pathlib import Path

import pytest

from tests.tui.screen_text import wait_for, wait_until
from tui.app import LayerscopeApp

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
