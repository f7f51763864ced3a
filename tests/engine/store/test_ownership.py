"""Directions under the name of a capture are those of that capture; any others are refused, or said to be others."""

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import StoreError
from engine.records.captures import ActivationData, ContrastData
from engine.records.files import Direction, Imported
from engine.steering.controls import load_source
from engine.store.delete import capture_files, kept_directions
from engine.store.locks import folder_lock
from engine.store.names import locate
from engine.store.ownership import direction_warnings, origin_note, origin_warning, require_free
from tests.engine.plots.records import ranking_of

Directions = dict[int, Direction]
NAME = "mine.directions.safetensors"


@pytest.fixture
def directions(contrast_data: ContrastData) -> Directions:
    return engine.extract_directions(contrast_data)


@pytest.fixture
def pair(contrast_data: ContrastData, tmp_path: Path) -> Path:
    """A store with two contrasts."""
    for name in ("mine", "other"):
        engine.save_activations(contrast_data, name, store=tmp_path)
    return tmp_path


@pytest.fixture
def mixed(pair: Path, directions: Directions) -> Path:
    """A store of an earlier version: `mine` has the directions of `other`, and control vectors made from them."""
    made = engine.save_directions(directions, "spare", store=pair, capture="other")
    made.rename(pair / NAME)
    engine.export_directions(directions, pair / "mine.vectors.npz")
    return pair


def files(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir())


@pytest.mark.parametrize("force", [True, False])
def test_directions_of_another_capture_are_refused_whatever_force_says(
    pair: Path, directions: Directions, force: bool
) -> None:
    for _ in range(2):  # without and with directions of its own
        before = {path: path.read_bytes() for path in pair.iterdir()}
        with pytest.raises(
            StoreError, match=r"mine is the name of a capture, .* come from the capture 'other'.*Next: "
        ):
            engine.save_directions(directions, "mine", store=pair, capture="other", force=force)
        assert {path: path.read_bytes() for path in pair.iterdir()} == before
        engine.save_directions(directions, "mine", store=pair, force=True)
    assert engine.save_directions(directions, "free", store=pair, capture="other").exists()


def test_imported_vectors_are_refused_under_the_name_of_a_capture(pair: Path, directions: Directions) -> None:
    for direction in directions.values():
        direction["imported"] = Imported(origin="repeng", file="joy.gguf", model="tiny")
    with pytest.raises(StoreError, match=r"mine is the name of a capture, .* come from the file joy\.gguf"):
        engine.save_directions(directions, "mine", store=pair, force=True)
    assert engine.save_directions(directions, "joy", store=pair).exists()
    assert origin_note("joy", store=pair) == "the directions joy come from the file joy.gguf"


@pytest.mark.parametrize("change", ["concept", "model", "prompts"])
def test_what_cannot_come_from_the_capture_is_refused_without_its_name(
    pair: Path, prompt_data: ActivationData, directions: Directions, change: str
) -> None:
    for direction in directions.values():
        assert direction["provenance"] is not None
        if change == "concept":
            direction["concept"] = "joy"
        elif change == "model":
            direction["provenance"] = {**direction["provenance"], "model": "another"}
    if change == "prompts":
        engine.save_activations(prompt_data, "mine", store=pair, force=True)
    with pytest.raises(StoreError, match="mine is the name of a capture, and these directions come from another"):
        engine.save_directions(directions, "mine", store=pair)


def test_the_capture_of_that_name_in_another_store_is_another_one(
    pair: Path, contrast_data: ContrastData, directions: Directions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    engine.save_activations(contrast_data, "mine", store=elsewhere)
    with pytest.raises(StoreError, match=r"the capture of that name in .*elsewhere"):
        engine.save_directions(directions, "mine", store=pair, capture=elsewhere / "mine")
    assert engine.save_directions(directions, "mine", store=pair, capture=pair / "mine").exists()


@pytest.mark.parametrize("force", [True, False])
def test_a_capture_is_refused_under_the_name_of_directions_of_another(
    pair: Path,
    contrast_data: ContrastData,
    directions: Directions,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    force: bool,
) -> None:
    path = engine.save_directions(directions, "probe", store=pair, capture="other")
    before = path.read_bytes()
    (pair / "texts.txt").write_text("w5 w6")
    said = "there are directions called probe, which come from the capture 'other'"
    with pytest.raises(StoreError, match=said):
        engine.save_activations(contrast_data, "probe", store=pair, force=force)
    with pytest.raises(StoreError, match=said) as caught:
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, pair / "texts.txt", "probe", store=pair, force=force)
    assert f"layerscope rename probe --store {pair} NEW" in caught.value.said("command_line")
    assert path.read_bytes() == before
    assert not locate("probe", pair).exist


def test_directions_of_an_earlier_capture_are_replaced_only_on_request(
    directions: Directions,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = engine.save_directions(directions, "mine", store=tmp_path)
    (tmp_path / "texts.txt").write_text("w5 w6")
    with pytest.raises(StoreError, match=r"directions called mine, which come from an earlier capture.*force=True"):
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, tmp_path / "texts.txt", "mine", store=tmp_path)
    assert path.exists()
    engine.capture_prompt_file(tiny_llama, tiny_tokenizer, tmp_path / "texts.txt", "mine", store=tmp_path, force=True)
    assert files(tmp_path) == ["mine", "mine.json", "texts.txt"]
    assert "replacing mine: deleted its saved directions" in caplog.messages


def test_directions_saved_before_the_states_in_memory_stay(
    contrast_data: ContrastData, directions: Directions, tmp_path: Path
) -> None:
    engine.save_directions(directions, "mine", store=tmp_path)
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    assert files(tmp_path) == [NAME, "mine.json", "mine.pt"]
    assert origin_note("mine", store=tmp_path) == ""


def test_prompts_do_not_take_the_name_of_directions(
    prompt_data: ActivationData, directions: Directions, tmp_path: Path
) -> None:
    """No directions can come from prompts, so that they would be those of another capture at once."""
    engine.save_directions(directions, "mine", store=tmp_path)
    with pytest.raises(StoreError, match=r"directions called mine, which come from an earlier capture.*force=True"):
        engine.save_activations(prompt_data, "mine", store=tmp_path)
    assert files(tmp_path) == [NAME]
    engine.save_activations(prompt_data, "mine", store=tmp_path, force=True)
    assert files(tmp_path) == ["mine.json", "mine.pt"]


def test_foreign_directions_are_said_to_be_foreign(mixed: Path, directions: Directions) -> None:
    note = "the directions saved as mine come from the capture 'other', not from the capture mine"
    assert origin_note(mixed / NAME) == origin_warning("mine", store=mixed) == note
    engine.save_directions(directions, "probe", store=mixed, capture="mine")
    assert origin_note("probe", store=mixed) == "the directions probe come from the capture 'mine'"
    assert origin_warning("probe", store=mixed) == ""
    assert origin_note("other", store=mixed) == ""
    (mixed / NAME).write_bytes(b"damaged")
    assert origin_note("mine", store=mixed) == ""


def test_a_deleted_capture_leaves_the_directions_of_another(mixed: Path) -> None:
    assert kept_directions("mine", store=mixed) == [NAME]
    assert capture_files("mine", store=mixed) == ["mine.json", "mine.pt"]
    assert engine.delete_capture("mine", store=mixed) == ["mine.json", "mine.pt"]
    assert files(mixed) == [NAME, "mine.vectors.npz", "other.json", "other.pt"]
    assert engine.load_directions("mine", store=mixed)[0]
    assert kept_directions("other", store=mixed) == [NAME]
    assert engine.delete_capture("mine", store=mixed) == [NAME, "mine.vectors.npz"]


def test_a_renamed_capture_leaves_the_directions_of_another(mixed: Path) -> None:
    engine.rename_capture("mine", "final", store=mixed)
    assert files(mixed) == ["final.json", "final.pt", NAME, "mine.vectors.npz", "other.json", "other.pt"]
    engine.rename_capture("mine", "probe", store=mixed)
    assert origin_note("probe", store=mixed) == "the directions probe come from the capture 'other'"
    assert not list(mixed.glob("mine*"))


def test_foreign_directions_follow_the_name_of_their_capture(mixed: Path) -> None:
    engine.rename_capture("other", "third", store=mixed)
    assert origin_note("mine", store=mixed).startswith("the directions saved as mine come from the capture 'third'")


def test_control_vectors_of_directions_that_follow_a_name_stay(pair: Path, directions: Directions) -> None:
    engine.save_directions(directions, "probe", store=pair, capture="mine")
    engine.export_directions(directions, pair / "probe.vectors.npz")
    engine.rename_capture("mine", "final", store=pair)
    assert origin_note("probe", store=pair) == "the directions probe come from the capture 'final'"
    assert (pair / "probe.vectors.npz").exists()
    engine.save_directions(directions, "probe", store=pair, capture="final", force=True)
    assert not (pair / "probe.vectors.npz").exists()  # these are of directions that were replaced


def test_directions_of_a_capture_of_that_name_elsewhere_do_not_follow(
    pair: Path, directions: Directions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for direction in directions.values():
        direction["concept"] = "joy"
    engine.save_directions(directions, "probe", store=pair, capture=elsewhere / "mine")
    assert kept_directions("mine", store=pair) == []
    assert load_source("probe", store=pair) is None
    before = (pair / "probe.directions.safetensors").read_bytes()
    engine.rename_capture("mine", "final", store=pair)
    assert (pair / "probe.directions.safetensors").read_bytes() == before


@pytest.mark.parametrize("path", ["mine", "mine.pt", "{store}/mine"])
def test_a_capture_may_be_named_by_a_path(pair: Path, directions: Directions, path: str) -> None:
    engine.save_directions(directions, "mine", store=pair, capture=path.format(store=pair))
    engine.save_directions(directions, "probe", store=pair, capture=path.format(store=pair))
    assert origin_note("mine", store=pair) == ""
    assert kept_directions("mine", store=pair) == ["probe.directions.safetensors"]


def test_no_capture_gets_a_name_while_directions_are_saved_under_it(pair: Path, directions: Directions) -> None:
    with ThreadPoolExecutor(1) as pool:
        with folder_lock(pair):
            saving = pool.submit(engine.save_directions, directions, "free", store=pair, capture="other")
            with pytest.raises(TimeoutError):
                saving.result(timeout=0.3)
            for path in pair.glob("mine*"):
                path.rename(pair / path.name.replace("mine", "free"))
        with pytest.raises(StoreError, match="free is the name of a capture"):
            saving.result()
    assert not (pair / "free.directions.safetensors").exists()


def test_a_replaced_capture_leaves_the_directions_of_another(
    mixed: Path, contrast_data: ContrastData, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="engine")
    require_free(locate("mine", mixed), force=True, resume=True)
    engine.save_activations(contrast_data, "mine", store=mixed, force=True)
    assert caplog.messages == ["the directions saved as mine stay: they come from the capture 'other'"]
    assert origin_note("mine", store=mixed)


def test_own_directions_may_take_the_place_of_foreign_ones(mixed: Path, directions: Directions) -> None:
    with pytest.raises(StoreError, match="already exists"):
        engine.save_directions(directions, "mine", store=mixed)
    engine.save_directions(directions, "mine", store=mixed, force=True)
    assert origin_note("mine", store=mixed) == ""


def test_a_copied_capture_keeps_its_directions(pair: Path, directions: Directions, tmp_path: Path) -> None:
    engine.save_directions(directions, "mine", store=pair)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in pair.glob("mine*"):
        shutil.copyfile(path, copy / path.name)
    assert origin_note("mine", store=copy) == ""


NOISE = {
    "chance": "no layer of mine separates its classes better than chance: its direction may be noise",
    "small": "mine cannot be tested (p cannot fall below 0.060): its direction may be noise",
    "unranked": "mine has no ranking (the 60 pairs share prompts): its direction may be noise",
}


def change_ranking(store: Path, name: str, change: str) -> None:
    """Make a saved contrast one that is not found."""
    ranking = ranking_of(p_values=[0.3, 0.2, 0.06, 0.9] if change != "found" else [0.3, 0.05, 0.2, 0.9])
    path = store / f"{name}.json"
    record = json.loads(path.read_text()) | {"ranking": ranking, "unranked": ""}
    if change == "small":
        record["ranking"]["smallest_p"] = 0.06
    if change == "unranked":
        record |= {"ranking": None, "sides": [], "unranked": "the 60 pairs share prompts"}
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("change", NOISE)
def test_directions_of_a_contrast_that_was_not_found_may_be_noise(
    pair: Path, directions: Directions, change: str
) -> None:
    change_ranking(pair, "other", "found")
    change_ranking(pair, "mine", change)
    assert direction_warnings("mine", store=pair) == [NOISE[change]]
    for name in ("mine", "spare"):
        engine.save_directions(directions, name, store=pair, capture="mine")
        assert direction_warnings(pair / name) == [NOISE[change]]
    assert direction_warnings("other", store=pair) == []
    engine.save_directions(directions, "free", store=pair, capture="other")
    assert direction_warnings("free", store=pair) == []
    (pair / "mine.json").unlink()
    assert direction_warnings("spare", store=pair) == []


def test_directions_under_the_name_of_another_capture_are_judged_by_their_own(mixed: Path) -> None:
    change_ranking(mixed, "mine", "found")
    change_ranking(mixed, "other", "chance")
    origin, noise = direction_warnings("mine", store=mixed)
    assert (origin, noise) == (origin_warning("mine", store=mixed), NOISE["chance"].replace("mine", "other"))
