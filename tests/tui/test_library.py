"""The library: live updates, filter, order, marks, and damaged, missing or unreadable files."""

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from tests.tui.conftest import put, ranked_record
from tests.tui.screen_text import screen_text, wait_for, wait_until
from tui.app import LayerscopeApp
from tui.store_feed import StoreChange, StoreReader

pytestmark = pytest.mark.anyio
NOBODY = 65534
NAMES = ("small_warmth", "small_calm", "some_prompt", "small_lost")


def listed(text: str) -> list[str]:
    """Return the names of the captures in their order on the screen."""
    table = text.partition("─────")[0]
    lines = [line.strip("■✗ ") for line in table.splitlines()[2:]]
    return [name for line in lines for name in NAMES if line.startswith(name)]


async def test_lists_the_newest_first_and_previews_the_selected_one(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(80, 24), notifications=True) as pilot:
        text = await wait_for(pilot, "4 captures", "layer 16,")
        assert listed(text) == list(NAMES)
        await pilot.press("j")
        await wait_for(pilot, "layer 9,")


async def test_follows_captures_saved_and_deleted_by_another_process(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "4 captures")
        put(store, ranked_record("small_new", peak=20, day=9))
        text = await wait_for(pilot, "5 captures", "small_new")
        assert text.index("small_new") < text.index("small_warmth")
        for suffix in (".pt", ".json"):
            (store / f"small_calm{suffix}").unlink()
        await wait_until(pilot, lambda text: "4 captures" in text and "small_calm" not in text, "small_calm gone")


async def test_finds_a_store_created_later(store: Path) -> None:
    elsewhere = store.rename(store.with_name("elsewhere"))
    async with LayerscopeApp(store).run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "0 captures", "no captures in", "Press n to create one", "layerscope capture --concept")
        shutil.copytree(elsewhere, store)
        await wait_for(pilot, "4 captures", "small_warmth")


async def test_the_cursor_follows_its_capture(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "4 captures")
        await pilot.press("j")
        await wait_for(pilot, "layer 9,")
        put(store, ranked_record("small_new", peak=20, day=9))
        await wait_for(pilot, "5 captures", "layer 9,")


async def test_cancelled_reading_is_no_error(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, resume = threading.Event(), threading.Event()
    changes = StoreReader.changes

    def slow(reader: StoreReader) -> Iterator[StoreChange]:
        reading.set()
        resume.wait(10)
        return changes(reader)

    monkeypatch.setattr(StoreReader, "changes", slow)
    app = LayerscopeApp(store)
    async with app.run_test(size=(80, 24)) as pilot:
        while not reading.is_set():
            await pilot.pause(0.01)
        app.workers.cancel_group(app.screen, "read")  # as when the app closes
        await pilot.pause(0.1)
        put(store, ranked_record("small_new", peak=20, day=9))  # the cancelled read must not lose this one
        resume.set()
        await wait_for(pilot, "small_new")


async def test_lists_damaged_files(store: Path) -> None:
    (store / "broken.json").write_text("{")
    (store / "broken.pt").write_bytes(b"x")
    (store / "alone.pt").write_bytes(b"x")
    async with LayerscopeApp(store).run_test(size=(160, 40), notifications=True) as pilot:
        text = await wait_for(pilot, "6 captures", "✗ broken: ", "✗ alone: it has no record", "✗ small_lost: ")
        assert text.count("✗") == 3
        await pilot.press("slash", *"broken", "enter")
        await wait_for(pilot, "broken is damaged")
        await pilot.press("enter")  # reports the error instead of opening
        await wait_for(pilot, "broken.json")
        assert type(pilot.app.screen).__name__ == "LibraryScreen"


async def test_a_store_becomes_readable(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(100, 24)) as pilot:
        await wait_for(pilot, "4 captures")  # import everything before permissions change
    user = os.geteuid()
    store.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)  # root ignores permissions
    try:
        async with LayerscopeApp(store).run_test(size=(100, 24)) as pilot:
            await wait_for(pilot, "cannot be read", "Permission denied", "permission to read it")
            os.seteuid(user)
            store.chmod(stat.S_IRWXU)
            await wait_for(pilot, "4 captures", "layer 16,")
    finally:
        os.seteuid(user)
        store.chmod(stat.S_IRWXU)


async def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "activations").write_text("not a folder")
    async with LayerscopeApp(tmp_path / "activations").run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "cannot be read", "a folder of captures")


@pytest.mark.parametrize(
    ("filter_text", "names"),
    [
        ("calm", ["small_calm"]),
        ("model:other", ["small_calm"]),
        ("pairs:>=12 concept:w", ["small_warmth"]),
        ("layer:<10", ["small_calm"]),
        ("missing", ["small_lost"]),
        ("nothing-like-this", []),
    ],
)
async def test_filters(store: Path, filter_text: str, names: list[str]) -> None:
    async with LayerscopeApp(store, filter_text=filter_text).run_test(size=(80, 24), notifications=True) as pilot:
        preview = [] if names else ["Esc clears it"]
        text = await wait_for(pilot, f"{len(names)} of 4 captures", *preview)
        assert listed(text) == names


async def test_an_invalid_filter_is_reported_and_keeps_the_rows(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(100, 24), notifications=True) as pilot:
        await wait_for(pilot, "4 captures")
        await pilot.press("slash", *"pears")
        await wait_for(pilot, "0 of 4")
        await pilot.press("colon")
        text = await wait_for(pilot, "there is no column 'pears'", "pairs")
        assert "Traceback" not in text
        await pilot.press("escape")
        assert listed(await wait_for(pilot, "4 captures")) == list(NAMES)


async def test_sorts_by_every_column_in_both_orders(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(160, 40), notifications=True) as pilot:
        await wait_for(pilot, "saved UTC▼")
        await pilot.press("s")
        assert listed(await wait_for(pilot, "name▲")) == sorted(NAMES)
        await pilot.press("S")
        assert listed(await wait_for(pilot, "name▼")) == sorted(NAMES, reverse=True)
        for title in ("model▲", "concept▲", "pairs▲", "best▲", "d' (95%)▲", "p▲", "saved UTC▲"):
            await pilot.press("s")
            text = await wait_for(pilot, title)
            assert set(listed(text)) == set(NAMES)


async def test_a_click_on_a_header_sorts_and_a_double_click_on_a_row_opens(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "4 captures")
        await pilot.click("#captures", offset=(4, 0))
        await wait_for(pilot, "name▲")
        await pilot.click("#captures", offset=(4, 1), times=2)
        await wait_for(pilot, "Held-out projections at layer 9")


async def test_compares_the_marked_captures(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "4 captures")
        await pilot.press("c")
        await wait_for(pilot, "mark 2 to 4 captures")
        await pilot.press("space", "space")
        text = await wait_for(pilot, "2 marked")
        assert text.count("■") == 2
        await pilot.press("c")
        await wait_for(pilot, "small_warmth and small_calm")


async def test_tokens_need_pairs(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, "4 captures")
        await pilot.press("j", "j")
        await wait_for(pilot, "some_prompt  someone")
        await pilot.press("t")
        await wait_for(pilot, "select a capture of pairs")


async def test_resizing_lays_out_the_screen_again(store: Path) -> None:
    async with LayerscopeApp(store).run_test(size=(200, 60), notifications=True) as pilot:
        await wait_for(pilot, "4 captures", "layer 16,")
        for size in [(80, 24), (40, 10), (20, 5), (120, 40)]:
            await pilot.resize_terminal(*size)
            await pilot.pause(0.2)
            assert max(map(len, screen_text(pilot.app).splitlines())) <= size[0]
        await wait_for(pilot, "small_warmth", "layer 16,")


async def test_a_capture_in_shards_is_listed_and_previewed(
    store: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = store.parent / "prompts.txt"
    prompts.write_text("".join(f"w{5 + number} w7\n" for number in range(30)))
    for name in ("a_stream", "some_stream"):
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, prompts, name, store=store)
    (store / "some_stream.json").unlink()
    async with LayerscopeApp(store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "6 captures", "a_stream", "some_stream")
        await pilot.press("slash", *"a_stream", "enter")
        await wait_for(pilot, "30 prompts")
