"""The tokens screen: prompts of the capture, typed texts, extraction methods and loading errors."""

import json
from functools import partial
from pathlib import Path

import pytest

import engine
from engine.models.placement import LoadOptions
from engine.plots.tokens_text import compared_methods
from engine.records.files import METHODS, Method
from engine.store.read import load_contrast
from tests.tui.conftest import put, ranked_record
from tests.tui.screen_text import wait_for, wait_until
from tui.app import LayerscopeApp
from tui.widgets.heat_map import HeatMap

pytestmark = pytest.mark.anyio


async def test_reads_prompts_and_a_text_and_describes_the_selected_cell(real_store: Path, tiny_folder: Path) -> None:
    app = LayerscopeApp(real_store)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("t")
        await wait_for(
            pilot, "held-out AUROC at layer", "positive prompt of pair 1 of 12", "▸", "token 1 'w30' at layer"
        )
        await pilot.press("n")
        await wait_for(pilot, "negative prompt of pair 1 of 12", "token 1 'w5'")
        await pilot.press("N", "N")
        await wait_for(pilot, "negative prompt of pair 12 of 12")
        await pilot.press("i", "w", "7", "space", "w", "8", "enter")
        await wait_for(pilot, "your text", "token 1 'w8'")
        first = METHODS.index(_method_shown(app))
        for method in (*METHODS[first + 1 :], *METHODS[:first]):
            await pilot.press("m")
            wanted = partial(_shows, app, method)
            await wait_until(pilot, wanted, method)
        await pilot.press("home", *["h"] * 4)
        shown = await wait_for(pilot, "token 0 'w7' at layer 0: ")

    # Recompute the number on the screen: the token's state on the line between the class means.
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    name = "tiny_warm" if "tiny_warm" in shown else "tiny_loud"
    direction = engine.extract_directions(load_contrast(name, store=real_store), method)[0]
    state = engine.capture_activations(model, tokenizer, "w7 w8")["activations"][0][0, 0]
    negative, positive = direction["negative_mean"], direction["positive_mean"]
    expected = (float(state @ direction["vector"]) - negative) / (positive - negative)
    assert f"at layer 0: {expected:+.2f} " in shown


def _method_shown(app: LayerscopeApp) -> str:
    reading = app.screen.query_one(HeatMap).reading
    assert reading is not None
    return reading["method"]


def _shows(app: LayerscopeApp, method: Method, text: str) -> bool:
    return _method_shown(app) == method and f"· {method}" in text


async def test_a_reading_along_the_direction_of_a_contrast_that_was_not_found_is_marked(real_store: Path) -> None:
    for path in real_store.glob("*.json"):
        record = json.loads(path.read_text())
        for row in record["ranking"]["layers"]:
            row["p_value"] = 0.2
        path.write_text(json.dumps(record))
    app = LayerscopeApp(real_store)
    async with app.run_test(size=(160, 50), notifications=True) as pilot:
        await wait_for(pilot, "2 captures")
        await pilot.press("t")
        await wait_for(pilot, "separates its classes better than chance: its direction may be noise")


async def test_the_best_method_comes_first_and_is_explained(real_store: Path) -> None:
    async with LayerscopeApp(real_store, capture="tiny_loud").run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "Held-out projections at layer")
        await pilot.press("t")
        data = load_contrast("tiny_loud", store=real_store)
        compared = engine.compare_methods(data, engine.rank_layers(data)["layers"][0]["layer"])
        await wait_for(pilot, f"tiny_loud · {compared['best']}", compared_methods(compared))


async def test_reads_every_pair_of_a_capture_in_shards(real_store: Path, tiny_folder: Path, tmp_path: Path) -> None:
    pairs = [{"positive": f"w5 w{30 + i}", "negative": f"w40 w5 w{30 + i}", "persona": f"w{i % 8}"} for i in range(25)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    engine.capture_contrast_in_shards(model, tokenizer, tmp_path / "pairs.jsonl", "tiny_many", store=real_store)
    async with LayerscopeApp(real_store, capture="tiny_many").run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "Held-out projections at layer")
        await pilot.press("t")
        await wait_for(pilot, "positive prompt of pair 1 of 25", "token 1 'w30'")
        await pilot.press("N")
        await wait_for(pilot, "negative prompt of pair 25 of 25", "token 1 'w5'")
        await pilot.press("N")
        await wait_for(pilot, "positive prompt of pair 25 of 25", "token 1 'w54'")


async def test_directions_are_extracted_once(real_store: Path) -> None:
    async with LayerscopeApp(real_store, capture="tiny_loud").run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "Held-out projections at layer")
        await pilot.press("t")
        await wait_for(pilot, "token 1 'w30'")
        (real_store / "tiny_loud.pt").unlink()  # a second extraction would need the tensors
        await pilot.press("i", "w", "7", "space", "w", "8", "enter")
        await wait_for(pilot, "your text", "token 1 'w8'")


async def test_the_model_is_loaded_with_the_options_of_the_app(real_store: Path) -> None:
    shown = []
    for options in (LoadOptions(), LoadOptions("auto", "auto", {"cpu": 0})):
        app = LayerscopeApp(real_store, capture="tiny_loud", load_options=options)
        async with app.run_test(size=(120, 40)) as pilot:
            await wait_for(pilot, "Held-out projections at layer")
            await pilot.press("t")
            shown.append(await wait_for(pilot, "token 1 'w30'"))
            model, _, _ = app.models.get("tiny")
            assert model.model.layers[0].mlp.up_proj.weight.is_meta is (options.device_map is not None)
    assert shown[0] == shown[1]


async def test_starts_at_the_layer_selected_in_the_ranking(real_store: Path) -> None:
    async with LayerscopeApp(real_store, capture="tiny_loud", layer=2).run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "at layer 2")
        await pilot.press("t")
        await wait_for(pilot, "token 1 'w30' at layer 2")
        await pilot.press("l")
        await wait_for(pilot, "token 1 'w30' at layer 3")
        await pilot.press("escape")
        await wait_for(pilot, "r Rank")


async def test_leaving_the_text_field_changes_nothing(real_store: Path) -> None:
    async with LayerscopeApp(real_store, capture="tiny_loud").run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, "tokens".title())
        await pilot.press("t")
        await wait_for(pilot, "token 1 'w30'")
        await pilot.press("i", "w", "7", "escape")
        await wait_for(pilot, "token 1 'w30'", "positive prompt of pair 1")
        assert isinstance(pilot.app.focused, HeatMap)


async def test_a_model_without_a_registered_name(real_store: Path, tmp_path: Path) -> None:
    (tmp_path / "config" / "layerscope" / "models.toml").unlink()
    async with LayerscopeApp(real_store, capture="tiny_loud").run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "projections at layer")
        await pilot.press("t")
        await wait_for(pilot, "has no alias on this machine", "models.toml")


async def test_tensors_that_do_not_match_the_record(store: Path) -> None:
    put(store, ranked_record("small_warmth", peak=16, day=4))
    async with LayerscopeApp(store, capture="small_warmth").run_test(size=(120, 40), notifications=True) as pilot:
        await wait_for(pilot, "projections at layer 16")
        await pilot.press("t")
        text = await wait_for(pilot, "small_warmth.pt")
        assert "bug" not in text
