"""Directions: extracted and saved, and texts read along them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mcp import Client

import engine
from engine.records.files import VECTOR_FORMATS, TokenReading
from engine.stats.direction import extract_directions
from engine.store.catalog import show_capture
from engine.store.directions import find_directions, load_directions
from engine.store.read import load_contrast
from engine.store.record import encode_record
from server.app import LayerscopeServer, build_server
from server.settings import ServerSettings
from server.tools.directions import describe_reading
from tests.server.conftest import call, refused
from tests.server.test_journey import finished

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("method", ["mean_diff", "pca", "logistic", "lda"])
async def test_directions_are_saved_and_texts_read_along_them(app: LayerscopeServer, store: Path, method: str) -> None:
    async with Client(app) as client:
        said = await call(client, "extract_direction", name="loudness", method=method, save_as="mine")
        assert (said["name"], said["layers"], said["method"]) == ("mine", "0-3", method)
        again = await refused(client, "extract_direction", name="loudness", method=method, save_as="mine")
        assert again.endswith("Next: choose another save_as, or replace=true.")
        await call(client, "extract_direction", name="loudness", method=method, save_as="mine", replace=True)
        read = await finished(client, await call(client, "read_text", name="mine", text="w5 w9 w6", layer=2))
    saved, _ = load_directions("mine", store=store)
    expected = extract_directions(load_contrast("loudness", store=store), method)
    assert all((saved[layer]["vector"] == expected[layer]["vector"]).all() for layer in range(4))
    assert (read["reading"]["layer"], read["reading"]["concept"]) == (2, "loudness")
    assert [token["token"] for token in read["reading"]["tokens"]] == ["w5", "w9", "w6"]


async def test_the_name_of_another_capture_is_refused(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client:
        for more in ({}, {"format": "npz"}):
            said = await refused(client, "extract_direction", name="loudness", save_as="warmth", replace=True, **more)
            assert "warmth is the name of a capture, and these directions come from the capture 'loudness'" in said
            assert said.endswith("Next: choose another save_as.")
    assert sorted(path.name for path in store.glob("warmth*")) == ["warmth.json", "warmth.pt"]


async def test_answers_say_which_capture_directions_come_from(app: LayerscopeServer, store: Path) -> None:
    said = "the directions saved as warmth come from the capture 'loudness', not from the capture warmth"
    tools: dict[str, dict[str, Any]] = {
        "read_text": {"text": "w5 w9"},
        "steer_text": {"prompt": "w5 w9", "max_new_tokens": 2},
    }
    async with Client(app) as client:
        await call(client, "extract_direction", name="loudness", save_as="mine")
        for tool, given in tools.items():
            answer = await finished(client, await call(client, tool, name="mine", **given))
            assert answer["reading" if tool == "read_text" else "steering"]["capture"] == "loudness"
            assert not any("come from" in warning for warning in answer.get("warnings", []))
        (store / "mine.directions.safetensors").rename(store / "warmth.directions.safetensors")
        described = await call(client, "describe_capture", name="warmth")
        assert described["directions"] is True
        assert described["warnings"][0].startswith("the directions saved as warmth come from the capture 'loudness'")
        for tool, given in tools.items():
            answer = await finished(client, await call(client, tool, name="warmth", **given))
            assert said in answer["warnings"]
        own = await refused(client, "extract_direction", name="warmth", format="npz")
        assert "already exists" in own  # the vectors of another capture are not exported as those of this one
        gone = await call(client, "delete_capture", name="warmth", confirm=True)
    assert (gone["deleted"], gone["kept"]) == (["warmth.json", "warmth.pt"], ["warmth.directions.safetensors"])


async def test_answers_say_that_the_direction_of_a_contrast_that_was_not_found_may_be_noise(
    app: LayerscopeServer, store: Path
) -> None:
    record = show_capture("loudness", store=store)
    assert record["ranking"]
    for row in record["ranking"]["layers"]:
        row["p_value"] = 0.2
    (store / "loudness.json").write_text(encode_record(record).decode())
    said = "no layer of loudness separates its classes better than chance: its direction may be noise"
    async with Client(app) as client:
        for more in ({"save_as": "mine"}, {"format": "npz"}):
            answer = await call(client, "extract_direction", name="loudness", **more)
            assert answer["warnings"].count(said) == 1
        for name in ("loudness", "mine"):
            read = await finished(client, await call(client, "read_text", name=name, text="w5 w9"))
            steered = await call(client, "steer_text", name=name, prompt="w5 w9", max_new_tokens=2)
            for answer in (read, await finished(client, steered)):
                assert answer["warnings"].count(said) == 1


async def test_by_default_the_method_with_the_highest_auroc_is_used(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client:
        unsaved = await finished(client, await call(client, "read_text", name="loudness", text="w5 w9 w6"))
        said = await call(client, "extract_direction", name="loudness")
        read = await finished(client, await call(client, "read_text", name="loudness", text="w5 w9 w6"))
    data = load_contrast("loudness", store=store)
    compared = engine.compare_methods(data, engine.rank_layers(data)["layers"][0]["layer"])
    first = compared["scores"][0]
    assert said["method"] == compared["best"]
    assert said["compared"].startswith(
        f"held-out AUROC at layer {compared['layer']}: {first['method']} {first['auroc']:.3f}, "
    )
    assert (read["reading"]["method"], read["reading"]["compared"]) == (said["method"], said["compared"])
    assert read["reading"] == unsaved["reading"]


@pytest.mark.parametrize("file_format", VECTOR_FORMATS)
async def test_control_vectors_are_written_into_the_store(
    settings: ServerSettings, store: Path, tiny_folder: Path, file_format: str
) -> None:
    arguments = {"name": "loudness", "format": file_format, "save_as": "mine"}
    async with Client(build_server(settings)) as client:
        said = await call(client, "extract_direction", **arguments)
        again = await refused(client, "extract_direction", **arguments, method="pca")
        await call(client, "extract_direction", **arguments, replace=True, method="pca")
        saved = await call(client, "extract_direction", **arguments)
        await call(client, "extract_direction", **arguments, replace=True)
        await refused(client, "extract_direction", **arguments | {"save_as": "../mine"})
    assert again.endswith("Next: choose another save_as, or replace=true.")
    assert (said["name"], said["method"], said["format"]) == ("mine", "mean_diff", file_format)
    assert (saved["method"], saved["path"]) == ("pca", said["path"])  # what is saved is exported, not extracted again
    path = store / f"mine.vectors.{file_format}"
    assert said["path"] == str(path.absolute())
    assert {one.name for one in store.parent.iterdir()} == {"activations"}
    layer = said["leading"] or 2
    expected = extract_directions(load_contrast("loudness", store=store), "mean_diff")[layer]
    given: dict[str, Any] = {}
    alias = show_capture("loudness", store=store)["provenance"]["alias"]  # type: ignore[index]
    exec(said["python"].replace(repr(alias), repr(str(tiny_folder))), given)  # noqa: S102 - the line under test
    found = torch.as_tensor(given["vector"]["vector"] * expected["norm"] if file_format == "gguf" else given["vector"])
    assert torch.allclose(found, expected["vector"] * expected["norm"], rtol=1e-5)
    assert ("layer 0 is not in the file" in " ".join(said["warnings"])) == (file_format == "gguf")


async def test_no_vectors_of_replaced_directions_stay(app: LayerscopeServer, store: Path) -> None:
    async with Client(app) as client:
        await call(client, "extract_direction", name="loudness", format="npz")
        assert (store / "loudness.vectors.npz").exists()
        await call(client, "extract_direction", name="loudness", method="lda", replace=True)
    assert not (store / "loudness.vectors.npz").exists()


async def test_clients_that_share_a_server_learn_no_path(settings: ServerSettings) -> None:
    async with Client(build_server(replace(settings, shared=True))) as client:
        said = await call(client, "extract_direction", name="loudness", format="npz")
    assert said["path"] == "loudness.vectors.npz"
    assert "load('loudness.vectors.npz')" in said["python"]


async def test_a_text_is_read_along_imported_vectors(app: LayerscopeServer, store: Path, tiny_folder: Path) -> None:
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    found = engine.import_directions({2: [2.0] * 32}, model=model)
    found[2]["imported"]["model"] = show_capture("loudness", store=store)["provenance"]["alias"]  # type: ignore[index]
    engine.save_directions(found, "even", store=store)
    async with Client(app) as client:
        read = await finished(client, await call(client, "read_text", name="even", text="w5 w9 w6"))
    states = engine.capture_activations(model, tokenizer, "w5 w9 w6")["activations"][2][0]
    expected = states.mean(dim=-1) / 2  # the projection in lengths of the vector
    shown = [token["value"] for token in read["reading"]["tokens"]]
    assert shown == pytest.approx(expected.tolist(), abs=0.0051)
    assert (read["reading"]["layer"], read["reading"]["method"]) == (2, "imported")


async def test_a_reading_is_scaled_to_the_class_means(app: LayerscopeServer, store: Path, tiny_folder: Path) -> None:
    """Computed by hand: 0 at the negative mean, 1 at the positive mean."""
    model, tokenizer, _ = engine.load_model_and_tokenizer(str(tiny_folder))
    text = show_capture("loudness", store=store)["prompts"][0]
    states = engine.capture_activations(model, tokenizer, text)["activations"][3][0]
    direction = find_directions("loudness", store=store)[0][3]
    low, high = direction["negative_mean"], direction["positive_mean"]
    expected = (states @ direction["vector"] - low) / (high - low)
    async with Client(app) as client:
        read = await finished(client, await call(client, "read_text", name="loudness", text=text, layer=3))
    assert [token["value"] for token in read["reading"]["tokens"]] == pytest.approx(expected.tolist(), abs=0.02)


def reading(values: list[float]) -> TokenReading:
    return TokenReading(
        prompt="some text",
        tokens=[f"Ġt{number}" for number in range(len(values))],
        values={7: values},
        layers=[7],
        leading=7,
        method="mean_diff",
        concept="honesty",
        warnings=[],
    )


def test_a_long_text_is_cut_and_its_extremes_are_kept() -> None:
    values = [0.5] * 200
    values[0], values[150], values[160] = 900.0, 3.0, -2.0
    said = describe_reading(reading(values))
    assert (len(said.tokens), said.left_out, said.layer) == (120, 80, 7)
    assert (said.highest[0].token, said.highest[0].value) == (" t150", 3.0)
    assert (said.lowest[0].token, said.lowest[0].value) == (" t160", -2.0)
    assert said.tokens[0].value == 900.0


def test_tokens_that_are_set_aside_are_no_extremes_and_are_named() -> None:
    found = reading([900.0, -70.0, 1.0, 2.0, 4.0, 60.0] + [0.5] * 130)
    found["texts"] = ["<s>", "user", " é", "\n", " now", "</s>"] + [" x"] * 130
    found["set_aside"] = [0, 1, 5, 135]
    said = describe_reading(found)
    assert [token.token for token in said.highest[:3]] == [" now", "⏎", " é"]
    assert {token.value for token in said.lowest} == {0.5}
    assert said.set_aside == [0, 1, 5]  # of the listed tokens
    assert said.tokens[1].value == -70.0


def test_a_text_of_one_token_is_its_own_extreme() -> None:
    said = describe_reading(reading([1.234]))
    assert [token.value for token in said.highest] == [token.value for token in said.lowest] == [1.23]
