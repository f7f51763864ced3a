"""Two processes that save under one name: one succeeds, the other is told, and nothing is mixed up."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import StoreError
from engine.records.captures import ActivationData, ContrastData
from engine.store import locks, resume
from engine.store.locks import folder_lock
from engine.store.names import locate
from engine.store.plan import hold_plan
from engine.store.unfinished import TakenError, claim, unfinished
from engine.store.write import write_atomically

# Saves what it is told under a new name in each round, at the same moment as the other process.
RACE = """
import sys, time
from pathlib import Path
import engine

store, me, other, rounds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
data = engine.load_activations("first", store=store)
data["concept"] = me
directions = engine.extract_directions(data)
for direction in directions.values():
    direction["concept"] = me
for number in range(rounds):
    (store / f"{me}-{number}").touch()
    while not (store / f"{other}-{number}").exists():
        time.sleep(0.0001)
    for save, what, name in ((engine.save_activations, data, "round"), (engine.save_directions, directions, "way")):
        try:
            save(what, f"{name}{number}", store=store)
            print(save.__name__, number, "saved")
        except engine.LayerscopeError as error:
            print(save.__name__, number, error)
"""


# Replaces one capture in each round, at the same moment as the other process, and reads it.
REPLACING = """
import sys, time
from pathlib import Path
import engine

store, me, other, rounds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
data = engine.load_activations("first", store=store)
data["concept"] = me
for prompt in data["positive"]:
    prompt["activations"] = {layer: states * 0 + ord(me) for layer, states in prompt["activations"].items()}
for number in range(rounds):
    (store / f"{me}-{number}").touch()
    while not (store / f"{other}-{number}").exists():
        time.sleep(0.0001)
    try:
        engine.save_activations(data, "mine", store=store, force=True)
        found = engine.load_activations("mine", store=store)
        (value,) = {float(one) for prompt in found["positive"] for one in prompt["activations"][0].unique()}
        print("provenance" in found, chr(int(value)) == found["concept"], found["concept"])
    except engine.LayerscopeError as error:
        print(error)
"""


# The same with files alone, which needs no torch.
FILES = """
import sys, time
from pathlib import Path
from engine.errors import StoreError
from engine.store.unfinished import unfinished

store, me, other, rounds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
for number in range(rounds):
    with unfinished(store / f"round{number}") as file:
        file.out.write(me.encode())
        file.out.flush()
        (store / f"{me}-{number}").touch()
        while not (store / f"{other}-{number}").exists():
            time.sleep(0.0001)
        try:
            file.claim()
            print("saved")
        except StoreError as error:
            print(error)
"""


def race(program: str, store: Path, rounds: int) -> dict[str, list[str]]:
    """Run a program as two processes a and b; return the lines that each printed."""
    racers = {
        me: subprocess.Popen(
            [sys.executable, "-c", program, str(store), me, other, str(rounds)],
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            encoding="utf-8",
        )
        for me, other in (("a", "b"), ("b", "a"))
    }
    return {me: racer.communicate(timeout=600)[0].splitlines() for me, racer in racers.items()}


def test_of_two_processes_that_create_a_file_one_succeeds(tmp_path: Path) -> None:
    said = race(FILES, tmp_path, 40)
    for number in range(40):
        saved = [me for me in said if said[me][number] == "saved"]
        assert len(saved) == 1
        assert (tmp_path / f"round{number}").read_text() == saved[0]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_of_two_processes_that_save_under_one_name_one_succeeds(contrast_data: ContrastData, tmp_path: Path) -> None:
    rounds = 100
    engine.save_activations(contrast_data, "first", store=tmp_path)
    said = race(RACE, tmp_path, rounds)
    for number in range(rounds):
        for line, loaded in ((2 * number, "activations"), (2 * number + 1, "directions")):
            saved = [me for me in said if said[me][line].endswith(" saved")]
            refused = [said[me][line] for me in said if me not in saved]
            assert len(saved) == 1, refused
            assert "already" in refused[0]
            assert "force=True" in refused[0]
            if loaded == "activations":
                found = engine.load_activations(f"round{number}", store=tmp_path)
                assert "positive" in found
                assert found["concept"] == saved[0]
            else:
                directions, _ = engine.load_directions(f"way{number}", store=tmp_path)
                assert directions[0]["concept"] == saved[0]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_two_processes_that_replace_one_capture_leave_and_read_it_whole(
    contrast_data: ContrastData, tmp_path: Path
) -> None:
    engine.save_activations(contrast_data, "first", store=tmp_path)
    said = race(REPLACING, tmp_path, 150)
    assert [len(said[me]) for me in "ab"] == [150, 150]
    assert {line for me in "ab" for line in said[me]} <= {"True True a", "True True b"}
    assert engine.verify_capture("mine", store=tmp_path).status == "ok"
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def shards(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: Any
) -> Any:
    """Captures a file of prompts into four shards."""
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 5)
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"w5 w{10 + i}" for i in range(20)))

    def run(**how: Any) -> None:
        engine.capture_prompt_file(tiny_llama, tiny_tokenizer, path, "mine", store=tmp_path / "store", **how)

    return run


@contextlib.contextmanager
def held_by_a_process(plan: Path) -> Iterator[None]:
    """A process of its own that holds a plan as a capture does."""
    program = "import sys; from engine.store.locks import open_locked; from pathlib import Path\n"
    program += "held = open_locked(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(plan)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.kill()


class StopError(Exception):
    pass


def stop(done: int, _total: int) -> None:
    if done > 10:
        raise StopError


def test_a_capture_that_another_process_runs_is_neither_resumed_nor_replaced_nor_deleted(
    shards: Any, tmp_path: Path, prompt_data: ActivationData
) -> None:
    store = tmp_path / "store"
    with pytest.raises(StopError):
        shards(progress=stop)
    before = sorted(path.name for path in (store / "mine").iterdir())
    with held_by_a_process(store / "mine" / "plan.json"):
        for attempt in (
            shards,
            lambda: shards(force=True),
            lambda: engine.save_activations(prompt_data, "mine", store=store, force=True),
            lambda: engine.delete_capture("mine", store=store),
        ):
            with pytest.raises(StoreError, match=r"another process is capturing 'mine' now.*wait until it ends"):
                attempt()
        assert sorted(path.name for path in (store / "mine").iterdir()) == before
    shards()  # the process was killed, and its lock is gone
    assert len(engine.open_shards("mine", store=store)) == 4
    assert sorted(path.name for path in store.iterdir()) == ["mine", "mine.json"]


def test_a_thread_is_refused_like_a_process(shards: Any) -> None:
    errors: list[BaseException] = []

    def second() -> None:
        try:
            shards()
        except StoreError as error:
            errors.append(error)

    def progress(done: int, _total: int) -> None:
        if done == 5:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    shards(progress=progress)
    assert errors
    assert all("another process is capturing 'mine' now" in str(error) for error in errors)


def test_one_that_was_finished_meanwhile_is_not_captured_again(shards: Any) -> None:
    def progress(done: int, _total: int) -> None:
        if done == 0 and not finished:
            finished.append(done)
            shards()

    finished: list[int] = []
    with pytest.raises(StoreError, match="another process is capturing 'mine' now"):
        shards(progress=progress)
    shards()
    with pytest.raises(StoreError, match="already a capture called mine"):
        shards()


def test_a_resumed_capture_says_where_it_starts(shards: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "engine")
    with pytest.raises(StopError):
        shards(progress=stop)
    assert "resuming" not in caplog.text
    shards()
    assert "resuming: 2 of 4 shards are saved" in caplog.text


def test_a_plan_that_is_gone_is_said(tmp_path: Path) -> None:
    paths = locate("mine", tmp_path)
    with pytest.raises(StoreError, match="No such file"), hold_plan(paths):
        pass


def test_a_name_is_claimed_once_also_where_links_are_not_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    write_atomically(tmp_path / "file", b"first", replace=False)
    with pytest.raises(TakenError, match="already exists"):
        write_atomically(tmp_path / "file", b"second", replace=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]
    with pytest.raises(FileNotFoundError):
        claim(tmp_path / "gone", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_locked_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be opened"), folder_lock(tmp_path / "file"):
        pass


def test_a_store_that_stays_locked_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    with folder_lock(tmp_path), pytest.raises(StoreError, match=r"has kept the store .* locked"), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    lock = locks.try_lock

    def replaced(handle: int) -> bool:
        monkeypatch.setattr(locks, "try_lock", lock)
        write_atomically(path, b"new")
        return lock(handle)

    monkeypatch.setattr(locks, "try_lock", replaced)
    held = locks.open_locked(path)
    assert held is not None
    with held:
        assert held.read() == b"new"


def test_a_save_removes_what_killed_saves_of_its_name_left_and_no_more(
    contrast_data: ContrastData, tmp_path: Path
) -> None:
    mine = [".mine.pt.1a2b3c4d.unfinished", ".mine.json.1a2b3c4d.unfinished"]
    others = [".mine.pt.pt.1a2b3c4d.unfinished", ".other.pt.1a2b3c4d.unfinished"]
    for name in (*mine, *others):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / ".mine.pt.00000000.unfinished")
    with unfinished(tmp_path / "mine.pt") as running:
        engine.save_activations(contrast_data, "mine", store=tmp_path)
        assert running.path.exists()
    assert not [name for name in mine if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in others)
    (tmp_path / ".mine.directions.safetensors.1a2b3c4d.unfinished").touch()
    engine.save_directions(engine.extract_directions(contrast_data), "mine", store=tmp_path)
    assert not list(tmp_path.glob(".mine.directions*"))
