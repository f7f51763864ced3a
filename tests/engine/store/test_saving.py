"""Into a store, in memory or in shards: the same captures, and the same call goes on where one was stopped."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.budget import pass_bytes
from engine.concepts.pair_files import WrittenPairs
from engine.concepts.prompt_file import open_prompts
from engine.errors import StoreError
from engine.records.concepts import Factors
from engine.records.files import CaptureRecord
from engine.store import planned
from engine.store.catalog import show_capture
from engine.store.names import locate
from engine.store.read import load_contrast
from engine.store.saving import capture_into_store

FACTORS = tuple(Factors(persona=f"w{5 + i % 6}", template="t", topic=f"w{30 + i // 6}") for i in range(24))
POSITIVE = tuple(f"{pair['persona']} {pair['topic']} w{50 + i}" for i, pair in enumerate(FACTORS))
PAIRS = WrittenPairs(POSITIVE, tuple(f"w40 {text}" for text in POSITIVE), FACTORS)


class StopError(Exception):
    """What a shell raises to cancel."""


@pytest.fixture
def capture(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., CaptureRecord]:
    """Capture into a store of its own, with shards of eight prompts."""
    monkeypatch.setattr(planned, "_SHARD_PROMPTS", 8)

    def run(source: Any, name: str, **how: Any) -> CaptureRecord:
        capture_into_store(tiny_llama, tiny_tokenizer, source, name, store=tmp_path / "store", **how)
        return show_capture(name, store=tmp_path / "store")

    return run


@pytest.mark.parametrize("source", [PAIRS, WrittenPairs(PAIRS.positive, PAIRS.negative, None)], ids=["known", "bare"])
def test_pairs_are_ranked_alike_on_either_side_of_the_limit(
    capture: Callable[..., CaptureRecord], source: WrittenPairs, tmp_path: Path
) -> None:
    whole, parts = capture(source, "whole"), capture(source, "parts", most_in_memory=1)
    store = tmp_path / "store"
    assert (locate("whole", store).in_shards, locate("parts", store).in_shards) == (False, True)
    assert whole["ranking"] is not None
    assert parts["ranking"] is not None
    assert [row["layer"] for row in whole["ranking"]["layers"]] == [row["layer"] for row in parts["ranking"]["layers"]]
    assert whole["ranking"]["groups"] == parts["ranking"]["groups"]
    assert whole["confounds"] == parts["confounds"]
    one, other = (load_contrast(name, store=store) for name in ("whole", "parts"))
    for first, second in zip(one["positive"] + one["negative"], other["positive"] + other["negative"], strict=True):
        assert first["prompt"] == second["prompt"]
        torch.testing.assert_close(first["activations"][3], second["activations"][3], rtol=1e-4, atol=1e-4)


def test_one_prompt_is_saved_as_one_and_several_as_a_batch(
    capture: Callable[..., CaptureRecord], tmp_path: Path
) -> None:
    assert capture(["w5 w6"], "one", positions="all")["num_pairs"] == 0
    assert capture(["w5 w6", "w7"], "two", positions="all")["prompts"] == ["w5 w6", "w7"]
    assert engine.load_activations("one", store=tmp_path / "store")["prompt"] == "w5 w6"  # type: ignore[typeddict-item]


@pytest.mark.parametrize("step", ["counting prompts", "looking for confounds", "ranking layers"])
@pytest.mark.parametrize("limit", [2**30, 1])
def test_stopped_before_or_after_the_prompts_it_is_not_there_and_goes_on(
    capture: Callable[..., CaptureRecord], tmp_path: Path, step: str, limit: int
) -> None:
    def stop(what: str, done: int, _total: int) -> None:
        if what == step and done >= (0 if step == "counting prompts" else 2):
            raise StopError

    with pytest.raises(StopError):
        capture(PAIRS, "mine", most_in_memory=limit, steps=stop)
    store = tmp_path / "store"
    shards = sorted((store / "mine").glob("*.safetensors"))
    assert len(shards) == (6 if step != "counting prompts" and limit == 1 else 0)
    assert locate("mine", store).unfinished is bool(shards)
    assert not [path for path in store.glob("*") if path.suffix in {".pt", ".json", ".unfinished"}]
    before = [path.stat().st_mtime_ns for path in shards]
    told: list[tuple[str, int, int]] = []
    record = capture(PAIRS, "mine", most_in_memory=limit, steps=lambda *said: told.append(said))
    assert record["ranking"] is not None
    assert [path.stat().st_mtime_ns for path in shards] == before
    ranked = [(done, total) for what, done, total in told if what == "ranking layers"]
    assert ranked == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    looked_for = [(done, total) for what, done, total in told if what == "looking for confounds"]
    assert sorted({*looked_for}) == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_what_was_begun_in_shards_goes_on_in_shards_whatever_its_size(
    capture: Callable[..., CaptureRecord], tmp_path: Path
) -> None:
    def stop(done: int, _total: int) -> None:
        if done > 20:
            raise StopError

    with pytest.raises(StopError):
        capture(PAIRS, "mine", most_in_memory=1, progress=stop)
    saved = sorted((tmp_path / "store" / "mine").glob("*.safetensors"))
    assert 0 < len(saved) < 6
    with pytest.raises(StoreError, match=r"begun otherwise: .*positions"):
        capture(PAIRS, "mine", positions="mean")
    assert capture(PAIRS, "mine")["num_pairs"] == 24
    assert locate("mine", tmp_path / "store").in_shards
    with pytest.raises(StoreError, match="already a capture"):
        capture(PAIRS, "mine")
    assert capture(PAIRS, "mine", force=True)["num_pairs"] == 24
    assert not locate("mine", tmp_path / "store").in_shards


def test_files_of_prompts_go_into_shards(capture: Callable[..., CaptureRecord], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"w{5 + number}" for number in range(20)))
    record = capture(open_prompts(file), "file", model_key="little")
    assert (record["kind"], record.get("num_prompts"), record["ranking"]) == ("prompt", 20, None)
    assert record["provenance"] is not None
    assert record["provenance"]["alias"] == "little"
    assert len(engine.open_shards("file", store=tmp_path / "store")) == 3


@pytest.mark.parametrize("limit", [2**30, 1])
def test_that_memory_is_short_is_said_once(
    capture: Callable[..., CaptureRecord],
    limit: int,
    tiny_llama: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = psutil.virtual_memory()._replace(available=5 * pass_bytes(tiny_llama, 128))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with caplog.at_level(logging.INFO, "engine"):
        capture(PAIRS, "mine", most_in_memory=limit)
    assert caplog.text.count("little memory is free") == 1
