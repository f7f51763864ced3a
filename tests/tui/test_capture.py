"""The capture form: estimate, run, cancel, resume and validation."""

from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

import engine
from engine.concepts.catalog import load_concept
from engine.concepts.pairs import draw_pairs
from engine.jobs import Job, JobCancelled
from engine.models.placement import LoadOptions
from engine.store import neighbours, specificity
from engine.store.catalog import show_capture
from tests.engine.cli.conftest import concept_text
from tests.tui.screen_text import screen_text, wait_for, wait_until
from tui.app import LayerscopeApp
from tui.capturing import CaptureForm, plan_capture, run_plan
from tui.models import ModelCache

pytestmark = pytest.mark.anyio


@pytest.fixture
def concept(tmp_path: Path) -> Path:
    """A concept of 24 pairs in the tiny model's vocabulary."""
    file = tmp_path / "loudness.toml"
    file.write_text(concept_text("loudness"))
    return file


def fill(pilot: Pilot[None], **fields: str) -> None:
    """Fill in fields of the form."""
    for name, value in fields.items():
        pilot.app.screen.query_one(f"#{name}", Input).value = value


async def test_estimates_captures_and_opens_the_result(real_store: Path, concept: Path) -> None:
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture", "Enter estimates")
        fill(pilot, model="tiny", concept=str(concept), samples="0")
        await pilot.press("enter")
        await wait_for(pilot, "48 prompts", "tokens", "MB", "Enter starts the capture")
        await pilot.press("enter")
        await wait_for(pilot, "loudness", "24 pairs, positions: last", "rank", "projections at layer")
        await pilot.press("escape")
        await wait_for(pilot, "3 captures", "tiny_loudness")
    saved = show_capture("tiny_loudness", store=real_store)
    assert (saved["num_pairs"], saved["captured_layers"], saved["concept"]) == (24, [0, 1, 2, 3], "loudness")


async def test_an_estimate_counts_the_prompts_of_neighbours(
    real_store: Path, concept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calm.toml"
    path.write_text(concept_text("calm"))
    calm = load_concept(path)
    monkeypatch.setattr(specificity, "built_in_neighbours", lambda: [calm])
    monkeypatch.setattr(neighbours, "neighbours_path", lambda: tmp_path / "kept")
    async with LayerscopeApp(real_store).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture", "Enter estimates")
        fill(pilot, model="tiny", concept=str(concept), samples="0")
        await pilot.press("enter")
        count = 2 * len(draw_pairs(calm, 72, 0))
        await wait_for(pilot, "48 prompts", f"and {count} prompts of neighbours, once for this model")


@pytest.mark.slow
async def test_a_cancelled_file_of_prompts_resumes_from_its_shards(real_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    long = " ".join(f"w{number}" for number in range(10, 68))  # the model's maximum length
    texts = [f"w{number % 100 + 3} w{number // 100 + 3} {long}" for number in range(5000)]
    file.write_text("\n".join(texts))
    shards = real_store / "asked"
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        fill(pilot, model="tiny", concept=str(file), name="asked")
        await pilot.press("enter")
        await wait_for(pilot, "5,000 prompts, 300,000 tokens", "Saved as shards: if interrupted")
        await pilot.press("enter")
        await wait_for(pilot, "capturing asked: running prompts", "/5000", "✗ asked: unfin")
        await wait_until(pilot, lambda _text: len(list(shards.glob("*.safetensors"))) > 1, "two shards")
        await pilot.press("ctrl+x")
        await wait_for(pilot, "the shards of asked are kept")
        before = {path: path.stat().st_mtime_ns for path in shards.glob("*.safetensors")}
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        fill(pilot, model="tiny", concept=str(file), name="asked")
        await pilot.click("#run")
        for some in (4, 7):  # a separate timeout for each: this is slow on a busy machine
            await wait_until(pilot, lambda _text, some=some: len(list(shards.glob("*.safetensors"))) > some, "shards")  # type: ignore[misc]
        await wait_for(pilot, "5000 prompts", "a capture of prompts has no classes")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    saved = engine.open_shards("asked", store=real_store)
    assert len(saved) == 10
    assert [text for shard in saved for text in shard.prompts] == texts


def test_a_cancelled_large_contrast_resumes_from_its_shards(real_store: Path, concept: Path) -> None:
    form = CaptureForm(model="tiny", concept=str(concept), layers="all", positions="last", samples="0", name="")
    plan, models = plan_capture(form, real_store), ModelCache(LoadOptions())
    plan = replace(plan, request=replace(plan.request, most_in_memory=1))
    job = Job("capturing")
    job.on_change = lambda: job.cancel() if job.step == "ranking layers" else None
    with pytest.raises(JobCancelled):
        run_plan(plan, models, job)
    assert job.kept == "tiny_loudness"
    kept = {path: path.stat().st_mtime_ns for path in (real_store / "tiny_loudness").glob("*.safetensors")}
    assert kept
    assert run_plan(plan, models, Job("capturing")).name == "tiny_loudness"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    record = show_capture("tiny_loudness", store=real_store)
    assert (record["num_pairs"], record["concept"]) == (24, "loudness")
    assert record["ranking"] is not None


def test_a_capture_cancelled_during_ranking_is_not_saved(real_store: Path, concept: Path) -> None:
    before = sorted(path.name for path in real_store.iterdir())
    form = CaptureForm(model="tiny", concept=str(concept), layers="all", positions="last", samples="0", name="")
    job = Job("capturing")
    job.on_change = lambda: job.cancel() if (job.step, job.done) == ("ranking layers", 2) else None
    with pytest.raises(JobCancelled):
        run_plan(plan_capture(form, real_store), ModelCache(LoadOptions()), job)
    assert (job.kept, job.done, job.total) == ("", 2, 4)
    assert sorted(path.name for path in real_store.iterdir()) == before


async def test_captures_a_file_of_pairs_under_a_custom_name(real_store: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"positive": "w{i} w9", "negative": "w{i} w8"}}\n' for i in range(20, 30)))
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        fill(pilot, model="tiny", concept=str(pairs), layers="1,2", name="mine")
        await pilot.click("#run")
        await wait_for(pilot, "10 pairs", "projections at layer")
    assert show_capture("mine", store=real_store)["captured_layers"] == [1, 2]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"concept": ""}, "the field Concept is empty"),
        ({"concept": "honestly"}, "did you mean 'honesty'"),
        ({"concept": "honesty", "model": "smolm2"}, "did you mean 'smollm2'"),
        ({"concept": "honesty", "samples": "many"}, "'many' is not a number of pairs"),
        ({"concept": "honesty", "positions": "first"}, "positions"),
        ({"concept": "honesty", "name": "tiny_loud"}, "tiny_loud"),
        ({"concept": "honesty", "name": "../out"}, "name"),
        ({"concept": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"concept": "nowhere.txt"}, "nowhere.txt"),
        ({"concept": "neither.csv"}, "contains neither prompts nor pairs"),
    ],
)
async def test_an_invalid_field_is_reported_at_once(
    real_store: Path, fields: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(real_store.parent)
    Path("neither.csv").write_text("text\nhello\n")
    async with LayerscopeApp(real_store).run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        fill(pilot, **fields)
        await pilot.press("enter")
        text = await wait_for(pilot, said)
        assert "bug" not in text
        assert "Enter starts the capture" not in text
    assert not (real_store.parent / "out.pt").exists()


async def test_missing_layers_and_a_model_that_does_not_load(real_store: Path, concept: Path, tmp_path: Path) -> None:
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
        await pilot.pause(0.3)
        assert screen_text(pilot.app).count("estimating tiny_loudness") == 1  # one notification
        fill(pilot, model=str(broken), layers="all")
        await pilot.press("enter")
        text = await wait_until(pilot, lambda text: "broken" in text and "Next:" in text, "why it does not load")
        assert "bug" not in text


async def test_cancel_saves_nothing_and_keeps_the_app_usable(real_store: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    long = " ".join(f"w{number}" for number in range(10, 68))  # the model's maximum length
    with many.open("w") as file:
        for pair in range(8000):  # all different, since shared prefixes are run once
            one, other = f"w{pair % 100 + 3} w{pair // 100 + 3}", f"w{pair // 100 + 3} w{pair % 100 + 4}"
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
        await wait_for(pilot, "capturing never", "/16000", "ctrl+x cancels", "tiny_loud", "Highest:")
        await pilot.press("ctrl+x")
        text = await wait_for(pilot, "cancelled; nothing was saved")
        assert text.count("cancelled; nothing") == 1
        await pilot.press("enter")
        await wait_for(pilot, "projections at layer")
    assert sorted(path.name for path in real_store.iterdir()) == before


@pytest.mark.anyio
async def test_the_form_says_which_field_to_fill_otherwise(real_store: Path) -> None:
    async with LayerscopeApp(real_store).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("n")
        await wait_for(pilot, "New capture")
        pilot.app.screen.query_one("#concept", Input).value = "honesty"
        pilot.app.screen.query_one("#name", Input).value = "tiny_loud"
        await pilot.press("enter")
        # The message contains paths, so it may wrap anywhere.
        wanted = "another name in the field Save as"
        await wait_until(pilot, lambda text: wanted in " ".join(text.split()), wanted)
