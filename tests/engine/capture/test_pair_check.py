"""Pairs that contrast nothing are refused wherever they come from, and before anything is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.concepts.pair_files import WrittenPairs
from engine.errors import CaptureError, LayerscopeError
from engine.store.saving import capture_into_store
from engine.store.size import estimate_source

Texts = tuple[str, ...]
Capture = Callable[[PreTrainedModel, PreTrainedTokenizerFast, WrittenPairs, Path], Any]


def in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: WrittenPairs, _folder: Path) -> Any:
    return engine.capture_contrastive_activations(model, tokenizer, pairs.positive, pairs.negative)


def into_shards(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: WrittenPairs, folder: Path) -> Any:
    return capture_into_store(model, tokenizer, pairs, folder / "pairs", most_in_memory=1)


def estimated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: WrittenPairs, _folder: Path) -> Any:
    return estimate_source(model, tokenizer, pairs)


@pytest.mark.parametrize("capture", [in_memory, into_shards, estimated])
@pytest.mark.parametrize(
    ("positive", "negative", "said"),
    [
        (("w5 w6", "w7"), ("w5 w6", "w7"), "both classes have identical prompts"),
        (("w5 w6", "w7"), ("w7", "w5 w6"), "both classes have identical prompts"),
        (("w5  w6",), ("w5 w6",), "both classes have identical prompts"),
        (("w5", "w6", "w7"), ("w8", "w6", "w9"), r"pair 1 has the same prompt in both classes \('w6'\)"),
        (("w5", "w6 w7"), ("w8", "w6  w7"), r"pair 1 has two prompts with the same tokens \('w6 w7', 'w6  w7'\)"),
    ],
)
def test_pairs_without_a_contrast_are_refused(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capture: Capture,
    positive: Texts,
    negative: Texts,
    said: str,
) -> None:
    with pytest.raises(CaptureError, match=said):
        capture(tiny_llama, tiny_tokenizer, WrittenPairs(positive, negative, None), tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_a_prompt_may_be_in_both_classes_as_long_as_the_classes_differ(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, ["w5", "w6"], ["w6", "w7"])
    assert data["num_pairs"] == 2


def test_a_file_with_such_a_pair_names_its_line(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("positive,negative\nw5,w6\nw7,w7\n")
    with pytest.raises(LayerscopeError, match=r"pairs.csv, line 3: positive and negative are the same text"):
        engine.capture_contrast_in_shards(tiny_llama, tiny_tokenizer, file, tmp_path / "pairs")
