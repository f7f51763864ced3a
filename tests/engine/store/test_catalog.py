"""Listing a store from its JSON: newest first, filtered, damaged captures with the reason."""

import json
from pathlib import Path

import pytest

import engine
from engine.errors import StoreError
from engine.records.captures import ActivationData, ContrastData
from engine.store.catalog import show_capture, unfinished_saves
from engine.store.names import CapturePaths


def saved_at(paths: CapturePaths, created: str) -> None:
    record = json.loads(paths.record.read_text())
    paths.record.write_text(json.dumps(record | {"created": created}))


def test_newest_first_and_damaged_last(
    prompt_data: ActivationData, contrast_data: ContrastData, tmp_path: Path
) -> None:
    saved_at(engine.save_activations(prompt_data, "old", store=tmp_path), "2024-01-01T00:00:00+00:00")
    saved_at(engine.save_activations(contrast_data, "new", store=tmp_path), "2025-01-01T00:00:00+00:00")
    engine.save_activations(prompt_data, "gone", store=tmp_path).tensors.unlink()
    (tmp_path / "notes.txt").touch()
    entries = engine.list_captures(tmp_path)
    assert [entry.name for entry in entries] == ["new", "old", "gone"]
    assert [entry.problem for entry in entries] == ["", "", "gone.pt is missing"]


def test_filters(prompt_data: ActivationData, contrast_data: ContrastData, tmp_path: Path) -> None:
    contrast_data["concept"] = "honesty"
    engine.save_activations(prompt_data, "one", store=tmp_path)
    engine.save_activations(contrast_data, "two", store=tmp_path)
    assert [entry.name for entry in engine.list_captures(tmp_path, concept="honesty")] == ["two"]
    model = contrast_data["provenance"]["model"]
    assert {entry.name for entry in engine.list_captures(tmp_path, model=model)} == {"one", "two"}
    assert engine.list_captures(tmp_path, model="another") == []


def test_a_capture_is_shown_without_its_tensors_being_read(contrast_data: ContrastData, tmp_path: Path) -> None:
    paths = engine.save_activations(contrast_data, "mine", store=tmp_path)
    paths.tensors.write_bytes(b"x" * paths.tensors.stat().st_size)
    assert show_capture("mine", store=tmp_path)["num_pairs"] == 2


def test_a_missing_store_and_a_missing_capture(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        engine.list_captures(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="no capture called 'mine'"):
        show_capture("mine", store=tmp_path)


def test_leftovers_of_killed_saves_are_found(tmp_path: Path) -> None:
    leftover = tmp_path / ".mine.pt.1a2b3c4d.unfinished"
    leftover.touch()
    assert unfinished_saves(tmp_path) == [leftover]
    assert engine.list_captures(tmp_path) == []
