"""Renaming moves the record, tensors or shards, and directions; a kill leaves one complete capture."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import StoreError
from engine.records.captures import ActivationData, ContrastData
from engine.store.delete import delete_directions, kept_directions
from engine.store.directions_header import path_of, read_header
from engine.store.locks import folder_lock
from engine.store.names import locate
from engine.store.plan import hold_plan
from engine.store.verify import Verification


@pytest.fixture
def both(contrast_data: ContrastData, tmp_path: Path) -> Path:
    """A store with a capture and its directions."""
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    engine.save_directions(engine.extract_directions(contrast_data), "mine", store=tmp_path, leading=2)
    return tmp_path


@pytest.fixture
def sharded(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A store with a capture in shards."""
    path = tmp_path / "prompts.txt"
    path.write_text("w5 w6\nw7 w8")
    engine.capture_prompt_file(tiny_llama, tiny_tokenizer, path, "mine", store=tmp_path / "store")
    return tmp_path / "store"


def test_a_rename_that_is_denied_leaves_nothing_under_the_new_name(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of several users, each may only rename files of their own."""
    before = {path: path.read_bytes() for path in both.iterdir()}
    link, replace = os.link, Path.replace

    def refuse_link(source: Path, final: Path) -> None:
        if source.suffix == ".pt":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(source))
        link(source, final)

    def refuse_replace(source: Path, final: Path) -> Path:
        if source.suffix == ".pt":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(source))
        return replace(source, final)

    monkeypatch.setattr("os.link", refuse_link)
    monkeypatch.setattr(Path, "replace", refuse_replace)
    with pytest.raises(StoreError, match=r"'mine' cannot be renamed: .*ask the owner of its files"):
        engine.rename_capture("mine", "final", store=both)
    assert {path: path.read_bytes() for path in both.iterdir()} == before


def test_all_files_get_the_new_name(both: Path, contrast_data: ContrastData) -> None:
    for name in ("mine.vectors.gguf", "mine.vectors.npz"):
        engine.export_directions(engine.load_directions("mine", store=both)[0], both / name)
    before = sorted(path.name for path in both.iterdir())
    assert engine.rename_capture("mine", "final", store=both).name == "final"
    assert sorted(path.name for path in both.iterdir()) == [name.replace("mine", "final") for name in before]
    record = json.loads((both / "final.json").read_text())
    assert (record["name"], record["data"]["name"]) == ("final", "final.pt")
    loaded = engine.load_activations("final", store=both)
    assert "positive" in loaded
    first = contrast_data["positive"][0]["activations"][1]
    assert torch.equal(loaded["positive"][0]["activations"][1], first)
    assert read_header(path_of(locate("final", both)))["capture"] == "final"
    assert engine.load_directions("final", store=both)[1] == 2
    assert engine.verify_capture("final", store=both).status == "ok"


def test_shards_move_with_their_folder(sharded: Path) -> None:
    engine.rename_capture(sharded / "mine.json", "final")
    assert sorted(path.name for path in sharded.iterdir()) == ["final", "final.json"]
    assert json.loads((sharded / "final.json").read_text())["data"]["name"] == "final/"
    assert engine.open_shards("final", store=sharded)[0].prompts == ["w5 w6", "w7 w8"]
    assert engine.verify_capture("final", store=sharded).status == "ok"
    (sharded / "final.json").unlink()
    engine.rename_capture("final", "begun", store=sharded)
    assert engine.verify_capture("begun", store=sharded).status == "unfinished"


def test_directions_under_another_name_follow_their_capture(both: Path) -> None:
    directions, leading = engine.load_directions("mine", store=both)
    engine.save_directions(directions, "probe", store=both, leading=leading, capture="mine")
    engine.rename_capture("mine", "final", store=both)
    engine.rename_capture("probe", "lens", store=both)
    assert kept_directions("final", store=both) == ["lens.directions.safetensors"]
    found, found_leading = engine.load_directions("lens", store=both)
    assert found_leading == leading
    assert all(torch.equal(found[layer]["vector"], directions[layer]["vector"]) for layer in directions)
    assert engine.verify_capture("lens", store=both).status == "ok"
    damaged = both / "lens.directions.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    before = damaged.read_bytes()
    assert engine.rename_capture("final", "again", store=both).name == "again"
    assert damaged.read_bytes() == before


def test_directions_alone_are_renamed(both: Path) -> None:
    for suffix in (".pt", ".json"):
        (both / f"mine{suffix}").unlink()
    engine.rename_capture("mine", "final", store=both)
    assert [path.name for path in both.iterdir()] == ["final.directions.safetensors"]


def test_a_taken_or_invalid_name_changes_nothing(both: Path, prompt_data: ActivationData) -> None:
    engine.save_activations(prompt_data, "other", store=both)
    (both / "folder").mkdir()
    before = {path: path.read_bytes() for path in both.iterdir() if path.is_file()}
    for name, new, said in (
        ("mine", "other", "already a capture called other"),
        ("mine", "mine", "already a capture called mine"),
        ("other", "folder", "folder already exists"),
        ("mine", "../out", "is not a valid capture name"),
        ("nothing", "new", "there is no capture called 'nothing'"),
    ):
        with pytest.raises(StoreError, match=said):
            engine.rename_capture(name, new, store=both)
    assert {path: path.read_bytes() for path in both.iterdir() if path.is_file()} == before


RENAME_AND_DIE = """
import os, signal, sys
from pathlib import Path
import engine.store.manage as manage
import engine.store.write

store, moment = sys.argv[1:]

def kill_after(function):
    def called(*args, **kwargs):
        function(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return called

if moment == "directions":
    manage.write_directions = kill_after(manage.write_directions)
elif moment == "record":
    engine.store.write.write_atomically = kill_after(engine.store.write.write_atomically)
elif moment == "link":
    manage.claim = kill_after(manage.claim)
else:
    Path.rename = kill_after(Path.rename)
manage.rename_capture("mine", "final", store=store)
"""


def killed(store: Path, moment: str) -> dict[str, Verification]:
    child = subprocess.run([sys.executable, "-c", RENAME_AND_DIE, str(store), moment], check=False)
    assert child.returncode == -signal.SIGKILL
    return {found.name: found for found in engine.verify_store(store)}


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "whole", "stray"), [("record", "mine", "final"), ("link", "final", "mine")])
def test_a_killed_rename_leaves_the_capture_whole_under_one_name(
    contrast_data: ContrastData, tmp_path: Path, moment: str, whole: str, stray: str
) -> None:
    engine.save_activations(contrast_data, "mine", store=tmp_path)
    found = killed(tmp_path, moment)
    assert found[whole].status == "ok"
    assert found[stray].status == "damaged"
    assert f"an interrupted rename left this record of the capture '{whole}'" in found[stray].problem
    engine.delete_capture(stray, store=tmp_path)
    assert [(entry.name, entry.status) for entry in engine.verify_store(tmp_path)] == [(whole, "ok")]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "whole", "stray"), [("record", "mine", "final"), ("rename", "final", "mine")])
def test_a_killed_rename_of_shards_does_too(sharded: Path, moment: str, whole: str, stray: str) -> None:
    found = killed(sharded, moment)
    assert (found[whole].status, found[stray].status) == ("ok", "damaged")
    assert f"an interrupted rename left this record of the capture '{whole}'" in found[stray].problem


@pytest.mark.slow
def test_a_rename_killed_after_the_directions_leaves_the_old_capture(both: Path) -> None:
    found = killed(both, "directions")
    assert {name: one.status for name, one in found.items()} == {"mine": "ok", "final": "ok"}
    assert engine.load_directions("mine", store=both)[1] == 2
    assert not (both / "final.pt").exists()


def test_what_a_killed_rename_left_is_explained(both: Path) -> None:
    """The same as a kill after the tensors have moved, without a process of its own."""
    record = (both / "mine.json").read_bytes()
    engine.rename_capture("mine", "final", store=both)
    (both / "mine.json").write_bytes(record)
    found = {one.name: one for one in engine.verify_store(both)}
    assert found["final"].status == "ok"
    assert "an interrupted rename left this record of the capture 'final', which is complete" in found["mine"].problem


@pytest.mark.parametrize("kind", ["both", "sharded"])
def test_of_two_renames_at_once_one_wins_and_the_other_is_told(kind: str, request: pytest.FixtureRequest) -> None:
    store: Path = request.getfixturevalue(kind)
    name = "mine"
    for number in range(10):
        news = [f"{side}{number}" for side in "ab"]
        start = threading.Barrier(2)

        def rename(new: str, old: str = name, start: threading.Barrier = start) -> str:
            start.wait()
            try:
                return engine.rename_capture(old, new, store=store).name
            except StoreError as error:
                return str(error)

        with ThreadPoolExecutor(2) as pool:
            said = list(pool.map(rename, news))
        won = [one for one in said if one in news]
        assert len(won) == 1, said
        assert any(f"there is no capture called '{name}'" in one for one in said)
        name = won[0]
        assert [(one.name, one.status) for one in engine.verify_store(store)] == [(name, "ok")]


def first_another(monkeypatch: pytest.MonkeyPatch, module: str, does: Callable[[], object]) -> None:
    """Let another process do something just before a lock of the store is taken."""

    @contextmanager
    def late(folder: Path) -> Iterator[None]:
        monkeypatch.undo()
        does()
        with folder_lock(folder):
            yield

    monkeypatch.setattr(f"{module}.folder_lock", late)


@pytest.mark.parametrize("kind", ["both", "sharded"])
@pytest.mark.parametrize("loser", ["rename", "delete"])
def test_a_rename_and_a_deletion_at_once_leave_no_half_capture(
    kind: str, loser: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Path = request.getfixturevalue(kind)
    rename = partial(engine.rename_capture, "mine", "final", store=store)
    delete = partial(engine.delete_capture, "mine", store=store)
    if loser == "rename":
        first_another(monkeypatch, "engine.store.manage", delete)
        with pytest.raises(StoreError, match="there is no capture called 'mine'"):
            rename()
        assert list(store.iterdir()) == []
        return
    first_another(monkeypatch, "engine.store.delete", rename)
    with pytest.raises(StoreError, match="there is no capture called 'mine'"):
        delete()
    assert [(one.name, one.status) for one in engine.verify_store(store)] == [("final", "ok")]


def test_directions_renamed_meanwhile_are_not_deleted(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_another(monkeypatch, "engine.store.delete", partial(engine.rename_capture, "mine", "final", store=both))
    with pytest.raises(StoreError, match="there are no directions called 'mine'"):
        delete_directions("mine", store=both)
    assert (both / "final.directions.safetensors").exists()


def test_a_capture_that_starts_meanwhile_is_not_deleted(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sharded / "mine.json").unlink()
    removed: list[Path] = []

    def remove(path: Path) -> None:
        with pytest.raises(StoreError, match="another process is capturing 'mine' now"), hold_plan(paths):
            pass
        removed.append(path)
        path.unlink()

    paths = locate("mine", sharded)
    monkeypatch.setattr("engine.store.plan.remove_entry", remove)
    engine.delete_capture("mine", store=sharded)
    assert len(removed) > 1
    assert list(sharded.iterdir()) == []


def test_what_a_rename_advises_can_be_done(both: Path, prompt_data: ActivationData, monkeypatch: Any) -> None:
    engine.save_activations(prompt_data, "other", store=both)

    def advice() -> str:
        with pytest.raises(StoreError) as caught:
            engine.rename_capture("mine", "final", store=both)
        said = caught.value.said("command_line")
        assert not {"--output", "--force", "--positions"} & set(said.replace(",", " ").split())
        return said

    with pytest.raises(StoreError) as taken:
        engine.rename_capture("mine", "other", store=both)
    assert taken.value.said("command_line").endswith("Next: choose another name, or delete that capture first.")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        said = "Next: change the permissions of that folder (chmod u+w), and run the same command again."
        assert advice().endswith(f"is not a writable folder. {said}")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert advice().endswith("No space left on device. Expected: enough disk space. Next: free some disk space.")
    assert engine.verify_capture("mine", store=both).status == "ok"


def test_a_rename_or_deletion_during_a_capture_says_to_wait(sharded: Path) -> None:
    for change in (partial(engine.rename_capture, "mine", "final"), partial(engine.delete_capture, "mine")):
        with hold_plan(locate("mine", sharded)), pytest.raises(StoreError) as caught:
            change(store=sharded)
        assert caught.value.said("command_line").endswith("Next: wait until it ends.")
