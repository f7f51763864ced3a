"""The steering screen: prompts, layers and strengths by keys, and texts that are those of the engine."""

import csv
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from textual.pilot import Pilot
from textual.widgets import Input
from transformers import GenerationMixin

import engine
from engine.jobs import Job
from engine.records.steering import SteeredTexts
from engine.store.read import load_contrast
from tests.tui.screen_text import screen_text, wait_for, wait_until
from tui import directions
from tui.app import LayerscopeApp
from tui.models import ModelCache
from tui.screens import steering
from tui.widgets.text_panes import TextPanes

pytestmark = pytest.mark.anyio
PROMPT = ("w", "7", "space", "w", "8")


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Counts the texts that the model writes."""
    real = GenerationMixin.generate
    spy = Mock()

    def counted(*given: object, **options: object) -> object:
        spy()
        return real(*given, **options)  # type: ignore[arg-type]  # passed on as they are

    monkeypatch.setattr(GenerationMixin, "generate", counted)
    return spy


async def opened(pilot: Pilot[None]) -> TextPanes:
    """Open the screen at layer 2 and let the model answer."""
    await wait_for(pilot, "at layer 2")
    await pilot.press("w")
    await wait_for(pilot, "layer 2 · strength +0.10", "Type what the user says")
    await pilot.press(*PROMPT, "enter")
    await wait_for(pilot, "steered +0.1", "projects to")
    return pilot.app.screen.query_one(TextPanes)


async def written(pilot: Pilot[None], panes: TextPanes, layer: int, strength: float) -> SteeredTexts:
    """Wait for the texts at a layer and strength."""

    def shown(_text: str) -> bool:
        result = panes.result
        return result is not None and (result["layer"], result["steered"][0]["strength"]) == (layer, strength)

    await wait_until(pilot, shown, f"texts at layer {layer}, strength {strength}")
    assert panes.result is not None
    return panes.result


async def test_the_texts_are_those_of_the_engine_at_each_layer_and_strength(
    real_store: Path, tiny_folder: Path, generate: Mock
) -> None:
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    data = load_contrast("tiny_loud", store=real_store)
    directions = engine.extract_directions(data)

    def expected(layer: int, strength: float) -> SteeredTexts:
        return engine.steer_text(
            model, tokenizer, directions, "w7 w8", layer=layer, strengths=[strength], data=data, max_new_tokens=40
        )

    async with LayerscopeApp(real_store, capture="tiny_loud", layer=2).run_test(size=(120, 40)) as pilot:
        panes = await opened(pilot)
        assert panes.result == expected(2, 0.1)
        generate.reset_mock()
        await pilot.press("right_square_bracket")
        found = await written(pilot, panes, 3, 0.1)
        assert generate.call_count == 2  # the baseline is known
        await pilot.press("right_square_bracket", *["minus"] * 3)  # there is no layer 4
        below = await written(pilot, panes, 3, -0.05)
        assert generate.call_count == 4
        await wait_for(pilot, "layer 3 · strength -0.05", "steered -0.05")
        await pilot.press(*["plus"] * 3)
        await written(pilot, panes, 3, 0.1)
        assert generate.call_count == 4  # all three are known
    assert found == expected(3, 0.1)
    assert below == expected(3, -0.05)


async def test_a_narrow_terminal_shows_layer_and_strength(store: Path) -> None:
    async with LayerscopeApp(store, capture="small_warmth", layer=16).run_test(size=(40, 20)) as pilot:
        await wait_for(pilot, "at layer 16")
        await pilot.press("w")
        await wait_for(pilot, "layer 16 · strength +0.10")
        await pilot.press("tab", *["minus"] * 20)
        await wait_for(pilot, "layer 16 · strength -0.90")


async def test_a_token_is_described_and_a_text_copied_and_exported(real_store: Path, tmp_path: Path) -> None:
    app = LayerscopeApp(real_store, capture="tiny_loud", layer=2)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        panes = await opened(pilot)
        await pilot.press("right", "right")
        text = panes.texts[1]
        token, value = text["token_texts"][2], text["projections"][2]
        await wait_for(pilot, f"steered +0.1: token 2 '{token}' projects to {value:+.2f} at layer 2")
        await pilot.press("y")
        await wait_for(pilot, "copied")
        assert app.clipboard == text["text"]
        await pilot.press("e")
        await wait_for(pilot, "Save this view as", "tiny_loud-steered.csv")
        app.screen.query_one(Input).value = str(tmp_path / "steered.csv")
        await pilot.press("enter")
        await wait_for(pilot, "saved")
        texts = panes.texts
    rows = list(csv.DictReader((tmp_path / "steered.csv").open()))
    assert [(row["kind"], int(row["token"]), float(row["projection"])) for row in rows] == [
        (one["kind"], place, value) for one in texts for place, value in enumerate(one["projections"])
    ]
    assert {(row["layer"], row["strength"]) for row in rows} == {("2", ""), ("2", "0.1")}


async def test_a_newer_request_replaces_the_running_one_without_a_word(real_store: Path) -> None:
    app = LayerscopeApp(real_store, capture="tiny_loud", layer=2)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        panes = await opened(pilot)
        for step in range(1, 8):
            await pilot.press("i", *PROMPT, "enter", "plus")
            await pilot.pause(0.02 * step)
        await written(pilot, panes, 2, 0.45)
        await pilot.pause(0.3)
        assert "cancelled" not in screen_text(app)
        assert app.jobs.current is None


async def test_leaving_the_field_changes_nothing(real_store: Path) -> None:
    app = LayerscopeApp(real_store, capture="tiny_loud", layer=2)
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot)
        await pilot.press("i", "w", "9", "escape")
        await pilot.pause(0.1)
        assert isinstance(app.focused, TextPanes)
        await pilot.press("i")
        await pilot.pause(0.1)
        assert app.screen.query_one(Input).value == "w7 w8"


async def test_cancelling_says_how_to_go_on_and_leaving_cancels(
    real_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def endless(_request: object, _models: object, job: Job) -> None:
        jobs.append(job)
        while True:
            job.checkpoint("writing")
            time.sleep(0.01)

    monkeypatch.setattr("tui.screens.steering.steer_along", endless)
    app = LayerscopeApp(real_store, capture="tiny_loud", layer=2)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "at layer 2")
        await pilot.press("w")
        await wait_for(pilot, "Type what the user says")
        await pilot.press(*PROMPT, "enter")
        await wait_for(pilot, "steering at layer 2 by +0.1: writing")
        await pilot.press("ctrl+x")
        await wait_for(pilot, "cancelled; press i and Enter to write the texts again")
        await pilot.press("i", "enter")
        await wait_for(pilot, "steering at layer 2 by +0.1: writing")
        await pilot.press("escape")
        await wait_until(pilot, lambda text: "w Steer" in text and "writing" not in text, "the ranking, and no job")
    assert [job.status for job in jobs] == ["cancelled"] * 2


async def test_what_the_job_is_doing_is_shown_until_there_are_texts(
    real_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = [threading.Event() for _ in range(3)]
    real = directions.steer_along

    def slow(request: directions.SteeringRequest, models: ModelCache, job: Job) -> SteeredTexts:
        for gate, (step, done, total) in zip(
            reached, (("loading tiny", 0, 0), ("writing: baseline", 3, 120), ("writing: steered", 45, 120)), strict=True
        ):
            job.tell(step, done, total)
            assert gate.wait(60)
        return real(request, models, job)

    monkeypatch.setattr(steering, "steer_along", slow)
    async with LayerscopeApp(real_store, capture="tiny_loud", layer=2).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "at layer 2")
        await pilot.press("w")
        await wait_for(pilot, "Type what the user says")
        await pilot.press(*PROMPT, "enter")
        await wait_for(pilot, "loading tiny; ctrl+x cancels")
        reached[0].set()
        shown = await wait_for(pilot, "writing: baseline, 3 of 120; ctrl+x cancels")
        assert "loading" not in shown
        reached[1].set()
        await wait_for(pilot, "writing: steered, 45 of 120; ctrl+x cancels")
        reached[2].set()
        assert "writing" not in await wait_for(pilot, "steered +0.1", "projects to")


async def test_an_empty_prompt_asks_again(real_store: Path, generate: Mock) -> None:
    async with LayerscopeApp(real_store, capture="tiny_loud", layer=2).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "at layer 2")
        await pilot.press("w")
        await wait_for(pilot, "Type what the user says")
        await pilot.press("space", "enter")
        await pilot.pause(0.2)
        assert isinstance(pilot.app.focused, Input)
        await pilot.press("escape")
        await wait_for(pilot, "w Steer")
    generate.assert_not_called()


async def test_what_fails_is_said_on_the_screen(real_store: Path, tmp_path: Path) -> None:
    (tmp_path / "config" / "layerscope" / "models.toml").unlink()
    async with LayerscopeApp(real_store, capture="tiny_loud", layer=2).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "at layer 2")
        await pilot.press("w")
        await wait_for(pilot, "Type what the user says")
        await pilot.press(*PROMPT, "enter")
        await wait_for(pilot, "has no alias on this machine", "models.toml")
        await pilot.press("e")
        await pilot.pause(0.2)
        assert "Save this view as" not in screen_text(pilot.app)


async def test_prompts_have_no_direction(store: Path) -> None:
    async with LayerscopeApp(store, capture="some_prompt").run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "has no classes")
        await pilot.press("w")
        await wait_for(pilot, "this capture has no pairs")
