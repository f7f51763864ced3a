"""How large a capture will be: its exact size, and where it goes by that."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.estimate import estimate_capture
from engine.concepts.pair_files import open_pairs, read_pairs
from engine.concepts.prompt_file import open_prompts
from engine.main_memory import MainMemory
from engine.store.size import estimate_source, goes_into_shards
from engine.store.survey import Source

PAIRS = [{"positive": f"w5 w{20 + i}", "negative": f"w6 w7 w{20 + i}", "topic": f"w{20 + i}"} for i in range(9)]
POSITIVE, NEGATIVE = ([pair[side] for pair in PAIRS] for side in ("positive", "negative"))


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """The same eighteen texts: as a file of pairs, as those pairs in memory, as prompts in memory and as a file."""
    pairs, prompts = tmp_path / "pairs.jsonl", tmp_path / "prompts.txt"
    pairs.write_text("\n".join(map(json.dumps, PAIRS)))
    texts: Sequence[str] = [*POSITIVE, *NEGATIVE]
    prompts.write_text("\n".join(texts))
    return [open_pairs(pairs), read_pairs(pairs), texts, open_prompts(prompts)]


@pytest.mark.parametrize("positions", ["all", "last", "mean"])
def test_the_bytes_are_those_of_the_states(
    positions: str, sources: list[Source], tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, POSITIVE, NEGATIVE, layers=[1, 3], positions=positions
    )
    states = [rows for prompt in data["positive"] + data["negative"] for rows in prompt["activations"].values()]
    counted = estimate_capture(tiny_llama, tiny_tokenizer, [*POSITIVE, *NEGATIVE], [1, 3], positions=positions)
    for source in sources:
        told = estimate_source(tiny_llama, tiny_tokenizer, source, [1, 3], positions=positions)
        assert told["bytes"] == sum(rows.nbytes for rows in states)
        assert (told["prompts"], told["tokens"]) == (18, 9 * 2 + 9 * 3)
        assert told["seconds"] >= 0
        assert told["in_shards"] is (source is sources[-1])
        assert {**told, "seconds": 0} == {**counted, "seconds": 0, "in_shards": told["in_shards"]}


def test_pairs_go_into_shards_above_a_limit_and_files_of_prompts_always(
    sources: list[Source], tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    *kept, file = sources
    for source in kept[:2]:
        needed = estimate_source(tiny_llama, tiny_tokenizer, source, positions="all")["bytes"]
        for limit, large in ((needed, False), (needed - 1, True)):
            what = {"positions": "all", "most_in_memory": limit}
            assert goes_into_shards(tiny_llama, tiny_tokenizer, source, **what) is large  # type: ignore[arg-type]
            assert estimate_source(tiny_llama, tiny_tokenizer, source, **what)["in_shards"] is large  # type: ignore[arg-type]
    assert goes_into_shards(tiny_llama, tiny_tokenizer, file)


def test_what_would_take_more_than_half_of_the_free_memory_goes_into_shards(
    sources: list[Source],
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = estimate_source(tiny_llama, tiny_tokenizer, sources[0], positions="all")["bytes"]
    for free, large in ((2 * needed, False), (2 * needed - 2, True)):
        memory = MainMemory(2**40, free, limited=False)
        monkeypatch.setattr("engine.store.size.main_memory", lambda memory=memory: memory)
        assert goes_into_shards(tiny_llama, tiny_tokenizer, sources[0], positions="all") is large
        assert estimate_source(tiny_llama, tiny_tokenizer, sources[0], positions="all")["in_shards"] is large


def test_prompts_in_memory_count_as_the_batch_that_they_become(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its rows are as long as the longest: one long prompt among many short ones makes it large."""
    prompts = ["w5 " * 40, *(f"w{number}" for number in range(5, 24))]
    states = engine.capture_activations(tiny_llama, tiny_tokenizer, prompts)["activations"].values()
    needed = sum(rows.nbytes for rows in states)
    for limit, large in ((needed, False), (needed - 1, True)):
        assert goes_into_shards(tiny_llama, tiny_tokenizer, prompts, positions="all", most_in_memory=limit) is large


def test_counting_is_told_and_can_be_stopped(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = [f"w{5 + number % 100}" for number in range(600)]
    told: list[tuple[str, int, int]] = []

    def note(step: str, done: int, total: int) -> None:
        told.append((step, done, total))
        if done == 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_source(tiny_llama, tiny_tokenizer, prompts, steps=note)
    assert told == [("counting prompts", done, 0) for done in (0, 256, 512)]
