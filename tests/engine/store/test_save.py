"""The exact size of a capture, and whether it is saved as one file or as shards."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import engine
from engine.capture.budget import pass_bytes
from engine.capture.request import Source
from engine.concepts.pair_files import WrittenPairs, open_pairs
from engine.concepts.text_files import open_prompts
from engine.errors import StoreError
from engine.records.captures import CaptureEstimate, Factors
from engine.records.files import CaptureRecord
from engine.runtime import MainMemory
from engine.store import resume
from engine.store.catalog import show_capture
from engine.store.names import locate
from engine.store.read import load_contrast

PAIRS = [{"positive": f"w5 w{20 + i}", "negative": f"w6 w7 w{20 + i}", "topic": f"w{20 + i}"} for i in range(9)]
POSITIVE, NEGATIVE = ([pair[side] for pair in PAIRS] for side in ("positive", "negative"))


def estimate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Source, *, timed: bool = False, **how: Any
) -> CaptureEstimate:
    """Estimate a request with these arguments."""
    prepared = engine.prepare_capture(model, tokenizer, engine.CaptureRequest(source, **how))
    return engine.estimate_capture(prepared, timed=timed)


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """The same eighteen texts as a file of pairs, pairs in memory, prompts in memory and a file of prompts."""
    pairs, prompts = tmp_path / "pairs.jsonl", tmp_path / "prompts.txt"
    pairs.write_text("\n".join(map(json.dumps, PAIRS)))
    texts: Sequence[str] = [*POSITIVE, *NEGATIVE]
    prompts.write_text("\n".join(texts))
    return [open_pairs(pairs), WrittenPairs(tuple(POSITIVE), tuple(NEGATIVE), None), texts, open_prompts(prompts)]


@pytest.mark.parametrize("positions", ["all", "last", "mean"])
def test_the_bytes_are_those_of_the_states(
    positions: str, sources: list[Source], tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, POSITIVE, NEGATIVE, layers=[1, 3], positions=positions
    )
    states = [rows for prompt in data["positive"] + data["negative"] for rows in prompt["activations"].values()]
    for source in sources:
        told = estimate(tiny_llama, tiny_tokenizer, source, layers=[1, 3], positions=positions)
        assert told["bytes"] == sum(rows.nbytes for rows in states)
        assert (told["prompts"], told["tokens"]) == (18, 9 * 2 + 9 * 3)
        assert "seconds" not in told
        assert told["in_shards"] is (source is sources[-1])


def test_pairs_are_saved_as_shards_above_a_limit_and_prompt_files_always(
    sources: list[Source], tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    *kept, file = sources
    for number, source in enumerate(kept[:2]):
        needed = estimate(tiny_llama, tiny_tokenizer, source, positions="all")["bytes"]
        for limit, large in ((needed, False), (needed - 1, True)):
            told = estimate(tiny_llama, tiny_tokenizer, source, positions="all", most_in_memory=limit)
            assert told["in_shards"] is large
            paths = locate(f"{number}-{large}", tmp_path / "store")
            request = engine.CaptureRequest(source, positions="all", most_in_memory=limit, paths=paths)
            assert engine.capture_and_save(tiny_llama, tiny_tokenizer, request).in_shards is large
    assert estimate(tiny_llama, tiny_tokenizer, file)["in_shards"]


def test_captures_above_half_of_the_free_memory_are_saved_as_shards(
    sources: list[Source],
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = estimate(tiny_llama, tiny_tokenizer, sources[0], positions="all")["bytes"]
    for free, large in ((2 * needed, False), (2 * needed - 2, True)):
        memory = MainMemory(2**40, free, limited=False)
        monkeypatch.setattr("engine.capture.estimate.main_memory", lambda memory=memory: memory)
        assert estimate(tiny_llama, tiny_tokenizer, sources[0], positions="all")["in_shards"] is large


def test_prompts_in_memory_are_estimated_as_a_padded_batch(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """All rows are padded to the longest: one long prompt among many short ones makes the batch large."""
    prompts = ["w5 " * 40, *(f"w{number}" for number in range(5, 24))]
    states = engine.capture_activations(tiny_llama, tiny_tokenizer, prompts)["activations"].values()
    needed = sum(rows.nbytes for rows in states)
    for limit, large in ((needed, False), (needed - 1, True)):
        told = estimate(tiny_llama, tiny_tokenizer, prompts, positions="all", most_in_memory=limit)
        assert told["in_shards"] is large


def test_counting_reports_progress_and_can_be_stopped(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [f"w{5 + number % 100}" for number in range(5000)]
    told: list[tuple[str, int, int]] = []

    def note(step: str, done: int, total: int) -> None:
        told.append((step, done, total))
        if done == 4096:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.prepare_capture(tiny_llama, tiny_tokenizer, engine.CaptureRequest(prompts), steps=note)
    assert told == [("counting prompts", done, 0) for done in (0, 2048, 4096)]


FACTORS = tuple(Factors(persona=f"w{5 + i % 6}", template="t", topic=f"w{30 + i // 6}") for i in range(24))
KNOWN_POSITIVE = tuple(f"{pair['persona']} {pair['topic']} w{50 + i}" for i, pair in enumerate(FACTORS))
KNOWN_PAIRS = WrittenPairs(KNOWN_POSITIVE, tuple(f"w40 {text}" for text in KNOWN_POSITIVE), FACTORS)


class StopError(Exception):
    """Raised by the server or the app to cancel."""


@pytest.fixture
def capture(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., CaptureRecord]:
    """Capture into a separate store, with shards of eight prompts."""
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 8)

    def run(source: Any, name: str, progress: Any = None, steps: Any = None, **how: Any) -> CaptureRecord:
        request = engine.CaptureRequest(source, paths=locate(name, tmp_path / "store"), **how)
        engine.capture_and_save(tiny_llama, tiny_tokenizer, request, progress=progress, steps=steps)
        return show_capture(name, store=tmp_path / "store")

    return run


@pytest.mark.parametrize(
    "source", [KNOWN_PAIRS, WrittenPairs(KNOWN_PAIRS.positive, KNOWN_PAIRS.negative, None)], ids=["known", "bare"]
)
def test_pairs_are_ranked_alike_as_one_file_and_as_shards(
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


def test_one_prompt_is_saved_alone_and_several_as_a_batch(
    capture: Callable[..., CaptureRecord], tmp_path: Path
) -> None:
    assert capture("w5 w6", "one", positions="all")["num_pairs"] == 0
    assert capture(["w5 w6", "w7"], "two", positions="all")["prompts"] == ["w5 w6", "w7"]
    assert engine.load_activations("one", store=tmp_path / "store")["prompt"] == "w5 w6"  # type: ignore[typeddict-item]


@pytest.mark.parametrize("step", ["counting prompts", "looking for confounds", "ranking layers"])
@pytest.mark.parametrize("limit", [2**30, 1])
def test_a_stopped_capture_is_not_listed_and_can_be_resumed(
    capture: Callable[..., CaptureRecord], tmp_path: Path, step: str, limit: int
) -> None:
    def stop(what: str, done: int, _total: int) -> None:
        if what == step and done >= (0 if step == "counting prompts" else 2):
            raise StopError

    with pytest.raises(StopError):
        capture(KNOWN_PAIRS, "mine", most_in_memory=limit, steps=stop)
    store = tmp_path / "store"
    shards = sorted((store / "mine").glob("*.safetensors"))
    assert len(shards) == (6 if step != "counting prompts" and limit == 1 else 0)
    assert locate("mine", store).unfinished is bool(shards)
    assert not [path for path in store.glob("*") if path.suffix in {".pt", ".json", ".unfinished"}]
    before = [path.stat().st_mtime_ns for path in shards]
    told: list[tuple[str, int, int]] = []
    record = capture(KNOWN_PAIRS, "mine", most_in_memory=limit, steps=lambda *said: told.append(said))
    assert record["ranking"] is not None
    assert [path.stat().st_mtime_ns for path in shards] == before
    ranked = [(done, total) for what, done, total in told if what == "ranking layers"]
    assert ranked == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    looked_for = [(done, total) for what, done, total in told if what == "looking for confounds"]
    assert sorted({*looked_for}) == [(done, 7) for done in range(7)]


def test_an_unfinished_capture_in_shards_is_resumed_at_any_size(
    capture: Callable[..., CaptureRecord], tmp_path: Path
) -> None:
    def stop(done: int, _total: int) -> None:
        if done > 20:
            raise StopError

    with pytest.raises(StopError):
        capture(KNOWN_PAIRS, "mine", most_in_memory=1, progress=stop)
    saved = sorted((tmp_path / "store" / "mine").glob("*.safetensors"))
    assert 0 < len(saved) < 6
    with pytest.raises(StoreError, match=r"started with different settings: .*positions"):
        capture(KNOWN_PAIRS, "mine", positions="mean")
    assert capture(KNOWN_PAIRS, "mine")["num_pairs"] == 24
    assert locate("mine", tmp_path / "store").in_shards
    with pytest.raises(StoreError, match="already a capture"):
        capture(KNOWN_PAIRS, "mine")
    assert capture(KNOWN_PAIRS, "mine", force=True)["num_pairs"] == 24
    assert not locate("mine", tmp_path / "store").in_shards


def test_prompt_files_are_saved_as_shards(capture: Callable[..., CaptureRecord], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"w{5 + number}" for number in range(20)))
    record = capture(open_prompts(file), "file", alias="little")
    assert (record["kind"], record.get("num_prompts"), record["ranking"]) == ("prompt", 20, None)
    assert record["provenance"] is not None
    assert record["provenance"]["alias"] == "little"
    assert len(engine.open_shards("file", store=tmp_path / "store")) == 3


@pytest.mark.parametrize("limit", [2**30, 1])
def test_low_memory_is_logged_once(
    capture: Callable[..., CaptureRecord],
    limit: int,
    tiny_llama: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = psutil.virtual_memory()._replace(available=5 * pass_bytes(tiny_llama, 128))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with caplog.at_level(logging.INFO, "engine"):
        capture(KNOWN_PAIRS, "mine", most_in_memory=limit)
    assert caplog.text.count("low memory on") == 1
