"""Panes of steered texts: colors and signs by projection, and a cursor over tokens and texts."""

import pytest
from rich.color import Color
from rich.color_triplet import ColorTriplet
from rich.style import Style
from rich.text import Text
from textual.app import App, ComposeResult

from engine.records.steering import SteeredTexts
from tests.engine.plots.results import overflowed_text, steered_texts
from tests.tui.screen_text import screen_text, wait_for
from tui.looks import COLOURS, DARK
from tui.widgets.text_panes import TextPanes

pytestmark = pytest.mark.anyio


class Alone(App[None]):
    """An app with only the panes."""

    CSS = "TextPane { height: auto; }"

    def __init__(self, result: SteeredTexts) -> None:
        super().__init__()
        self._result = result
        self.register_theme(DARK)
        self.theme = DARK.name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return COLOURS

    def compose(self) -> ComposeResult:
        yield TextPanes()

    def on_mount(self) -> None:
        panes = self.query_one(TextPanes)
        panes.focus()
        panes.result = self._result


def style_of(panes: TextPanes, pane: int, token: str) -> Style:
    """Style of a token of one text."""
    text = panes.panes[pane].render()
    assert isinstance(text, Text)
    span = next((span for span in text.spans if text.plain[span.start : span.end] == token), None)
    if span is None:
        return Style()
    assert isinstance(span.style, Style)
    return span.style


def ground_of(panes: TextPanes, pane: int, token: str) -> ColorTriplet:
    """Color behind a token of one text."""
    ground = style_of(panes, pane, token).bgcolor
    assert ground
    return ground.get_truecolor()


async def test_color_shows_class_and_strength_on_one_scale_for_all_texts() -> None:
    """The ten projections have median 0.375 and spread 0.56: 3.0 and -3.0 stand out in their own classes."""
    app = Alone(steered_texts())
    async with app.run_test(size=(60, 20)) as pilot:
        await wait_for(pilot, "glad", "What⏎? …")
        panes = app.query_one(TextPanes)
        assert ground_of(panes, 1, " glad") == Color.parse(DARK.variables["tied"]).get_truecolor()
        assert ground_of(panes, 2, "⏎") == Color.parse(DARK.variables["behind"]).get_truecolor()
        assert style_of(panes, 0, " day") == Style()


async def test_signs_replace_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = Alone(steered_texts())
    async with app.run_test(size=(60, 20)) as pilot:
        await wait_for(pilot, "Good⁻ day.\n", "I am glad⁺!\n", "What⏎⁻? …\n")


async def test_the_cursor_moves_over_tokens_and_texts_and_stays_in_them() -> None:
    app = Alone(steered_texts())
    async with app.run_test(size=(60, 20)) as pilot:
        await wait_for(pilot, "glad")
        panes = app.query_one(TextPanes)
        places = []
        for key in ("end", "right", "down", "down", "left", "k", "k", "up", "home", "h"):
            await pilot.press(key)
            places.append((panes.chosen, panes.token))
        assert places == [(1, 3), (1, 3), (2, 2), (2, 2), (2, 1), (1, 1), (0, 1), (0, 1), (0, 0), (0, 0)]
        assert style_of(panes, 0, "Good").reverse
        await pilot.click(panes.panes[2])
        assert panes.chosen == 2


async def test_without_a_control_there_are_two_panes() -> None:
    app = Alone(steered_texts(controls=[]))
    async with app.run_test(size=(60, 20)) as pilot:
        await wait_for(pilot, "glad")
        assert "random" not in screen_text(app)
        await pilot.press("down", "down")
        assert app.query_one(TextPanes).chosen == 1


async def test_a_control_that_overflows_says_why() -> None:
    app = Alone(steered_texts(controls=[overflowed_text("control", 0.1)]))
    async with app.run_test(size=(60, 20)) as pilot:
        await wait_for(pilot, "glad", "predictions are not finite")
        await pilot.press("down", "down", "right")
        assert (app.query_one(TextPanes).chosen, app.query_one(TextPanes).token) == (2, 0)
        assert "nan" not in screen_text(app)
