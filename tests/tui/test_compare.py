"""Captures overlaid, and the cosines between their directions."""

from pathlib import Path

import pytest
import torch

from engine.store.read import load_contrast
from tests.tui.conftest import put, ranked_record
from tests.tui.screen_text import wait_for
from tui.app import LayerscopeApp
from tui.screens.compare import CompareScreen

pytestmark = pytest.mark.anyio


async def test_cosines_are_those_of_the_mean_differences(real_store: Path) -> None:
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("space", "space", "c")
        text = await wait_for(pilot, "tiny_", "cos ●▲", "range of random directions")
        await pilot.press("j", "j", "y")
        await wait_for(pilot, "copied")
    directions: list[torch.Tensor] = []
    for name in ("tiny_loud", "tiny_warm"):
        data = load_contrast(name, store=real_store)
        sides = [
            torch.stack([prompt["activations"][2][0, -1] for prompt in data[side]]).double().mean(0)
            for side in ("positive", "negative")
        ]
        directions.append(sides[0] - sides[1])
    one, other = directions
    expected = float(one @ other / one.norm() / other.norm())
    row = next(line for line in text.splitlines() if line.split()[:2] == ["2", "75%"])
    assert f"{expected:+.2f}" in row
    assert f"layer 2: cosine {expected:+.2f}" in pilot.app.clipboard


async def test_shared_pairs_cause_a_warning(real_store: Path) -> None:
    async with LayerscopeApp(real_store).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "2 captures")
        pilot.app.push_screen(CompareScreen(real_store, ("tiny_loud", "tiny_loud")))
        await wait_for(pilot, "cos ●▲", "share a prompt with tiny_loud (1), whose direction sorts them in-sample")


async def test_four_captures_are_drawn_from_their_records(store: Path) -> None:
    for day, peak in ((7, 3), (8, 25)):
        put(store, ranked_record(f"small_more{day}", peak=peak, day=day))
    (store / "some_prompt.json").unlink()
    (store / "some_prompt.pt").unlink()
    async with LayerscopeApp(store).run_test(size=(200, 60), notifications=True) as pilot:
        await wait_for(pilot, "5 captures")
        await pilot.press("space", "space", "space", "space", "c")
        text = await wait_for(pilot, "● small_more8", "▲ small_more7", "■ small_warmth", "◆ small_calm", "✱ several")
        rows = {line.split()[0]: line.split() for line in text.splitlines() if line[:6].strip().isdigit()}
        assert rows["16"][:6] == ["16", "57%", "1.10", "0.70", "2.00", "1.30"]
        await wait_for(pilot, "small_more8.pt")  # made-up tensors: an error instead of cosines
        await pilot.press("escape")
        await wait_for(pilot, "4 marked")


async def test_a_damaged_capture(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "4 captures")
        await pilot.press("space", "space")
        await wait_for(pilot, "2 marked")
        (store / "small_calm.json").write_text("{")
        await pilot.press("c")
        await wait_for(pilot, "small_calm.json")
