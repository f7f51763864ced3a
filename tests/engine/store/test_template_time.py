"""A chat template that reads the clock gets one time per capture, reused on resume."""

import datetime
import time
from itertools import count
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.concepts import chat, pairs
from engine.store import resume
from engine.store.catalog import show_capture
from engine.store.plan import read_plan
from tests.engine.cli.conftest import concept_text

# The second of the minute becomes a word that the tiny tokenizer knows.
TEMPLATE = "w{{ strftime_now('%S') | int + 3 }} {{ messages[0]['content'] }}"


class _StoppedError(Exception):
    pass


@pytest.fixture
def concept(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TEMPLATE)
    path = tmp_path / "loudness.toml"
    path.write_text(concept_text("loudness"))
    return path


def second_of(moment: str) -> str:
    return f"w{datetime.datetime.fromisoformat(moment).second + 3} "


def test_all_prompts_of_a_capture_get_the_same_time(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    concept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = (f"2026-01-02T03:04:{second:02}" for second in count())
    monkeypatch.setattr(pairs, "time_now", lambda: next(moments))
    monkeypatch.setattr(chat, "time_now", lambda: next(moments))
    data = engine.capture_from_concept(tiny_llama, tiny_tokenizer, concept, positions="last")
    told = second_of(data["provenance"]["template_time"])
    assert all(str(prompt["prompt"]).startswith(told) for prompt in [*data["positive"], *data["negative"]])


def test_a_resumed_capture_gets_the_time_of_its_start(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    concept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 8)

    def stop(done: int, _total: int) -> None:
        if done > 16:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        engine.capture_contrast_in_shards(tiny_llama, tiny_tokenizer, concept, tmp_path / "mine", progress=stop)
    begun = read_plan(tmp_path / "mine" / "plan.json")["provenance"]["template_time"]
    time.sleep(1.1)
    paths = engine.capture_contrast_in_shards(tiny_llama, tiny_tokenizer, concept, tmp_path / "mine")
    record = show_capture(paths.record)
    assert record["provenance"] is not None
    assert record["provenance"]["template_time"] == begun
    assert all(text.startswith(second_of(begun)) for text in record["prompts"] + record["negative_prompts"])
    replaced = engine.capture_contrast_in_shards(tiny_llama, tiny_tokenizer, concept, tmp_path / "mine", force=True)
    assert show_capture(replaced.record)["provenance"]["template_time"] > begun  # type: ignore[index]  # it has one


def test_a_template_that_reads_no_clock_has_no_time(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    concept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    data = engine.capture_from_concept(tiny_llama, tiny_tokenizer, concept, max_samples=2)
    assert "template_time" not in data["provenance"]
