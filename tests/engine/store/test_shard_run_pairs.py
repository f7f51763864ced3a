"""Pairs in shards have the same states, statistics and ranking as the same pairs captured in memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import prepare
from engine.concepts.catalog import load_concept
from engine.errors import CaptureError, StoreError
from engine.records.captures import ActivationData, ContrastData, Factors
from engine.records.files import CaptureRecord, find_pair
from engine.store import resume, shard_run
from engine.store.catalog import show_capture
from engine.store.read import load_contrast
from tests.engine.cli.conftest import concept_text

COUNT = 30
FACTORS = [Factors(persona=f"w{5 + i % 6}", template="t", topic=f"w{30 + i // 6}") for i in range(COUNT)]
POSITIVE = [f"{pair['persona']} {pair['topic']} {'w7 ' * (i % 3)}w{50 + i}" for i, pair in enumerate(FACTORS)]
NEGATIVE = [f"w40 {text}" if i % 4 else f"w41 {text}" for i, text in enumerate(POSITIVE)]


@pytest.fixture(params=[2**20, 20], ids=["held", "tokenized again"])
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A file of pairs; shards of four pairs and records that show three, so that there are more of both."""
    monkeypatch.setattr(prepare, "_HELD_TOKENS", request.param)
    monkeypatch.setattr(resume, "_SHARD_PROMPTS", 8)
    monkeypatch.setattr(shard_run, "_SHOWN", 3)
    path = tmp_path / "pairs.jsonl"
    write_pairs(path)
    return path


def write_pairs(path: Path, **changes: str) -> None:
    rows = [{"positive": p, "negative": n, **f, **changes} for p, n, f in zip(POSITIVE, NEGATIVE, FACTORS, strict=True)]
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture
def capture(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, pairs: Path) -> Any:
    def run(name: str = "mine", **how: Any) -> CaptureRecord:
        store = pairs.parent / "store"
        engine.capture_contrast_in_shards(tiny_llama, tiny_tokenizer, how.pop("pairs", pairs), name, store=store, **how)
        return show_capture(name, store=store)

    return run


@pytest.fixture
def in_memory(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> Any:
    def run(positions: str = "last") -> ContrastData:
        return engine.capture_contrastive_activations(
            tiny_llama, tiny_tokenizer, POSITIVE, NEGATIVE, factors=FACTORS, positions=positions
        )

    return run


def close(one: Any, other: Any) -> bool:
    """Compare two records: numbers up to the error of different batching, all else exactly."""
    if isinstance(one, dict):
        return set(one) == set(other) and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float):
        return one == pytest.approx(other, rel=1e-3, abs=1e-3)
    return bool(one == other)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_record_equals_that_of_the_same_pairs_in_memory(
    positions: str, capture: Any, in_memory: Any, tmp_path: Path
) -> None:
    record = capture(positions=positions)
    paths = engine.save_activations(in_memory(positions), "whole", store=tmp_path / "store")
    whole = show_capture(paths.record)
    for key in ("kind", "num_pairs", "captured_layers", "unranked", "confounds", "concept"):
        assert dict(record)[key] == dict(whole)[key]
    assert record["ranking"] is not None
    for key in ("statistics", "ranking"):
        assert close(dict(record)[key], dict(whole)[key])
    assert [row["layer"] for row in record["sides"]] == [row["layer"] for row in whole["sides"]]
    assert record.get("num_prompts") == 2 * COUNT
    assert (record["prompts"], record["negative_prompts"]) == (POSITIVE[:3], NEGATIVE[:3])
    assert record["factors"] == FACTORS[:3]


def test_every_named_pair_is_in_the_record(capture: Any) -> None:
    record = capture(layers=[0, 1])
    named = {wrong["pair"] for sides in record["sides"] for wrong in sides["wrong"]}
    assert max(named) > 3
    for number in named:
        pair = find_pair(record, number)
        assert (pair["positive"], pair["negative"], pair["factors"]) == (
            *(POSITIVE[number], NEGATIVE[number]),
            FACTORS[number],
        )


def test_loading_returns_the_same_as_the_capture_function(capture: Any, in_memory: Any, pairs: Path) -> None:
    capture(positions="all")
    loaded, whole = load_contrast("mine", store=pairs.parent / "store"), in_memory("all")
    assert loaded["factors"] == whole["factors"]
    assert loaded["provenance"]["positions"] == "all"
    for one, other in zip(loaded["positive"] + loaded["negative"], whole["positive"] + whole["negative"], strict=True):
        assert_same_prompt(one, other)
    with pytest.raises(KeyError):
        loaded["positive"][0]["activations"][9]


def assert_same_prompt(one: ActivationData, other: ActivationData) -> None:
    assert (one["tokens"], one["prompt"], one["num_layers"]) == (other["tokens"], other["prompt"], other["num_layers"])
    assert torch.equal(one["input_ids"], other["input_ids"])
    assert list(one["activations"]) == one["captured_layers"] == other["captured_layers"]
    for layer, states in one["activations"].items():
        torch.testing.assert_close(states, other["activations"][layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["all", "last", "0:2"])
def test_prompts_load_as_a_batch(
    positions: str, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, pairs: Path
) -> None:
    file, store = pairs.with_name("prompts.txt"), pairs.parent / "store"
    file.write_text("\n".join(POSITIVE))
    engine.capture_prompt_file(tiny_llama, tiny_tokenizer, file, "many", store=store, positions=positions)
    loaded = engine.load_activations("many", store=store)
    together = engine.capture_activations(tiny_llama, tiny_tokenizer, POSITIVE, positions=positions)
    assert "prompt" in loaded
    assert_same_prompt(loaded, together)
    assert torch.equal(loaded["attention_mask"], together["attention_mask"])
    whole = engine.compute_activation_stats(loaded)[2]
    assert whole == pytest.approx(engine.compute_activation_stats(together)[2], rel=1e-4)


def test_statistics_work_on_shards(capture: Any, in_memory: Any, pairs: Path) -> None:
    capture()
    loaded, whole = load_contrast("mine", store=pairs.parent / "store"), in_memory()
    for method in ("mean_diff", "pca", "logistic"):
        one, other = (engine.extract_direction(data, 2, method) for data in (loaded, whole))
        assert torch.cosine_similarity(one["vector"], other["vector"], dim=0) > 0.999
    (compared, *_) = engine.compare_directions(loaded, whole)
    assert compared["cosine"] > 0.9999
    assert engine.project_sides(loaded, 2)["d_prime"] == pytest.approx(
        engine.project_sides(whole, 2)["d_prime"], rel=1e-3
    )
    assert engine.save_activations(loaded, "copy", store=pairs.parent / "store").tensors.exists()
    copy = load_contrast("copy", store=pairs.parent / "store")
    assert torch.equal(copy["negative"][7]["activations"][1], loaded["negative"][7]["activations"][1])


def test_a_concept_goes_through_the_chat_template(
    capture: Any, pairs: Path, tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    file = pairs.with_name("loudness.toml")
    file.write_text(concept_text("loudness"))
    record = capture("loud", pairs=load_concept(file), max_samples=20, seed=3)
    whole = engine.capture_from_concept(tiny_llama, tiny_tokenizer, file, max_samples=20, seed=3, positions="last")
    loaded = load_contrast("loud", store=pairs.parent / "store")
    assert [one["prompt"] for one in loaded["negative"]] == [one["prompt"] for one in whole["negative"]]
    assert_same_prompt(loaded["positive"][19], whole["positive"][19])
    assert (record["concept"], loaded["concept"], loaded["factors"]) == ("loudness", "loudness", whole["factors"])
    assert record["provenance"]
    assert (record["provenance"]["seed"], record["provenance"]["chat_template"]) == (
        *(3, whole["provenance"]["chat_template"]),
    )


def test_pairs_without_factors_are_held_out_in_folds(capture: Any, pairs: Path) -> None:
    pairs.write_text(
        "\n".join(json.dumps({"positive": p, "negative": n}) for p, n in zip(POSITIVE, NEGATIVE, strict=True))
    )
    record = capture()
    assert record["ranking"] is not None
    assert record["ranking"]["groups"] == {"pairs": COUNT}
    assert record["factors"] == []
    assert "factors" not in load_contrast("mine", store=pairs.parent / "store")


def test_a_resumed_capture_equals_an_uninterrupted_one(capture: Any, pairs: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done > 17:
            raise StopError

    whole, store = capture("whole"), pairs.parent / "store"
    with pytest.raises(StopError):
        capture("mine", progress=stop)
    saved = {path.name: path.stat().st_mtime_ns for path in (store / "mine").glob("*.safetensors")}
    assert sorted(saved) == ["000000000000.safetensors", "000000000008.safetensors"]
    mine = capture("mine")
    assert all((store / "mine" / name).stat().st_mtime_ns == when for name, when in saved.items())
    for path in (store / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (store / "mine" / path.name).read_bytes()
    for key in ("statistics", "ranking", "sides", "confounds"):
        assert mine[key] == whole[key]


def test_resuming_with_other_factors_is_refused(capture: Any, pairs: Path) -> None:
    capture()
    (pairs.parent / "store" / "mine.json").unlink()
    write_pairs(pairs, topic="another")
    with pytest.raises(StoreError, match="the factors of the pairs changed"):
        capture()


def test_an_invalid_prompt_is_named_by_its_line(capture: Any, pairs: Path) -> None:
    with pairs.open("a") as file:
        file.write("\n" + json.dumps({"positive": "w5", "negative": "w5 " * 65}))
    with pytest.raises(CaptureError, match=rf"the negative prompt in .*, line {COUNT + 1} .*has 65 tokens"):
        capture()
    assert not (pairs.parent / "store").exists()
