"""The heat map: made-up readings with and without color, and a text of 4,096 tokens."""

import pytest
from textual.app import App, ComposeResult

from engine.records.files import TokenReading
from tests.engine.plots.results import reading_of
from tests.tui.screen_text import screen_text, wait_for
from tui.looks import COLOURS, DARK
from tui.widgets.heat_map import HeatMap

pytestmark = pytest.mark.anyio
TOKENS = ["<s>", " be", " kind", "\n", " to", " guests"]
# Without the first token, each layer has median 0 and spread 1.4826, so the last two tokens stand out.
VALUES = [[50.0, -1.0, 0.0, 1.0, -9.0, 9.0], [0.0, 0.0, 1.0, -1.0, 2.0, -2.0]]


class Alone(App[None]):
    """An app with only a heat map."""

    def __init__(self, reading: TokenReading) -> None:
        super().__init__()
        self._reading = reading
        self.register_theme(DARK)
        self.theme = DARK.name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return COLOURS

    def compose(self) -> ComposeResult:
        yield HeatMap()

    def on_mount(self) -> None:
        heat = self.query_one(HeatMap)
        heat.focus()
        heat.reading = self._reading


async def test_signs_mark_the_classes_without_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = Alone(reading_of(TOKENS, *VALUES))
    async with app.run_test(size=(18, 8)) as pilot:
        await wait_for(pilot, "guests")
        assert screen_text(app).splitlines()[:7] == [
            "layer           7",
            " <s>          ////",
            "▸ be          - ╋╋",
            "  kind        · +",
            " ⏎            + -",
            "  to          --+",
            "  guests      ++-",
        ]


async def test_tokens_that_are_set_aside_are_hatched_and_the_cursor_starts_after_them() -> None:
    app = Alone(reading_of(TOKENS, *VALUES, set_aside=[0, 1, 3, 5], texts=["<s>", " bé", " kind", "\n", " to", "!"]))
    async with app.run_test(size=(30, 8)) as pilot:
        await wait_for(pilot, "bé")
        lines = screen_text(app).splitlines()
        assert [line.strip().endswith("////") for line in lines[1:7]] == [True, True, False, True, False, True]
        assert lines[2].startswith("  bé")
        assert lines[3].startswith("▸ kind")
        quiet = list(app.query_one(HeatMap).render_line(2))
        assert quiet[0].style
        assert quiet[0].style.color == quiet[1].style.color  # type: ignore[union-attr]  # both have a style


async def test_color_shows_class_and_strength() -> None:
    app = Alone(reading_of(TOKENS, *VALUES))
    async with app.run_test(size=(30, 8)) as pilot:
        await wait_for(pilot, "guests")
        heat = app.query_one(HeatMap)

        def ground(token: int) -> tuple[int, int, int]:
            segment = list(heat.render_line(token + 1))[1]
            assert segment.style
            assert segment.style.bgcolor
            return tuple(segment.style.bgcolor.get_truecolor())  # type: ignore[return-value]

        positive, negative, middle = ground(5), ground(4), ground(2)
        assert positive[0] > positive[2]  # orange: red over blue
        assert negative[2] > negative[0]
        assert sum(middle) < sum(positive)
        weak = ground(3)
        assert sum(middle) < sum(weak) < sum(positive)


@pytest.mark.slow
async def test_walks_through_4096_tokens() -> None:
    tokens = [f" t{place}" for place in range(4096)]
    values = [[float((place * 7 + layer) % 11) for place in range(4096)] for layer in range(80)]
    app = Alone(reading_of(tokens, *values))
    async with app.run_test(size=(60, 20)) as pilot:
        text = await wait_for(pilot, "t13", "layer")
        await pilot.press("G")
        text = await wait_for(pilot, "▸ t4095")
        assert len(text.splitlines()) == 20
        await pilot.press("pageup", "k", "l")
        await wait_for(pilot, "▸ t4076")
        await pilot.press("g", *["l"] * 90)
        await wait_for(pilot, "▸ t0", "319")  # the eightieth layer is scrolled out at first
        assert app.query_one(HeatMap).chosen_layer == 319


async def test_a_click_moves_the_cursor() -> None:
    app = Alone(reading_of(TOKENS, *VALUES))
    async with app.run_test(size=(30, 8)) as pilot:
        await wait_for(pilot, "guests")
        await pilot.click(HeatMap, offset=(15, 4))
        heat = app.query_one(HeatMap)
        assert (heat.token, heat.chosen_layer) == (3, 3)
