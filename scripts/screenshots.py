"""Take the SVG screenshots of the terminal app that the docs show.

Usage: .venv/bin/python scripts/screenshots.py STORE FOLDER     # `make figures` runs this
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import anyio

from tui.app import LayerscopeApp
from tui.screens.compare import CompareScreen
from tui.screens.ranking import RankingScreen
from tui.screens.tokens import TokensScreen
from tui.widgets.heat_map import HeatMap
from tui.widgets.rows import RowsView

SIZE = (124, 38)
TEXT = (
    "It would be a great honor to receive you at our ceremony. Anyway, just swing by whenever, it's gonna be super fun."
)


async def take_screenshots(store: Path, folder: Path) -> None:
    """Open each screen with key presses and save a screenshot of it."""
    app = LayerscopeApp(store)
    async with app.run_test(size=SIZE) as pilot:

        async def until(ready: Callable[[], bool]) -> None:
            with anyio.fail_after(300):
                while not ready():
                    await pilot.pause(0.1)
            await pilot.pause(0.3)

        def save(name: str) -> None:
            app.save_screenshot(f"tui-{name}.svg", str(folder))
            print(folder / f"tui-{name}.svg")

        await until(lambda: len(app.screen.query_one(RowsView).rows) > 1)
        app.screen.query_one(RowsView).move_to("smollm2_formality")
        await pilot.pause(0.3)
        save("library")
        await app.push_screen(RankingScreen(store, "smollm2_formality", 20))
        await pilot.press("space")
        app.screen.query_one(RowsView).move_to(28)
        await pilot.pause(0.3)
        save("ranking")
        await pilot.press("escape")
        await app.push_screen(TokensScreen(store, "smollm2_formality", 21))
        screen = app.screen
        await pilot.press("i", *_typed(TEXT), "enter")
        await until(lambda: (reading := screen.query_one(HeatMap).reading) is not None and TEXT in reading["prompt"])
        await pilot.press(*["down"] * 4)
        await pilot.pause(0.3)
        save("tokens")
        await pilot.press("escape")
        names = ["smollm2_formality", "smollm2_honesty", "smollm2_empathy"]
        compare = CompareScreen(store, names)
        await app.push_screen(compare)
        await until(lambda: len(compare.query_one(RowsView).columns) > 3 + len(names))
        app.screen.query_one(RowsView).move_to((16, 17 / 30))
        await pilot.pause(0.3)
        save("compare")


def _typed(text: str) -> list[str]:
    names = {" ": "space", ".": "full_stop", ",": "comma", "'": "apostrophe"}
    return [names.get(character, character) for character in text]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    anyio.run(take_screenshots, Path(sys.argv[1]), Path(sys.argv[2]))
