"""The ranking: the table with its whiskers, the reasons, and the panes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.store.catalog import show_capture
from tests.engine.plots.records import unranked_record
from tests.program import Run
from tests.tui.conftest import named, put
from tests.tui.screen_text import screen_text, wait_for
from tui.app import LayerscopeApp
from tui.screens.ranking import RankingScreen

pytestmark = pytest.mark.anyio


def layers(text: str) -> list[int]:
    """Layer numbers of the table, from the top."""
    found = (re.match(r"■? +(\d+) +\d+[= ]", line) for line in text.splitlines())
    return [int(match[1]) for match in found if match]


async def test_five_keys_from_the_library_to_why_one_layer_is_above_another(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "4 captures", "Layer 16 leads")
        await pilot.press("enter", "space", "G", "k")
        await wait_for(
            pilot, "Layer 16 or layer 28?", "Layer 16 is ranked 1 (d' 2.00)", "ranked 25 (0.80)", "what other"
        )


async def test_a_row_has_the_score_with_its_interval_and_whiskers(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(200, 60), notifications=True) as pilot:
        text = await wait_for(pilot, "Where left-out prompts lie at layer 16")
    row = next(line for line in text.splitlines() if re.match(r" +16 +1=", line))
    assert "1-3" in row
    assert "1.50 to 2.50" in row
    assert re.search("░+ *━+●━+", row)
    assert {"0.004", "0.833", "17%", "8.500"} <= set(row.split())


async def test_sorts_by_rank_by_any_score_and_by_a_click(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(200, 60), notifications=True) as pilot:
        assert layers(await wait_for(pilot, "layer▲", "lie at layer 16")) == list(range(30))
        await pilot.press("r")
        assert layers(await wait_for(pilot, "rank▲"))[:5] == [16, 15, 17, 14, 18]
        await pilot.press("S")
        assert layers(await wait_for(pilot, "rank▼"))[-1] == 16
        await pilot.press("r")
        await wait_for(pilot, "layer▲")
        for title in (
            "rank▲",
            "open▲",
            "d'▼",
            "p▲",
            "AUROC▼",
            "wrong▲",
            "same way▼",
            "relative▼",
            "cosine▲",
            "raw norm▼",
        ):
            await pilot.press("s")
            assert sorted(layers(await wait_for(pilot, title))) == list(range(30))
        assert layers(screen_text(pilot.app))[0] == 29
        await pilot.click("#layers", offset=(5, 0))
        assert layers(await wait_for(pilot, "layer▲")) == list(range(30))


async def test_a_column_that_has_no_room_is_shown_when_it_sorts(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(80, 24), notifications=True) as pilot:
        text = await wait_for(pilot, "layer▲")
        assert "raw norm" not in text
        await pilot.press(*"s" * 10)
        await wait_for(pilot, "raw norm▼")


async def test_the_layer_asked_for_is_looked_at_first(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth", layer=3).run_test(
        size=(120, 40), notifications=True
    ) as pilot:
        await wait_for(pilot, "Where left-out prompts lie at layer 3")


async def test_a_layer_that_was_not_captured_is_said_to_be_missing(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth", layer=99).run_test(
        size=(120, 40), notifications=True
    ) as pilot:
        await wait_for(pilot, "layer 99 was not captured")


async def test_panes(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "1 of 12 pairs point the wrong way", "guest 0, plain: topic 0")
        await pilot.press("tab")
        await wait_for(pilot, "● tied  ○ behind")
        await pilot.press("3")
        await wait_for(pilot, "+ Be kind to guest 0.", "- Be curt to guest 0.")
        await pilot.press("4")
        await wait_for(pilot, "Layer 16 leads", "What else could tell the sides apart", "prompt length:")


async def test_a_capture_without_a_ranking_says_why(store: Path) -> None:
    put(store, named(unranked_record(), "few_pairs", day=8))
    async with LayerscopeApp(store, capture="few_pairs").run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "same way", "2 pairs are")
        await pilot.press("space", "j", "2", "4", "y")
        await wait_for(pilot, "copied", "few_pairs layer 1")


async def test_copies_what_is_said_of_a_layer(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "lie at layer 16")
        await pilot.press("y")
        await wait_for(pilot, "copied")
        assert pilot.app.clipboard == "small_warmth layer 16: rank 1, d' 2.00 (1.50 to 2.50), p 0.004"


async def test_a_capture_that_vanishes_while_it_is_opened(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "4 captures", "Layer 16 leads")
        (store / "small_warmth.json").write_text("{")
        # Not by the library, which may have seen by now that the capture is damaged, and would not open it.
        await pilot.app.push_screen(RankingScreen(store, "small_warmth"))
        await wait_for(pilot, "cannot be used", "small_warmth.json")
        await pilot.press("e")
        await wait_for(pilot, "there is no record to export")


async def test_five_keys_from_the_demo_to_the_reason(captured: Callable[[str], Run], tmp_path: Path) -> None:
    """As the README has it; on another processor the layer that leads may be a neighbour."""
    captured("honesty").copy_to(tmp_path)
    ranking = show_capture("smollm2_honesty", store=tmp_path)["ranking"]
    assert ranking
    leader = ranking["layers"][0]["layer"]
    async with LayerscopeApp(tmp_path).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "1 capture", f"Layer {leader} leads")
        await pilot.press("enter", "k", "space", "G", "k")
        await wait_for(
            pilot, f"Layer {leader - 1} or layer 28?", f"Layer {leader - 1} is ranked", "left-out pairs point"
        )
