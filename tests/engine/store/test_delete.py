"""Deleting a capture removes all of its files, no others, and nothing outside the store."""

import errno
from pathlib import Path

import pytest

import engine
from engine.errors import StoreError
from engine.records.captures import ContrastData
from engine.records.files import VECTOR_FORMATS
from engine.store.catalog import list_captures
from engine.store.delete import delete_capture, delete_directions, kept_directions
from engine.store.directions_catalog import list_directions
from engine.store.names import locate


def test_a_capture_is_deleted_with_its_directions_and_others_stay(contrast_data: ContrastData, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        engine.save_activations(contrast_data, name, store=tmp_path)
    engine.save_directions(engine.extract_directions(contrast_data), "mine", store=tmp_path)
    assert delete_capture("mine", store=tmp_path) == ["mine.json", "mine.pt", "mine.directions.safetensors"]
    assert [entry.name for entry in list_captures(tmp_path)] == ["other"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "other.pt"]


def test_parts_of_an_interrupted_causal_ranking_are_deleted(
    contrast_data: ContrastData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        paths = engine.save_activations(contrast_data, name, store=tmp_path / "store")
        paths.causal_parts.parent.mkdir(parents=True, exist_ok=True)
        paths.causal_parts.write_text("{}")
    parts = tmp_path / "cache" / "layerscope" / "causal"
    assert len(list(parts.iterdir())) == 2
    delete_capture("store/../store/mine.pt")
    assert list(parts.iterdir()) == [locate("other", "store").causal_parts]
    engine.rename_capture("other", "third", store="store")
    assert list(parts.iterdir()) == [locate("third", "store").causal_parts]


def test_a_failed_deletion_keeps_the_parts_of_a_causal_ranking(
    contrast_data: ContrastData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = engine.save_activations(contrast_data, "mine", store=tmp_path / "store")
    paths.causal_parts.parent.mkdir(parents=True)
    paths.causal_parts.write_text("{}")
    paths.record.unlink()
    (paths.record / "mine").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"mine\.json cannot be deleted"):
        delete_capture("mine", store=tmp_path / "store")
    assert paths.tensors.exists()
    assert paths.causal_parts.exists()


def test_directions_under_another_name_are_kept_and_named(contrast_data: ContrastData, tmp_path: Path) -> None:
    directions = engine.extract_directions(contrast_data)
    for name in ("mine", "other"):
        engine.save_activations(contrast_data, name, store=tmp_path)
        engine.save_directions(directions, name, store=tmp_path)
    engine.save_directions(directions, "probe", store=tmp_path, capture="mine")
    (tmp_path / "broken.directions.safetensors").write_bytes(b"x")
    assert kept_directions("mine", store=tmp_path) == ["probe.directions.safetensors"]
    assert kept_directions(tmp_path / "mine.pt") == ["probe.directions.safetensors"]
    assert kept_directions("other", store=tmp_path) == kept_directions(r"a\x1b", store=tmp_path) == []
    delete_capture("mine", store=tmp_path)
    assert list_directions(tmp_path) == ["broken", "other", "probe"]
    assert delete_capture("probe", store=tmp_path) == ["probe.directions.safetensors"]


def test_control_vectors_are_deleted_with_the_directions(contrast_data: ContrastData, tmp_path: Path) -> None:
    directions = engine.extract_directions(contrast_data)
    for name in ("mine", "other"):
        engine.save_activations(contrast_data, name, store=tmp_path)
        engine.save_directions(directions, name, store=tmp_path)
        for file_format in VECTOR_FORMATS:
            engine.export_directions(directions, locate(name, tmp_path).vectors(file_format), file_format)
    vectors = [f"mine.vectors.{file_format}" for file_format in VECTOR_FORMATS]
    assert delete_directions("mine", store=tmp_path) == ["mine.directions.safetensors", *vectors]
    assert delete_capture("mine", store=tmp_path) == ["mine.json", "mine.pt"]
    assert {"other.vectors.gguf", "other.pt"} < set(delete_capture("other", store=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_save_can_be_deleted(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path).record.unlink()
    assert delete_capture(tmp_path / "mine") == ["mine.pt"]


def test_a_missing_capture_is_named(tmp_path: Path) -> None:
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


def test_directions_can_be_deleted_without_their_capture(contrast_data: ContrastData, tmp_path: Path) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    for name in ("mine", "second"):
        engine.save_directions(engine.extract_directions(contrast_data), name, store=tmp_path)
    (tmp_path / ".hidden.directions.safetensors").write_bytes(b"")
    (tmp_path / "link.directions.safetensors").symlink_to("nowhere.directions.safetensors")
    assert list_directions(tmp_path) == ["link", "mine", "second"]
    for name in ("mine", "link", "second.directions.safetensors"):
        assert delete_directions(name, store=tmp_path) == [f"{name.split('.')[0]}.directions.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".safetensors") == ["mine.json", "mine.pt"]
    assert list_directions(tmp_path) == []


def test_directions_that_are_not_there_or_cannot_be_deleted_say_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there are no directions called 'mine'; there are none yet"):
        delete_directions("mine", store=tmp_path / "missing")
    with pytest.raises(StoreError, match="cannot be read"):
        list_directions(tmp_path / "missing")
    (tmp_path / "mine.directions.safetensors").mkdir()
    with pytest.raises(StoreError, match="did you mean 'mine'"):
        delete_directions("min", store=tmp_path)
    with pytest.raises(StoreError, match="cannot be deleted"):
        delete_directions("mine", store=tmp_path)


def test_a_deletion_that_is_denied_names_the_folder(
    contrast_data: ContrastData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    engine.save_directions(engine.extract_directions(contrast_data), "mine", store=tmp_path)

    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", denied)
    for delete in (delete_capture, delete_directions):
        with pytest.raises(StoreError) as caught:
            delete("mine", store=tmp_path)
        said = caught.value.said("command_line")
        assert f"Expected: a writable folder {tmp_path}. Next: change the permissions of that folder" in said


def test_a_deletion_in_a_folder_where_each_may_delete_only_their_own_files_names_the_owner(
    contrast_data: ContrastData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder can be written already: its sticky bit keeps the files of others."""
    engine.save_activations(contrast_data, "mine", store=tmp_path)

    def denied(path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(StoreError, match="Next: ask the owner of the file to delete it") as caught:
        delete_capture("mine", store=tmp_path)
    assert "chmod" not in caught.value.said("command_line")
