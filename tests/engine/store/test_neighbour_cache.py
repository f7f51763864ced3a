"""The cache of neighbours: the ones used longest ago make room, and nothing else is deleted."""

import os
import time
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.store.catalog import list_captures
from engine.store.names import locate
from engine.store.neighbour_cache import limit_cache, mark_used, neighbours_path
from engine.store.neighbours import capture_neighbours
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
    monkeypatch.setattr(limit_cache, "__defaults__", (0,))
    (tmp_path / "warmth.toml").write_text(concept_text("warmth"))
    concept = engine.load_concept(tmp_path / "warmth.toml")
    contrast = engine.capture_from_concept(
        tiny_llama, tiny_tokenizer, concept, max_samples=4, layers=[1], positions="last"
    )
    like = contrast["provenance"]
    old = "calm-0123456789abcdef"
    for own in (None, tmp_path / "own"):
        folder = own or neighbours_path()
        keep(folder, old, tiny_llama, tiny_tokenizer, 2)
        found = capture_neighbours(tiny_llama, tiny_tokenizer, like, concepts=[concept], folder=own)
        assert found["warmth"]["positive"][0]["activations"][1].isfinite().all()
        assert (folder / old).exists() == (own is not None)
