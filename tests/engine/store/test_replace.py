"""A capture stays whole until the one that replaces it is; a kill at any moment leaves one of them."""

import datetime
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.concepts import chat, pairs
from engine.errors import StoreError
from engine.records.captures import ContrastData
from engine.store import catalog, delete, manage, plan, resume, shards
from engine.store.catalog import show_capture
from engine.store.delete import capture_files
from engine.store.locks import folder_lock, try_lock
from engine.store.names import CapturePaths, locate
from engine.store.plan import hold_plan, read_plan
from engine.store.read import load_contrast
from engine.store.replace import read_whole
from engine.store.tensor_files import read_tensors
from engine.store.unfinished import UnfinishedFile, clean_store
from tests.engine.cli.conftest import concept_text
from tests.engine.store.test_template_time import TEMPLATE

TEXTS = [f"w5 w{10 + i}" for i in range(20)]


class StopError(Exception):
    """Stops a capture between two shards."""


def stop(done: int, _total: int) -> None:
    if done > 10:
        raise StopError


@pytest.fixture
def capture(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: Any
) -> Any:
    """Captures a file of prompts into four shards."""
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 5)
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS))

    def run(**how: Any) -> None:
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, path, "mine", store=tmp_path / "store", **how)

    return run


@pytest.fixture
def pending(capture: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Captures a complete replacement, as if killed before it was put in place."""

    def run(**how: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(resume, "put_in_place", lambda _: None)
            capture(force=True, **how)

    return run


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    """The messages of the engine's log since the last call, of one level or more."""
    caplog.set_level(logging.INFO, logger="engine")

    def read(level: int = logging.WARNING) -> list[str]:
        found = [one.getMessage() for one in caplog.records if one.levelno >= level]
        caplog.clear()
        return found

    return read


def shard_times(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((store / "mine").glob("*.safetensors"))}


def test_force_resumes_an_unfinished_capture_with_the_same_settings(capture: Any, said: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(StopError):
        capture(force=True, progress=stop)
    saved = shard_times(store)
    assert 0 < len(saved) < 4
    said()
    capture(force=True)
    assert shard_times(store).items() > saved.items()
    lines = said(logging.INFO)
    assert "an unfinished capture of mine has the same settings: resuming it instead of starting over" in lines
    assert f"resuming: {len(saved)} of 4 shards are saved" in lines
    assert [text for shard in engine.open_shards("mine", store=store) for text in shard.prompts] == TEXTS


def test_force_replaces_an_unfinished_capture_with_other_settings(capture: Any, said: Any, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        capture(progress=stop)
    saved = len(shard_times(tmp_path / "store"))
    capture(force=True, layers=[1])
    assert said() == [f"replacing mine: deleted its {saved} saved shards"]
    assert engine.open_shards("mine", store=tmp_path / "store")[0].layers == [1]


@pytest.mark.parametrize("damage", ["shard", "plan"])
def test_force_replaces_an_unfinished_capture_that_is_damaged(capture: Any, tmp_path: Path, damage: str) -> None:
    store = tmp_path / "store"
    with pytest.raises(StopError):
        capture(progress=stop)
    folder = store / "mine"
    if damage == "plan":
        (folder / "plan.json").write_text('{"shard_prompts": 5}')
    else:
        first = folder / "000000000000.safetensors"
        first.write_bytes(first.read_bytes()[:-1] + b"\1")
    capture(force=True)
    assert engine.verify_capture("mine", store=store).status == "ok"


def test_a_forced_resumption_gets_the_template_time_of_its_start(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 8)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TEMPLATE)
    concept = tmp_path / "loudness.toml"
    concept.write_text(concept_text("loudness"))
    start = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    now = [start]
    for module in (pairs, chat):
        monkeypatch.setattr(module, "time_now", lambda: now[0].isoformat())

    def run(**how: Any) -> str:
        paths = engine.capture_contrast_in_shards(
            tiny_llama, tiny_tokenizer, concept, tmp_path / "mine", force=True, **how
        )
        provenance = show_capture(paths.record)["provenance"]
        assert provenance is not None
        return provenance["template_time"]

    with pytest.raises(StopError):
        run(progress=stop)
    now[0] = start + datetime.timedelta(seconds=7)
    assert run() == start.isoformat()
    (tmp_path / "mine.json").unlink()
    assert run(layers=[1]) == now[0].isoformat()
    assert read_plan(tmp_path / "mine" / "plan.json")["layers"] == [1]


def test_a_finished_capture_is_kept_until_its_replacement_is_complete(capture: Any, said: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    capture()
    before = [shard.states(1) for shard in engine.open_shards("mine", store=store)]
    with pytest.raises(StopError):
        capture(force=True, layers=[1, 2], progress=stop)
    assert engine.verify_capture("mine", store=store).status == "ok"
    opened = engine.open_shards("mine", store=store)
    assert opened[0].layers == [0, 1, 2, 3]
    assert all(torch.equal(shard.states(1), states) for shard, states in zip(opened, before, strict=True))
    assert "mine stays until its replacement is complete; until then the disk holds both" in said(logging.INFO)
    capture(force=True, layers=[1, 2])
    assert "resuming: 2 of 4 shards are saved" in said(logging.INFO)
    assert [shard.layers for shard in engine.open_shards("mine", store=store)] == [[1, 2]] * 4
    assert engine.verify_capture("mine", store=store).status == "ok"
    assert sorted(path.name for path in store.iterdir()) == ["mine", "mine.json"]


def test_a_replacement_is_resumed_without_force_and_only_with_the_same_settings(capture: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    capture()
    with pytest.raises(StopError):
        capture(force=True, layers=[1], progress=stop)
    with pytest.raises(
        StoreError, match=r"unfinished replacement of 'mine' was started with different settings: layers"
    ):
        capture()
    assert engine.open_shards("mine", store=store)[0].layers == [0, 1, 2, 3]
    capture(layers=[1])
    assert engine.open_shards("mine", store=store)[0].layers == [1]
    with pytest.raises(StoreError, match="already a capture called mine"):
        capture(layers=[1])


def test_a_replacement_with_other_settings_starts_over(capture: Any, said: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    capture()
    with pytest.raises(StopError):
        capture(force=True, layers=[1], progress=stop)
    assert said() == []
    capture(force=True, layers=[2])
    assert said() == ["replacing mine: deleted its 2 saved shards"]
    assert engine.open_shards("mine", store=store)[0].layers == [2]


def test_shards_that_were_opened_before_are_not_mixed_with_new_ones(capture: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    capture()
    shards, data = engine.open_shards("mine", store=store), engine.load_activations("mine", store=store)
    assert "activations" in data
    assert shards[0].prompts == TEXTS[:5]
    capture(force=True, store_dtype="bfloat16")
    for read in (
        lambda: shards[0].prompts,
        lambda: shards[1].states(1),
        lambda: shards[0].responses,
        lambda: data["activations"][1],
    ):
        with pytest.raises(StoreError, match="'mine' has been replaced or deleted since it was opened"):
            read()
    assert engine.open_shards("mine", store=store)[0].states(1).dtype == torch.bfloat16


def test_a_shard_that_vanishes_while_it_is_read_has_been_replaced_or_deleted(
    capture: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    capture()
    shard = engine.open_shards("mine", store=store)[0]
    gone = threading.Event()

    def delete_capture() -> None:
        with folder_lock(store):
            shard.path.unlink()
            gone.set()
            time.sleep(0.2)  # a reader that does not wait finds the plan
            (store / "mine" / "plan.json").unlink()

    def read_late(*given: Any, **how: Any) -> Any:
        deletion.start()
        gone.wait()
        return read_tensors(*given, **how)

    deletion = threading.Thread(target=delete_capture)
    monkeypatch.setattr("engine.store.shards.read_tensors", read_late)
    with pytest.raises(StoreError, match="'mine' has been replaced or deleted since it was opened"):
        shard.states(1)
    deletion.join()


def test_files_that_are_not_shards_are_kept(capture: Any, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "mine"
    capture()
    (folder / "notes.txt").write_text("mine")
    capture(force=True, layers=[1])
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(shard_times(folder.parent)) == 4


def test_an_unfinished_replacement_goes_with_its_capture_or_alone(
    capture: Any, contrast_data: ContrastData, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    capture()
    engine.save_activations(contrast_data, "other", store=store)
    for clean in (True, False):
        with pytest.raises(StopError):
            capture(force=True, layers=[1], progress=stop)
        if clean:
            with hold_plan(locate("mine", store).replacement):
                assert clean_store(store) == []
            assert clean_store(store) == [store / ".replacements" / "mine"]
            assert engine.verify_capture("mine", store=store).status == "ok"
    assert capture_files("mine", store=store) == ["mine.json", "mine/", ".replacements/mine/"]
    engine.delete_capture("mine", store=store)
    assert sorted(path.name for path in store.iterdir()) == ["other.json", "other.pt"]


def test_a_replacement_is_renamed_with_its_capture(
    capture: Any, said: Any, contrast_data: ContrastData, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    capture()
    with pytest.raises(StopError):
        capture(force=True, layers=[1], progress=stop)
    (store / ".replacements" / "old").mkdir()  # left by a capture that was killed before it wrote its plan
    engine.rename_capture("mine", "old", store=store)
    engine.save_activations(contrast_data, "mine", store=store)
    with pytest.raises(StoreError, match="already"):
        engine.rename_capture("mine", "old", store=store)
    engine.rename_capture("mine", "other", store=store)
    assert engine.open_shards("old", store=store)[0].layers == [0, 1, 2, 3]
    engine.rename_capture("old", "mine", store=store)
    said()
    capture(layers=[1])
    assert "resuming: 2 of 4 shards are saved" in said(logging.INFO)
    assert engine.open_shards("mine", store=store)[0].layers == [1]
    assert sorted(path.name for path in store.iterdir()) == ["mine", "mine.json", "other.json", "other.pt"]


def test_the_capture_that_is_renamed_is_the_complete_replacement(
    capture: Any, pending: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    capture()
    pending(layers=[1])
    monkeypatch.setattr(manage, "finish_replacement", lambda _: None)  # as if it was complete a moment later
    engine.rename_capture("mine", "old", store=store)
    assert engine.open_shards("old", store=store)[0].layers == [1]
    assert sorted(path.name for path in store.iterdir()) == ["old", "old.json"]


def test_nothing_is_deleted_if_another_process_replaces(
    capture: Any, said: Any, contrast_data: ContrastData, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    capture()
    with pytest.raises(StopError):
        capture(force=True, progress=stop)
    said()
    before = files(store)
    with hold_plan(locate("mine", store).replacement):
        for attempt in (
            lambda: capture(force=True),
            lambda: capture(),
            lambda: engine.save_activations(contrast_data, "mine", store=store, force=True),
            lambda: engine.delete_capture("mine", store=store),
            lambda: engine.rename_capture("mine", "old", store=store),
        ):
            with pytest.raises(StoreError, match="another process is capturing 'mine' now"):
                attempt()
    with hold_plan(locate("mine", store)), pytest.raises(StoreError, match="another process is capturing 'mine' now"):
        engine.save_activations(contrast_data, "mine", store=store, force=True)
    assert said() == []
    assert files(store) == before


def test_a_capture_waits_for_a_rename_in_progress(
    capture: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, held, waited = tmp_path / "store", threading.Event(), threading.Event()
    capture()
    with pytest.raises(StopError):
        capture(force=True, layers=[1], progress=stop)

    def rename() -> None:
        with folder_lock(store), hold_plan(locate("mine", store).replacement):
            held.set()
            waited.wait()

    @contextmanager
    def watched_lock(folder: Path) -> Iterator[None]:
        waited.set()
        with folder_lock(folder):
            yield

    renaming = threading.Thread(target=rename)
    renaming.start()
    held.wait()
    monkeypatch.setattr(resume, "folder_lock", watched_lock)
    try:
        capture(layers=[1])
    finally:
        waited.set()
        renaming.join()
    assert engine.open_shards("mine", store=store)[0].layers == [1]


def test_directions_that_go_with_their_capture_are_named(
    capture: Any, said: Any, contrast_data: ContrastData, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    directions = engine.extract_directions(contrast_data)
    engine.save_activations(contrast_data, "mine", store=store)
    engine.save_activations(contrast_data, "mine", store=store, force=True)
    assert said() == []
    engine.save_directions(directions, "mine", store=store)
    engine.save_activations(contrast_data, "mine", store=store, force=True)
    assert said() == ["replacing mine: deleted its saved directions"]
    engine.save_directions(directions, "mine", store=store)
    with pytest.raises(StopError):
        capture(force=True, progress=stop)
    assert said() == []
    assert engine.load_directions("mine", store=store)[0].keys() == directions.keys()
    capture(force=True)
    assert said() == ["replacing mine: deleted its saved directions"]
    assert sorted(path.name for path in store.iterdir()) == ["mine", "mine.json"]
    engine.save_activations(contrast_data, "mine", store=store, force=True)
    assert said() == []
    (store / "mine.json").write_text("{}")
    capture(force=True)
    assert engine.verify_capture("mine", store=store).status == "ok"


def test_a_reader_waits_for_a_save_in_progress(
    contrast_data: ContrastData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(engine.load_activations("mine", store=tmp_path)))
    replace = UnfinishedFile.replace

    def before_the_record(file: UnfinishedFile) -> None:
        if file.final.suffix == ".json":
            reader.start()
            reader.join(0.5)  # one that does not wait ends now
        replace(file)

    monkeypatch.setattr(UnfinishedFile, "replace", before_the_record)
    engine.save_activations(contrast_data, "mine", store=tmp_path, force=True)
    reader.join()
    assert found[0]["provenance"] == contrast_data["provenance"]


def test_a_list_shows_the_old_capture_or_the_new_one(
    capture: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    capture()

    def replaced(paths: CapturePaths, size: int | None) -> str:
        monkeypatch.undo()
        monkeypatch.setattr(resume, "_SHARD_PROMPTS", 5)
        capture(force=True, layers=[1])  # between the two looks at the capture
        return catalog.missing_part(paths, size)

    monkeypatch.setattr(catalog, "missing_part", replaced)
    found = [(entry.problem, entry.record and entry.record["captured_layers"]) for entry in engine.list_captures(store)]
    assert found == [("", [1])]


def test_shards_that_move_while_they_are_opened_are_not_called_one_file(
    capture: Any, pending: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    capture()

    def moving(*given: Any, **how: Any) -> Any:
        monkeypatch.setattr(shards, "show_capture", show_capture)
        record = show_capture(*given, **how)
        pending(layers=[1])
        shutil.rmtree(store / "mine")  # as another process does that puts the new shards in place
        return record

    monkeypatch.setattr(shards, "show_capture", moving)
    assert engine.open_shards("mine", store=store)[0].layers == [1]


def test_a_complete_replacement_that_cannot_take_its_place_is_said(
    capture: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    capture()

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"'mine' cannot be replaced.*complete.*Permission denied"):
                capture(force=True, layers=[1])
        assert [entry.problem != "" for entry in engine.list_captures(store)] == [True]
    assert engine.open_shards("mine", store=store)[0].layers == [1]


@pytest.mark.parametrize("refused", ["store", "plan"])
def test_a_user_who_may_not_change_the_store_reads_the_old_capture(
    pending: Any,
    said: Any,
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    refused: str,
) -> None:
    store = tmp_path / "store"
    (tmp_path / "pairs.csv").write_text("positive,negative\nw5 w9,w15 w9\nw6 w9,w16 w9\n")
    engine.capture_contrast_in_shards(tiny_llama, tiny_tokenizer, tmp_path / "pairs.csv", "mine", store=store)
    engine.save_directions(engine.extract_directions(load_contrast("mine", store=store)), "mine", store=store)
    pending(layers=[1])
    before = files(store)
    said()

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        if refused == "store":
            patch.setattr("os.access", lambda *_: False)
            patch.setattr(Path, "unlink", denied)
        else:
            patch.setattr(plan, "open_locked", denied)
        assert [entry.problem for entry in engine.list_captures(store)] == [""]
        assert show_capture("mine", store=store)["captured_layers"] == [0, 1, 2, 3]
        assert "positive" in engine.load_activations("mine", store=store)
        assert engine.verify_capture("mine", store=store).status == "ok"
        assert said() == []
    assert files(store) == before
    assert engine.open_shards("mine", store=store)[0].layers == [1]
    assert said() == ["replacing mine: deleted its saved directions"]


def test_a_replacement_that_another_process_puts_in_place_at_once_is_saved(
    capture: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, replace = tmp_path / "store", UnfinishedFile.replace
    capture()

    def listed(file: UnfinishedFile) -> None:
        replace(file)
        if file.final == locate("mine", store).replacement.record:
            engine.list_captures(store)

    monkeypatch.setattr(UnfinishedFile, "replace", listed)
    capture(force=True, layers=[1])
    assert engine.open_shards("mine", store=store)[0].layers == [1]


@pytest.mark.parametrize("shards", [True, False])
def test_a_complete_replacement_is_deleted_with_its_capture(
    capture: Any, pending: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: bool
) -> None:
    store = tmp_path / "store"
    capture()
    pending(layers=[1])
    if not shards:  # as if killed just before the record was put in place
        shutil.rmtree(store / "mine")
        (store / ".replacements" / "mine").rename(store / "mine")
    with monkeypatch.context() as patch:
        patch.setattr(delete, "finish_replacement", lambda _: None)
        deleted = engine.delete_capture("mine", store=store)
    assert deleted[:2] == [".replacements/mine.json", "mine.json"]
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("killed_before", [".pt", ".json"])
def test_a_killed_save_over_shards_leaves_the_old_states_or_the_new_ones(
    capture: Any, contrast_data: ContrastData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, killed_before: str
) -> None:
    store, replace = tmp_path / "store", UnfinishedFile.replace
    capture()
    before = shard_times(store)

    def killed(file: UnfinishedFile) -> None:
        if file.final.suffix == killed_before:
            raise StopError
        replace(file)

    monkeypatch.setattr(UnfinishedFile, "replace", killed)
    with pytest.raises(StopError):
        engine.save_activations(contrast_data, "mine", store=store, force=True)
    if killed_before == ".pt":
        assert shard_times(store) == before
    else:
        assert "positive" in engine.load_activations("mine", store=store)
        assert not (store / "mine").exists()


def test_a_reader_waits_while_another_process_moves_the_new_shards(
    capture: Any, pending: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths, access = locate("mine", tmp_path / "store"), os.access
    capture()

    def moved(folder: Path, mode: int) -> bool:
        handle = os.open(paths.store, os.O_RDONLY)
        if try_lock(handle) and folder == paths.replacement.shards:
            folder.rename(tmp_path / "moved")
        os.close(handle)
        return access(folder, mode)

    def read() -> list[int]:
        if show_capture(paths.record)["captured_layers"] != [1]:
            pending(layers=[1])
            monkeypatch.setattr(os, "access", moved)
            raise StoreError("the shards are gone")
        return show_capture(paths.record)["captured_layers"]

    assert read_whole(paths, read) == [1]


def test_a_replacement_that_is_dropped_leaves_no_folder(
    capture: Any, contrast_data: ContrastData, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    capture()
    with pytest.raises(StopError):
        capture(force=True, layers=[1], progress=stop)
    engine.save_activations(contrast_data, "mine", store=store, force=True)
    assert sorted(path.name for path in store.iterdir()) == ["mine.json", "mine.pt"]


def files(store: Path) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_folder_of_replacements_that_leads_out_of_the_store_is_not_followed(capture: Any, tmp_path: Path) -> None:
    store, outside = tmp_path / "store", tmp_path / "outside"
    with pytest.raises(StopError):
        capture(progress=stop)
    outside.mkdir()
    (store / "mine").rename(outside / "mine")
    before = files(outside)
    (store / ".replacements").symlink_to(outside)
    for attempt in (lambda: capture(), lambda: capture(force=True), lambda: engine.load_activations(store / "mine")):
        with pytest.raises(StoreError, match="is a symbolic link out of the store"):
            attempt()
    assert clean_store(store) == []
    (store / "mine.pt").touch()
    assert capture_files("mine", store=store) == ["mine.pt"]
    engine.delete_capture("mine", store=store)
    assert files(outside) == before
