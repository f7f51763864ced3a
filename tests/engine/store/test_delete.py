"""Deleting a capture removes all of its files, no others, and nothing outside the store."""

from pathlib import Path

import pytest

import engine
from engine.errors import StoreError
from engine.records.captures import ContrastData
from engine.store.catalog import list_captures
from engine.store.delete import delete_capture


def test_a_capture_goes_with_its_directions_and_others_stay(contrast_data: ContrastData, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        engine.save_activations(contrast_data, name, store=tmp_path)
    engine.save_directions(engine.extract_directions(contrast_data), "mine", store=tmp_path)
    assert delete_capture("mine", store=tmp_path) == ["mine.json", "mine.pt", "mine.directions.safetensors"]
    assert [entry.name for entry in list_captures(tmp_path)] == ["other"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "other.pt"]


def test_what_a_killed_save_left_can_be_deleted(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path).record.unlink()
    assert delete_capture(tmp_path / "mine") == ["mine.pt"]


def test_a_name_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no capture called 'mine'"):
        delete_capture("mine", store=tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", "a/b", ""])
def test_nothing_outside_the_store_is_deleted(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    store = tmp_path / "store"
    store.mkdir()
    with pytest.raises(StoreError, match="is not a valid capture name"):
        delete_capture(name, store=store)
    assert outside.exists()
