"""Listing a store from its JSON: newest first, filtered, damaged captures with the reason."""

import json
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import engine
from engine.errors import StoreError
from engine.records.captures import ActivationData, ContrastData
from engine.store.catalog import show_capture, unfinished_saves
from engine.store.names import CapturePaths, is_folder, locate

NOBODY = 65534


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


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_a_store_in_a_folder_that_the_user_may_not_open(contrast_data: ContrastData, tmp_path: Path) -> None:
    store = tmp_path / "private" / "store"
    engine.save_activations(contrast_data, "mine", store=store)
    calls: tuple[Callable[[], object], ...] = (
        partial(show_capture, store / "mine"),
        partial(engine.load_activations, "mine", store=store),
        partial(engine.load_directions, "mine", store=store),
        partial(engine.save_activations, contrast_data, "other", store=store),
        partial(engine.rename_capture, "mine", "other", store=store),
        partial(engine.delete_capture, "mine", store=store),
        partial(engine.verify_capture, "mine", store=store),
        partial(engine.list_captures, store),
    )
    user = os.geteuid()
    store.parent.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)  # root ignores permissions
    try:
        for call in calls:
            with pytest.raises(StoreError, match=r"store cannot be read: Permission denied.*ask its owner"):
                call()
        assert not is_folder(str(store / "mine"))
    finally:
        os.seteuid(user)
        store.parent.chmod(stat.S_IRWXU)
    assert engine.verify_capture("mine", store=store).status == "ok"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_a_capture_that_another_user_replaces_can_be_read(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    hidden = locate("mine", tmp_path).replacement.shards
    hidden.mkdir(parents=True)
    user, everyone = os.geteuid(), stat.S_IXOTH
    folders = [folder for folder in (tmp_path, *tmp_path.parents) if not folder.stat().st_mode & everyone]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o755)
    hidden.parent.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        assert show_capture("mine", store=tmp_path)["name"] == "mine"
        assert [entry.problem for entry in engine.list_captures(tmp_path)] == [""]
    finally:
        os.seteuid(user)
        hidden.parent.chmod(stat.S_IRWXU)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)
