"""Deleting and renaming captures in the library."""

from pathlib import Path

import pytest

import engine
from engine.store.names import DIRECTIONS
from engine.store.read import load_contrast
from tests.tui.screen_text import wait_for, wait_until
from tui.app import LayerscopeApp

pytestmark = pytest.mark.anyio


def files(store: Path, name: str) -> list[str]:
    return sorted(path.name for path in store.glob(f"{name}*"))


async def test_deletes_the_files_that_it_names_after_a_question(store: Path) -> None:
    (store / f"small_warmth{DIRECTIONS}").write_bytes(b"directions")
    async with LayerscopeApp(store).run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "4 captures", "layer 16,")
        await pilot.press("d")
        await wait_for(
            pilot, "Delete small_warmth?", "small_warmth.pt", "small_warmth.json", f"small_warmth{DIRECTIONS}"
        )
        await pilot.press("n")
        await wait_until(pilot, lambda text: "cannot be undone" not in text, "the question to go")
        assert len(files(store, "small_warmth")) == 3
        await pilot.press("delete")
        await wait_for(pilot, "Delete small_warmth?")
        await pilot.press("y")
        await wait_for(pilot, "3 captures", "calm  someone", "deleted small_warmth.json")
    assert files(store, "small_warmth") == []
    assert len(files(store, "small_calm")) == 2


async def test_names_the_directions_that_stay(real_store: Path) -> None:
    directions = engine.extract_directions(load_contrast("tiny_loud", store=real_store))
    engine.save_directions(directions, "probe", store=real_store, capture="tiny_loud")
    async with LayerscopeApp(real_store, filter_text="loud").run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "1 of 2 captures")
        await pilot.press("d")
        await wait_for(pilot, "Delete tiny_loud?", "These directions stay:", "probe.directions.safetensors")
        await pilot.press("y")
        await wait_for(pilot, "deleted tiny_loud.json")
    assert (real_store / f"probe{DIRECTIONS}").exists()


async def test_directions_of_another_capture_stay(real_store: Path) -> None:
    capture = next(path.stem for path in real_store.glob("*.json") if path.stem != "tiny_loud")
    directions = engine.extract_directions(load_contrast("tiny_loud", store=real_store))
    probe = engine.save_directions(directions, "probe", store=real_store, capture="tiny_loud")
    probe.rename(real_store / f"{capture}{DIRECTIONS}")
    async with LayerscopeApp(real_store, filter_text=capture).run_test(size=(120, 24), notifications=True) as pilot:
        await wait_for(pilot, "1 of 2 captures")
        await pilot.press("d")
        await wait_for(pilot, f"Delete {capture}?", "These directions stay:", f"{capture}{DIRECTIONS}")
        await pilot.press("n", "R")
        await wait_for(pilot, f"Rename {capture}")
        await pilot.press("x", "enter")
        await wait_for(pilot, f"renamed {capture} to", "and stay")
    assert (real_store / f"{capture}{DIRECTIONS}").exists()


async def test_deletes_damaged_captures_and_names_shards(store: Path) -> None:
    (store / "broken.json").write_text("{")
    (store / "shards").mkdir()
    (store / "shards" / "plan.json").write_text("{}")
    async with LayerscopeApp(store, filter_text="broken").run_test(size=(100, 30), notifications=True) as pilot:
        await wait_for(pilot, "1 of 6 captures")
        await pilot.press("d")
        await wait_for(pilot, "Delete broken?", "broken.json")
        await pilot.press("y")
        await wait_for(pilot, "0 of 5 captures", "deleted broken.json")
        await pilot.press("d")  # nothing is selected
        await pilot.press("slash", *["backspace"] * 6, *"shards", "enter")
        await wait_for(pilot, "1 of 5 captures")
        await pilot.press("d")
        await wait_for(pilot, "Delete shards?", "shards/")


async def test_what_cannot_be_deleted_is_said(store: Path) -> None:
    (store / "a b.json").write_text("{")
    async with LayerscopeApp(store).run_test(size=(100, 30), notifications=True) as pilot:
        await wait_for(pilot, "5 captures", "layer 16,")
        await pilot.press("G", "d")
        await wait_for(pilot, "Delete a b?", "a b.json")
        await pilot.press("y")
        await wait_for(pilot, "4 captures", "deleted a b.json")
        await pilot.press("g")
        await wait_for(pilot, "layer 16,")
        await pilot.press("d")
        await wait_for(pilot, "Delete small_warmth?")
        for suffix in (".pt", ".json"):
            (store / f"small_warmth{suffix}").unlink()  # another process was faster
        await pilot.press("y")
        await wait_for(pilot, "there is no capture called 'small_warmth'")


async def test_renames_the_files_or_says_why_not(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "4 captures", "layer 16,")
        await pilot.press("f2")
        await wait_for(pilot, "Rename small_warmth, with its saved directions, to")
        await pilot.press(*["backspace"] * 20, *"small_calm", "enter")
        await wait_for(pilot, "cannot be renamed", "small_calm")
        await pilot.press("R", *["backspace"] * 20, *"warm", "enter")
        await wait_for(pilot, "renamed small_warmth to warm")
        await wait_for(pilot, "layer 16,")
    assert files(store, "small_warmth") == []
    assert files(store, "warm") == ["warm.json", "warm.pt"]
