"""Golden screens in three terminal sizes.

After an intended change, run SCREENS=write .venv/bin/pytest tests/tui/test_screens.py and review the diff.
"""

import os
from pathlib import Path

import pytest

from tests.engine.plots.results import steered_texts
from tests.tui.screen_text import screen_text, wait_for
from tui.app import LayerscopeApp

SIZES = [(80, 24), (120, 40), (200, 60)]
FOLDER = Path(__file__).with_name("screens")
Step = tuple[list[str], list[str]]
"""Keys to press, and texts that the screen then shows."""

RANKING: Step = (["enter"], ["Held-out projections at layer 16", "tab Pane", "? Help"])
SCREENS: dict[str, list[Step]] = {
    "library": [],
    "filtered": [(["slash", *"calm", "enter"], ["1 of 4 captures", "layer 9,", "? Help"])],
    "damaged": [(["G"], ["small_lost is damaged"])],
    "ranking": [RANKING],
    "why": [RANKING, (["space", "G"], ["Layer 16 vs. layer 29"])],
    "chart": [RANKING, (["2"], ["│ 95%"])],
    "pairs": [RANKING, (["3"], ["Be kind to guest 0."])],
    "findings": [RANKING, (["4"], ["All 30 layers separate"])],
    "steering": [RANKING, (["w"], ["strength +0.10", "Type what the user says"])],
    "steered": [
        RANKING,
        (["w", *"Hello", "enter"], ["warmth +0.1", "? Help"]),
        (["right", "right"], ["token 2 ' glad'"]),
    ],
    "prompt": [
        (["j", "j"], ["some_prompt  someone"]),
        (["enter"], ["prompts has no classes", "tab Pane"]),
    ],
    "capture": [(["n"], ["New capture", "Enter estimates", "esc Back"])],
    "delete": [(["d"], ["Delete small_warmth?", "y deletes"])],
    "help": [(["question_mark"], ["search the keys", "action"])],
}

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, id=f"{size[0]}x{size[1]}", marks=pytest.mark.slow if size == SIZES[-1] else ())
        for size in SIZES
    ],
)
@pytest.mark.parametrize("name", SCREENS)
async def test_screen(name: str, size: tuple[int, int], store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    monkeypatch.setattr("tui.screens.steering.steer_along", lambda *_given: steered_texts())
    app = LayerscopeApp(Path(store.name))
    async with app.run_test(size=size) as pilot:
        await wait_for(pilot, "4 captures", "layer 16,", "? Help")
        for keys, signs in SCREENS[name]:
            await pilot.press(*keys)
            await wait_for(pilot, *signs)
        await pilot.pause(0.2)
        shown = screen_text(app)
    file = FOLDER / f"{name}-{size[0]}x{size[1]}.txt"
    if os.environ.get("SCREENS") == "write":
        file.write_text(shown)
    assert shown == file.read_text()
