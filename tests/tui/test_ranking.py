"""The ranking screen: the table with its intervals, the reasons and the panes."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.widgets import Input

from engine.records.results import WrongPair
from engine.store.catalog import show_capture
from tests.engine.plots.records import causal_layer, causal_ranking, unranked_record
from tests.program import Run
from tests.tui.conftest import PAIRS, named, put, ranked_record
from tests.tui.screen_text import screen_text, wait_for, wait_until
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


async def test_histograms_fit_a_small_terminal_when_the_pane_scrolls(store: Path) -> None:
    record = ranked_record("small_wrong", peak=16, day=5)
    for sides in record["sides"]:
        sides["wrong"] = [WrongPair(pair=pair, gap=-0.5) for pair in range(PAIRS)]
        sides["wrong_total"] = PAIRS
    put(store, record)
    async with LayerscopeApp(store, capture="small_wrong").run_test(size=(40, 20)) as pilot:
        text = await wait_for(pilot, "projections at layer 16", "12 of 12 held-out pairs")
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if "projections at layer 16" in line)
    positive, negative, axis, after = (line.split() for line in lines[start + 1 : start + 5])
    assert (positive[0], negative[0], axis, after[:2]) == ("+", "-", ["-2.5", "SD", "+2.5"], ["12", "of"])


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


def causal_store(store: Path) -> Path:
    """The store with a capture that was steered at three layers."""
    record = ranked_record("small_steered", peak=16, day=9)
    ablation = {"ablation": 0.4, "ablation_p": 0.01}
    rows = [causal_layer(15, 0.03), causal_layer(16, -0.1), causal_layer(17, 0.2, **ablation)]
    record["causal"] = causal_ranking(rows)
    put(store, record)
    return store


async def test_the_effect_of_steering_is_a_column(store: Path) -> None:
    async with LayerscopeApp(causal_store(store), capture="small_steered").run_test(size=(230, 60)) as pilot:
        text = await wait_for(pilot, "projections at layer 16", "effect 95%", "Steering here: effect -0.100")
        rows = {layer: line for line in text.splitlines() for layer in layers(line)}
        assert "+0.030   -0.020 to +0.080" in rows[15]
        assert "-0.100   -0.150 to -0.050" in rows[16]
        assert "+0.200*† +0.150 to +0.250" in rows[17]
        assert rows[18].count(" to ") == 1  # d' only
        await pilot.press("j")
        await wait_for(pilot, "p 0.010: it works (*)", "removes 40%", "it works (†)")
        await pilot.press("y")
        await pilot.pause(0.1)
        assert pilot.app.clipboard.endswith("p 0.004; steering effect +0.200 (+0.150 to +0.250)")
        await pilot.press(*"s" * 7)
        assert layers(await wait_for(pilot, "effect▼"))[:4] == [17, 15, 16, 0]


async def test_the_effect_of_steering_is_exported(store: Path, tmp_path: Path) -> None:
    async with LayerscopeApp(causal_store(store), capture="small_steered").run_test(size=(80, 24)) as pilot:
        await wait_for(pilot, "projections at layer 16", "effect", "-0.100")
        await pilot.press("e")
        await wait_for(pilot, "Save this view as")
        pilot.app.screen.query_one(Input).value = str(tmp_path / "out.csv")
        await pilot.press("enter")
        await wait_until(pilot, lambda _text: (tmp_path / "out.csv").exists(), "the file")
    rows = {int(row["layer"]): row for row in csv.DictReader((tmp_path / "out.csv").open())}
    assert (rows[17]["effect"], rows[17]["effect_p"], rows[18]["effect"]) == ("0.2", "0.01", "")
    assert rows[17]["low"] == "1.4"


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
