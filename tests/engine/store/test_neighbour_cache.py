"""The cache of neighbours: the ones used longest ago make room, and nothing else is deleted."""

import os
import time
from pathlib import Path
from typing import BinaryIO
from unittest.mock import Mock

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.records.captures import Concept, Provenance
from engine.runtime import ignore_progress
from engine.store import neighbour_cache, neighbours
from engine.store.catalog import list_captures
from engine.store.names import CapturePaths, locate
from engine.store.neighbour_cache import alone, limit_cache, mark_used, neighbours_path
from engine.store.neighbours import capture_neighbours
from engine.store.verify import Verification, verify_capture
from tests.engine.cli.conftest import concept_text

DAY = 24 * 3600


def keep(folder: Path, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, days: int) -> int:
    """Keep a neighbour that was last used some days ago; returns its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("w5 w6\nw7 w8")
    paths = engine.capture_prompt_file(model, tokenizer, folder / "prompts.txt", name, store=folder)
    files = [paths.record, *paths.shards.iterdir()]
    for path in files:
        os.utime(path, (time.time() - days * DAY,) * 2)
    return sum(path.stat().st_size for path in files)


def age(folder: Path, days: int) -> None:
    """Set the time of the last use of all neighbours."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - days * DAY,) * 2)


def warmth(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[Concept, Provenance]:
    """A neighbour, and a contrast that is compared with it."""
    (folder / "warmth.toml").write_text(concept_text("warmth"))
    concept = engine.load_concept(folder / "warmth.toml")
    data = engine.capture_from_concept(model, tokenizer, concept, max_samples=4, layers=[1], positions="last")
    return concept, data["provenance"]


def test_those_used_longest_ago_make_room(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder, digest = tmp_path / "kept", "-0123456789abcdef"
    ages = {f"{name}{digest}": days for name, days in (("a", 0), ("b", 9), ("c", 5), ("d", 7))} | {"mine": 30}
    size = max(keep(folder, name, tiny_llama, tiny_tokenizer, days) for name, days in ages.items())
    (folder / f".a{digest}.lock").touch()
    (folder / f"broken{digest}").mkdir()

    def left() -> str:
        return "".join(entry.name.removesuffix(digest) for entry in list_captures(folder) if entry.record)

    limit_cache(folder, 4 * size + 1000)
    assert sorted(left()) == sorted("abcdmine")
    mark_used(locate(f"b{digest}", folder))
    limit_cache(folder, 3 * size)
    assert sorted(left()) == sorted("abcmine")
    limit_cache(folder, 0)
    assert sorted(left()) == sorted("abmine")  # a and b were used today
    assert not (folder / f"c{digest}").exists()


def test_a_new_neighbour_makes_room(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(neighbours, "_MOST_BYTES", 0)
    concept, like = warmth(tiny_llama, tiny_tokenizer, tmp_path)
    old = "calm-0123456789abcdef"
    for own in (None, tmp_path / "own"):
        folder = own or neighbours_path()
        keep(folder, old, tiny_llama, tiny_tokenizer, 2)
        found = capture_neighbours(tiny_llama, tiny_tokenizer, like, concepts=[concept], folder=own)
        assert found["warmth"]["positive"][0]["activations"][1].isfinite().all()
        assert (folder / old).exists() == (own is not None)


def test_a_neighbour_that_another_process_holds_or_uses_stays(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, used, idle = (locate(f"{name}-0123456789abcdef", tmp_path) for name in ("held", "used", "idle"))
    for paths in (held, used, idle):
        keep(tmp_path, paths.name, tiny_llama, tiny_tokenizer, 2)

    def use_meanwhile(paths: CapturePaths) -> BinaryIO:
        mark_used(used)
        return open_lock(paths)

    open_lock = neighbour_cache._open_lock
    monkeypatch.setattr(neighbour_cache, "_open_lock", use_meanwhile)
    with alone(held, ignore_progress):
        age(tmp_path, 2)
        limit_cache(tmp_path, 0)
    assert [paths.record.exists() for paths in (held, used, idle)] == [True, True, False]


def test_a_neighbour_is_marked_before_it_is_read(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    concept, like = warmth(tiny_llama, tiny_tokenizer, tmp_path)
    capture_neighbours(tiny_llama, tiny_tokenizer, like, concepts=[concept])
    age(neighbours_path(), 2)

    def verify(name: str, *, store: Path) -> Verification:
        limit_cache(store, 0)  # by another process
        return verify_capture(name, store=store)

    monkeypatch.setattr(neighbours, "verify_capture", verify)
    steps = Mock()
    capture_neighbours(tiny_llama, tiny_tokenizer, like, concepts=[concept], steps=steps)
    steps.assert_not_called()


def test_a_shared_cache_may_be_read_only(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    concept, like = warmth(tiny_llama, tiny_tokenizer, tmp_path)
    capture_neighbours(tiny_llama, tiny_tokenizer, like, concepts=[concept])
    monkeypatch.setattr(os, "utime", Mock(side_effect=PermissionError(13, "Permission denied")))
    assert capture_neighbours(tiny_llama, tiny_tokenizer, like, concepts=[concept])["warmth"]["num_pairs"]
