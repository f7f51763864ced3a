"""The ranking screen: the table with its intervals, the reasons and the panes."""

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
    """Return the layer numbers of the table from the top."""
    found = (re.match(r"■? +(\d+) +\d+[= ]", line) for line in text.splitlines())
    return [int(match[1]) for match in found if match]


async def test_explains_the_order_of_two_layers(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "4 captures", "layer 16,")
        await pilot.press("enter", "space", "G", "k")
        await wait_for(
            pilot, "Layer 16 vs. layer 28", "Layer 16 has rank 1 (d' 2.00)", "25 (d' 0.80)", "significantly better"
        )


async def test_a_row_shows_score_interval_and_whiskers(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(200, 60), notifications=True) as pilot:
        text = await wait_for(pilot, "Held-out projections at layer 16")
    row = next(line for line in text.splitlines() if re.match(r" +16 +1=", line))
    assert "1-3" in row
    assert "1.50 to 2.50" in row
    assert re.search("░+ *━+●━+", row)
    assert {"0.004", "0.833", "17%", "8.500"} <= set(row.split())


async def test_sorts_by_rank_by_score_and_by_click(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(200, 60), notifications=True) as pilot:
        assert layers(await wait_for(pilot, "layer▲", "projections at layer 16")) == list(range(30))
        await pilot.press("r")
        assert layers(await wait_for(pilot, "rank▲"))[:5] == [16, 15, 17, 14, 18]
        await pilot.press("S")
        assert layers(await wait_for(pilot, "rank▼"))[-1] == 16
        await pilot.press("r")
        await wait_for(pilot, "layer▲")
        for title in (
            "rank▲",
            "95% rank▲",
            "d'▼",
            "p▲",
            "AUROC▼",
            "misordered▲",
            "pair cosine▼",
            "rel. norm▼",
            "cosine▲",
            "raw norm▼",
        ):
            await pilot.press("s")
            assert sorted(layers(await wait_for(pilot, title))) == list(range(30))
        assert layers(screen_text(pilot.app))[0] == 29
        await pilot.click("#layers", offset=(5, 0))
        assert layers(await wait_for(pilot, "layer▲")) == list(range(30))


async def test_the_sorted_column_is_never_hidden(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(80, 24), notifications=True) as pilot:
        text = await wait_for(pilot, "layer▲")
        assert "raw norm" not in text
        await pilot.press(*"s" * 10)
        await wait_for(pilot, "raw norm▼")


async def test_selects_the_requested_layer(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth", layer=3).run_test(
        size=(120, 40), notifications=True
    ) as pilot:
        await wait_for(pilot, "Held-out projections at layer 3")


async def test_reports_a_layer_that_was_not_captured(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth", layer=99).run_test(
        size=(120, 40), notifications=True
    ) as pilot:
        await wait_for(pilot, "layer 99 was not captured")


async def test_panes(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "1 of 12 held-out pairs is misordered", "guest 0, plain: topic 0")
        await pilot.press("tab")
        await wait_for(pilot, "● tied  ○ behind")
        await pilot.press("3")
        await wait_for(pilot, "+ Be kind to guest 0.", "- Be curt to guest 0.")
        await pilot.press("4")
        await wait_for(pilot, "layer 16,", "Baselines without the model", "prompt length:")


async def test_a_capture_without_a_ranking_gives_the_reason(store: Path) -> None:
    put(store, named(unranked_record(), "few_pairs", day=8))
    async with LayerscopeApp(store, capture="few_pairs").run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "pair cosine", "2 pairs are")
        await pilot.press("space", "j", "2", "4", "y")
        await wait_for(pilot, "copied", "few_pairs layer 1")


async def test_copies_the_scores_of_a_layer(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "projections at layer 16")
        await pilot.press("y")
        await wait_for(pilot, "copied")
        assert pilot.app.clipboard == "small_warmth layer 16: rank 1, d' 2.00 (1.50 to 2.50), p 0.004"


async def test_a_capture_damaged_while_it_is_opened(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "4 captures", "layer 16,")
        (store / "small_warmth.json").write_text("{")
        # Bypass the library, which may already know of the damage and refuse to open the capture.
        await pilot.app.push_screen(RankingScreen(store, "small_warmth"))
        await wait_for(pilot, "cannot be read", "small_warmth.json")
        await pilot.press("e")
        await wait_for(pilot, "there is no record to export")


async def test_explains_the_ranking_of_the_demo(captured: Callable[[str], Run], tmp_path: Path) -> None:
    """The example of docs/terminal-app.md; the leading layer may differ by one on another processor."""
    captured("formality").copy_to(tmp_path)
    ranking = show_capture("smollm2_formality", store=tmp_path)["ranking"]
    assert ranking
    leader = ranking["layers"][0]["layer"]
    async with LayerscopeApp(tmp_path).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "1 capture", f"layer {leader},")
        await pilot.press("enter", "k", "space", "G", "k")
        await wait_for(
            pilot, f"Layer {leader - 1} vs. layer 28", f"Layer {leader - 1} has rank", "held-out pairs are misordered"
        )
