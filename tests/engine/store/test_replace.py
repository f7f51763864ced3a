"""Replacing a capture says what it deletes; an unfinished capture with the same settings is resumed instead."""

import datetime
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.concepts import chat, pairs
from engine.errors import StoreError
from engine.records.captures import ContrastData
from engine.store import resume
from engine.store.catalog import show_capture
from engine.store.names import locate
from engine.store.plan import hold_plan, read_plan
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
    assert "mine is unfinished and has the same settings: resuming it instead of replacing it" in lines
    assert f"resuming: {len(saved)} of 4 shards are saved" in lines
    assert [text for shard in engine.open_shards("mine", store=store) for text in shard.prompts] == TEXTS


def test_force_replaces_an_unfinished_capture_with_other_settings(capture: Any, said: Any, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        capture(progress=stop)
    saved = len(shard_times(tmp_path / "store"))
    capture(force=True, layers=[1])
    assert said() == [f"replacing mine: deleting its {saved} saved shards now"]
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


def test_what_a_finished_capture_loses_is_said_before(capture: Any, said: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    capture()
    assert said() == []
    with pytest.raises(StopError):
        capture(force=True, progress=stop)
    assert said() == ["replacing mine: deleting its 20 captured prompts now"]
    assert not (store / "mine.json").exists()


def test_nothing_is_said_to_be_deleted_if_another_process_captures(capture: Any, said: Any, tmp_path: Path) -> None:
    capture()
    with hold_plan(locate("mine", tmp_path / "store")), pytest.raises(StoreError, match="capturing 'mine' now"):
        capture(force=True)
    assert said() == []
    assert (tmp_path / "store" / "mine.json").exists()


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
    assert said() == ["replacing mine: deleting its saved directions now"]
    engine.save_directions(directions, "mine", store=store)
    capture(force=True)
    pairs = contrast_data["num_pairs"]
    assert said() == [f"replacing mine: deleting its {pairs} captured pairs and its saved directions now"]
    engine.save_activations(contrast_data, "mine", store=store, force=True)
    assert said() == ["replacing mine: deleting its 20 captured prompts now"]
    (store / "mine.json").write_text("{}")
    capture(force=True)
    assert said() == ["replacing mine: deleting its files now"]
