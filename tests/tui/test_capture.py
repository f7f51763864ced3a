"""The capture form: estimate, run, cancel, and everything that can be typed wrong."""

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from engine.store.catalog import show_capture
from tests.engine.cli.conftest import concept_text
from tests.tui.screen_text import wait_for, wait_until
from tui.app import LayerscopeApp

pytestmark = pytest.mark.anyio


@pytest.fixture
def concept(tmp_path: Path) -> Path:
    """A concept of 24 pairs in words that the tiny model knows."""
    file = tmp_path / "loudness.toml"
    file.write_text(concept_text("loudness"))
    return file


def fill(pilot: Pilot[None], **fields: str) -> None:
    """Type into fields of the form."""
    for name, value in fields.items():
        pilot.app.screen.query_one(f"#{name}", Input).value = value


async def test_estimates_captures_and_opens_the_result(real_store: Path, concept: Path) -> None:
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture", "Enter estimates")
        fill(pilot, model="tiny", concept=str(concept), samples="0")
        await pilot.press("enter")
        await wait_for(pilot, "48 prompts", "tokens", "MB", "Enter captures")
        await pilot.press("enter")
        await wait_for(pilot, "loudness", "24 pairs, positions: last", "rank", "lie at layer")
        await pilot.press("escape")
        await wait_for(pilot, "3 captures", "tiny_loudness")
    saved = show_capture("tiny_loudness", store=real_store)
    assert (saved["num_pairs"], saved["captured_layers"], saved["concept"]) == (24, [0, 1, 2, 3], "loudness")


async def test_own_pairs_under_a_name_of_ones_own(real_store: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"positive": "w{i} w9", "negative": "w{i} w8"}}\n' for i in range(20, 30)))
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        fill(pilot, model="tiny", concept=str(pairs), layers="1,2", name="mine")
        await pilot.click("#run")
        await wait_for(pilot, "10 pairs", "lie at layer")
    assert show_capture("mine", store=real_store)["captured_layers"] == [1, 2]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"concept": ""}, "there is nothing to capture"),
        ({"concept": "honestly"}, "did you mean 'honesty'"),
        ({"concept": "honesty", "model": "smolm2"}, "did you mean 'smollm2'"),
        ({"concept": "honesty", "samples": "many"}, "'many' pairs cannot be drawn"),
        ({"concept": "honesty", "positions": "first"}, "positions"),
        ({"concept": "honesty", "name": "tiny_loud"}, "tiny_loud"),
        ({"concept": "honesty", "name": "../out"}, "name"),
        ({"concept": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
async def test_what_is_typed_wrong_is_said_at_once(real_store: Path, fields: dict[str, str], said: str) -> None:
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        fill(pilot, **fields)
        await pilot.press("enter")
        text = await wait_for(pilot, said)
        assert "bug" not in text
        assert "Enter captures" not in text
    assert not (real_store.parent / "out.pt").exists()


async def test_layers_that_the_model_does_not_have_and_a_model_that_does_not_load(
    real_store: Path, concept: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        fill(pilot, model="tiny", concept=str(concept), layers="9")
        await pilot.press("enter")
        await wait_for(pilot, "layer 9")
        fill(pilot, model=str(broken), layers="all")
        await pilot.press("enter")
        text = await wait_until(pilot, lambda text: "broken" in text and "Next:" in text, "why it does not load")
        assert "bug" not in text


async def test_cancel_saves_nothing_and_the_app_goes_on(real_store: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    long = " ".join(f"w{number}" for number in range(10, 68))  # as long as the model takes
    with many.open("w") as file:
        for pair in range(8000):  # all different: what prompts share is run once
            one, other = f"w{pair % 100 + 3} w{pair // 100 + 3}", f"w{pair // 100 + 3} w{pair % 100 + 3}"
            file.write(f'{{"positive": "{one} {long}", "negative": "{other} {long}"}}\n')
    before = sorted(path.name for path in real_store.iterdir())
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        app = pilot.app
        assert isinstance(app, LayerscopeApp)
        await wait_for(pilot, "2 captures")
        await pilot.press("ctrl+x")
        await wait_for(pilot, "nothing is running")
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        fill(pilot, model="tiny", concept=str(many), name="never")
        await pilot.click("#run")
        await wait_for(pilot, "capturing never", "/16000", "ctrl+x cancels", "tiny_loud", "leads")
        await pilot.press("ctrl+x")
        await wait_for(pilot, "cancelled; nothing half-done was saved")
        await pilot.press("enter")
        await wait_for(pilot, "lie at layer")
    assert sorted(path.name for path in real_store.iterdir()) == before
