"""Captures with responses: saved, read back and resumed, as one file and as shards."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.request import CaptureRequest, written_pairs
from engine.capture.run import capture_stacked
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import open_pairs
from engine.concepts.text_files import open_prompts
from engine.errors import RequestError, StoreError
from engine.records.captures import ContrastData, Factors
from engine.records.files import CaptureRecord, record_warnings
from engine.store import resume, shard_run
from engine.store.catalog import show_capture
from engine.store.names import locate
from engine.store.read import load_activations, load_contrast
from tests.engine.cli.conftest import concept_text
from tests.engine.store.test_shard_run_pairs import assert_same_prompt

COUNT = 10
FACTORS = [Factors(persona=f"w{5 + i % 5}", template="t", topic=f"w{30 + i // 5}") for i in range(COUNT)]
POSITIVE = [f"{pair['persona']} {pair['topic']} {'w7 ' * (i % 3)}w{50 + i}" for i, pair in enumerate(FACTORS)]
NEGATIVE = [f"w40 {text}" for text in POSITIVE]
PAIRS = written_pairs(POSITIVE, NEGATIVE, FACTORS)
SAMPLED: dict[str, Any] = {"respond": 5, "sample": True, "seed": 3}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of two pairs, and records that show three."""
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 32)
    monkeypatch.setattr(shard_run, "_SHOWN", 3)


@pytest.fixture
def capture(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Any:
    def run(name: str, source: Any = PAIRS, **how: Any) -> CaptureRecord:
        request = CaptureRequest(source, paths=locate(name, tmp_path), **how)
        return show_capture(engine.capture_and_save(tiny_llama, tiny_tokenizer, request).record)

    return run


def assert_same(one: ContrastData, other: ContrastData) -> None:
    for first, second in zip(one["positive"] + one["negative"], other["positive"] + other["negative"], strict=True):
        assert_same_prompt(first, second)
        assert first["response"] == second["response"]


@pytest.mark.parametrize("how", [SAMPLED, {"respond": 5}, {"respond": 4, "positions": "response:all"}])
def test_a_saved_capture_reads_back_with_its_responses(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, capture: Any, tmp_path: Path, how: Any
) -> None:
    plain = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, POSITIVE, NEGATIVE, **how)
    record = capture("one", **how)
    assert record["responses"] == [data["response"] for data in plain["positive"]]
    assert record["negative_responses"] == [data["response"] for data in plain["negative"]]
    assert record["provenance"]["responses"] == plain["provenance"].get("responses")
    assert "response" not in torch.load(tmp_path / "one.pt")["positive"][0]
    assert_same(load_contrast("one", store=tmp_path), plain)


def test_shards_hold_the_same_responses_and_states_as_one_file(capture: Any, tmp_path: Path) -> None:
    whole, record = capture("whole", **SAMPLED), capture("parts", shards=True, **SAMPLED)
    one, two = load_contrast("whole", store=tmp_path), load_contrast("parts", store=tmp_path)
    for first, second in zip(one["positive"] + one["negative"], two["positive"] + two["negative"], strict=True):
        assert first["response"] == second["response"]
        assert torch.equal(first["input_ids"], second["input_ids"])
        for layer, states in first["activations"].items():
            torch.testing.assert_close(second["activations"][layer], states, rtol=1e-5, atol=1e-5)
    assert record["responses"] == whole["responses"][:3]
    assert record["negative_responses"] == whole["negative_responses"][:3]
    said = [one for shard in engine.open_shards("parts", store=tmp_path) for one in shard.responses or ()]
    assert said[0::2] == whole["responses"]
    assert said[1::2] == whole["negative_responses"]


@pytest.mark.parametrize("how", [SAMPLED, {"respond": 5}], ids=["sampled", "greedy"])
def test_a_killed_run_resumes_to_the_same_bytes(
    capture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    capture("whole", shards=True, **how)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.safetensors")}
    ran: list[int] = []
    original = capture_stacked

    def killed(*given: Any, **named: Any) -> Any:
        ran.append(1)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(shard_run, "capture_stacked", killed)
    with pytest.raises(KeyboardInterrupt):
        capture("killed", shards=True, **how)
    assert 0 < len(list((tmp_path / "killed").glob("*.safetensors"))) < len(expected) == 5
    capture("killed", shards=True, **how)
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").glob("*.safetensors")} == expected


def test_cut_responses_are_counted_once_at_the_end(
    capture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "engine")

    def said() -> list[str]:
        lines = [message for message in caplog.messages if "responses" in message]
        caplog.clear()
        return lines

    capture("whole", shards=True, respond=3)
    responses = [one for shard in engine.open_shards("whole", store=tmp_path) for one in shard.responses or ()]
    cut, empty = sum(not one["ended"] for one in responses), sum(not one["text"] for one in responses)
    assert cut > empty > 0
    expected = [
        f"{empty} of {2 * COUNT} responses are empty: the last token of the prompt stands for each of them",
        f"{cut} of {2 * COUNT} responses were cut at the maximum of 3 tokens",
    ]
    assert said() == expected
    capture("one", respond=3)
    assert said() == expected
    original, ran = capture_stacked, iter(range(10))

    def killed(*given: Any, **named: Any) -> Any:
        if next(ran) == 3:
            raise KeyboardInterrupt
        return original(*given, **named)

    with monkeypatch.context() as during:
        during.setattr(shard_run, "capture_stacked", killed)
        with pytest.raises(KeyboardInterrupt):
            capture("resumed", shards=True, respond=3)
    assert said() == []
    capture("resumed", shards=True, respond=3)
    assert said() == expected


def test_shards_without_responses_are_not_damaged_and_lost_ones_are_missed(capture: Any, tmp_path: Path) -> None:
    capture("bare", shards=True)
    capture("mine", shards=True, respond=3)
    bare, mine = (engine.open_shards(name, store=tmp_path)[0] for name in ("bare", "mine"))
    assert bare.responses is None
    assert mine.responses is not None
    assert len(mine.responses) == len(mine.prompts)
    mine.path.write_bytes(bare.path.read_bytes())
    with pytest.raises(StoreError, match="is damaged: File does not contain tensor responses"):
        _ = mine.responses


def test_a_run_with_other_responses_is_not_resumed(capture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_given: Any, **_named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(shard_run, "capture_stacked", killed)
        with pytest.raises(KeyboardInterrupt):
            capture("mine", shards=True, **SAMPLED)
    for other, said in (
        ({"respond": 6}, "the maximum number of tokens of a response was 5, is now 6"),
        ({"seed": 4}, "the seed for sampling responses was 3, is now 4"),
        ({"sample": False}, "sampling of responses was on, is now off"),
        ({"respond": None, "sample": False, "positions": "last"}, "the source of responses was the model, is now none"),
    ):
        with pytest.raises(StoreError, match=said):
            capture("mine", shards=True, **SAMPLED | other)
    capture("mine", shards=True, **SAMPLED)


def test_files_of_prompts_and_pairs_give_responses(capture: Any, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text, "response": "w9 w10"}) for text in POSITIVE))
    record = capture("prompts", open_prompts(prompts))
    assert record["provenance"]["positions"] == "response"
    assert record["provenance"]["responses"]["origin"] == "given"
    loaded = load_activations("prompts", store=tmp_path)
    assert dict(loaded)["response"] == [{"text": "w9 w10", "tokens": 2, "ended": None}] * COUNT
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"positive": one, "negative": two, "positive_response": "w9 w10", "negative_response": f"w{11 + n}"}
        for n, (one, two) in enumerate(zip(POSITIVE, NEGATIVE, strict=True))
    ]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    record = capture("pairs", open_pairs(pairs))
    assert [one["text"] for one in record["negative_responses"]] == [row["negative_response"] for row in rows]
    pairs.write_text("\n".join(json.dumps(row | {"positive_response": "w9"}) for row in rows))
    other = capture("pairs-2", open_pairs(pairs), shards=True)
    assert other["responses"][0]["text"] == "w9"


def test_one_prompt_and_a_list_of_prompts(capture: Any, tmp_path: Path) -> None:
    for name, source in (("single", POSITIVE[0]), ("several", POSITIVE)):
        record = capture(name, source, respond=3)
        loaded = load_activations(name, store=tmp_path)
        assert dict(loaded)["response"] == (record["responses"][0] if name == "single" else record["responses"])
        assert "negative_responses" not in record


def test_neighbours_and_other_captures_are_not_compared_with_responses(capture: Any, tmp_path: Path) -> None:
    path = tmp_path / "loudness.toml"
    path.write_text(concept_text("loudness"))
    record = capture("mine", load_concept(path), respond=3, positions="last")
    assert record["specificity"]["reason"] == "neighbours are captured without responses"
    bare = capture("bare", load_concept(path), positions="last", specificity=False)
    with pytest.raises(RequestError, match="mine was captured with responses and bare without"):
        engine.compare_captures(record, bare, lambda record: load_contrast(record["name"], store=tmp_path))


def test_a_record_with_too_few_responses_is_damaged(capture: Any, tmp_path: Path) -> None:
    record = capture("mine", respond=3)
    record["negative_responses"].pop()
    (tmp_path / "mine.json").write_bytes(msgspec.json.encode(record))
    with pytest.raises(StoreError, match="it does not have as many responses as prompts"):
        load_contrast("mine", store=tmp_path)


def test_equal_responses_of_both_classes_are_counted(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    said = [f"w{60 + number}" for number in range(COUNT)]
    data = engine.capture_contrastive_activations(
        tiny_llama,
        tiny_tokenizer,
        POSITIVE,
        NEGATIVE,
        positive_responses=said,
        negative_responses=[*said[:4], *(f"{text} w9" for text in said[4:])],
    )
    engine.save_activations(data, "said", store=tmp_path)
    assert "both responses are the same in 4 of 10 pairs" in record_warnings(show_capture("said", store=tmp_path))
