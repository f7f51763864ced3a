"""A text becomes the token ids the model was trained on, or an error names it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.prompts import excerpt, longest_prompt, tokenize_prompts
from engine.concepts.pair_files import WrittenPairs
from engine.errors import CaptureError, LayerscopeError, RequestError
from engine.store.names import locate
from tests.conftest import Loaded

TOO_LONG = " ".join(["w3"] * 65)


@pytest.fixture
def bos_tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Like Llama's tokenizer: prepends <s> to every text by default."""
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")  # noqa: S106


def test_each_prompt_has_its_ids_and_tokens(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    one, other = tokenize_prompts(tiny_llama, tiny_tokenizer, ["w5 w17 w99", "w7"], rendered=False)
    assert (one.text, one.ids, one.tokens) == ("w5 w17 w99", [5, 17, 99], ["w5", "w17", "w99"])
    assert (other.ids, other.tokens) == ([7], ["w7"])
    assert one.name == "prompt 0 ('w5 w17 w99')"


def test_texts_are_neither_padded_nor_truncated_with_any_tokenizer_settings(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.enable_padding(length=9)
    backend.enable_truncation(2)
    padding = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")  # noqa: S106
    one, other = tokenize_prompts(tiny_llama, padding, ["w5 w17 w99", "w7"], rendered=False)
    assert (one.ids, other.ids) == ([5, 17, 99], [7])


def test_the_first_token_is_added_to_plain_text(
    tiny_llama: PreTrainedModel, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    (prompt,) = tokenize_prompts(tiny_llama, bos_tokenizer, ["w5 w6"], rendered=False)
    assert prompt.ids == [1, 5, 6]
    assert prompt.tokens == ["<s>", "w5", "w6"]


def test_the_first_token_is_not_doubled(tiny_llama: PreTrainedModel, bos_tokenizer: PreTrainedTokenizerFast) -> None:
    (prompt,) = tokenize_prompts(tiny_llama, bos_tokenizer, ["<s> w5 w6"], rendered=False)
    assert prompt.ids == [1, 5, 6]


@pytest.mark.parametrize(("text", "ids"), [("<s> w5 w6", [1, 5, 6]), ("w5 w6", [5, 6])])
def test_nothing_is_added_to_rendered_text(
    tiny_llama: PreTrainedModel, bos_tokenizer: PreTrainedTokenizerFast, text: str, ids: list[int]
) -> None:
    (prompt,) = tokenize_prompts(tiny_llama, bos_tokenizer, [text], rendered=True)
    assert prompt.ids == ids


def test_the_default_models_tokens_decode_to_the_text(smollm2: Loaded) -> None:
    text = "Tell me a story: naïve café, 🙂!"
    (prompt,) = tokenize_prompts(smollm2.model, smollm2.tokenizer, [text], rendered=False)
    assert smollm2.tokenizer.decode(prompt.ids) == text
    assert len(prompt.tokens) == len(prompt.ids)


def test_many_texts_get_the_tokens_that_each_has_alone(smollm2: Loaded) -> None:
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.padding_side = "left"
    texts = ["naïve café, 🙂!", "<|im_start|>user\nHi<|im_end|>", "  two  spaces\n\ttab", "日本語", "x" * 300] * 3
    tokenizer(texts, padding=True, truncation=True, max_length=3)  # settings that the Rust tokenizer remembers
    for rendered in (False, True):
        prompts = tokenize_prompts(smollm2.model, tokenizer, texts, rendered=rendered)
        assert [prompt.ids for prompt in prompts] == [smollm2.tokenizer(text)["input_ids"] for text in texts]
        assert [prompt.tokens for prompt in prompts] == [smollm2.tokenizer.tokenize(text) for text in texts]


def test_first_tokens_are_added_to_those_of_many_texts_that_lack_them(
    tiny_llama: PreTrainedModel, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = ["w5", "<s> w6", "w7 w8", "<s> w9"]
    prompts = tokenize_prompts(tiny_llama, bos_tokenizer, texts, rendered=False)
    assert [prompt.ids for prompt in prompts] == [[1, 5], [1, 6], [1, 7, 8], [1, 9]]


class _Reversing(PreTrainedTokenizerFast):
    """A tokenizer with a step of its own: it reverses the tokens."""

    def _encode_plus(self, *args: Any, **options: Any) -> Any:
        encoded = super()._encode_plus(*args, **options)
        encoded["input_ids"] = [row[::-1] for row in encoded["input_ids"]]
        return encoded


def test_a_tokenizer_with_steps_of_its_own_is_called(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    own = _Reversing(tokenizer_object=tiny_tokenizer.backend_tokenizer)  # type: ignore[no-untyped-call]
    prompts = tokenize_prompts(tiny_llama, own, ["w5 w6", "w7 w8"], rendered=False)
    assert [prompt.ids for prompt in prompts] == [[6, 5], [8, 7]]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_named(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    with pytest.raises(CaptureError, match=r"prompt 1 .*(is empty|has no tokens).*at least one token"):
        tokenize_prompts(tiny_llama, tiny_tokenizer, ["w5", text], rendered=False)


def test_a_prompt_that_is_too_long_is_named(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(CaptureError) as caught:
        tokenize_prompts(tiny_llama, tiny_tokenizer, ["w5", "w6", TOO_LONG], rendered=False)
    assert "prompt 2 ('w3 w3 " in str(caught.value)
    assert "has 65 tokens, more than the model's 64" in str(caught.value)
    assert TOO_LONG not in str(caught.value)


def test_the_longest_prompt_fits(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    longest = TOO_LONG.removesuffix(" w3")
    (prompt,) = tokenize_prompts(tiny_llama, tiny_tokenizer, [longest], rendered=False)
    assert len(prompt.ids) == longest_prompt(tiny_llama, tiny_tokenizer) == 64


def test_the_added_first_token_counts(tiny_llama: PreTrainedModel, bos_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CaptureError, match="has 65 tokens"):
        tokenize_prompts(tiny_llama, bos_tokenizer, [TOO_LONG.removesuffix(" w3")], rendered=False)


def test_an_excerpt_is_one_short_line_in_quotes() -> None:
    assert excerpt("short\ntext") == r"'short\ntext'"
    assert excerpt("x" * 60) == repr("x" * 60)
    assert excerpt("x" * 61) == repr("x" * 59 + "…")


def test_a_lone_surrogate_is_refused(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CaptureError, match=r"prompt 1 \('w5 \\ud83d'\) contains a lone surrogate"):
        tokenize_prompts(tiny_llama, tiny_tokenizer, ["w5", "w5 \ud83d"], rendered=False)


def test_a_token_without_an_embedding_is_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<think>"])
    with pytest.raises(CaptureError, match=r"prompt 1 .* the token '<think>' with the id 128, .* the ids 0 to 127"):
        tokenize_prompts(tiny_llama, tokenizer, ["w5", "w6 <think>"], rendered=False)
    tiny_llama.resize_token_embeddings(len(tokenizer))
    assert tokenize_prompts(tiny_llama, tokenizer, ["w6 <think>"], rendered=False)[0].ids == [6, 128]


def test_an_object_that_is_no_tokenizer_is_refused(tiny_llama: PreTrainedModel) -> None:
    tokenizer: Any
    for tokenizer in (None, "smollm2"):
        with pytest.raises(RequestError, match="the tokenizer is a"):
            engine.capture_activations(tiny_llama, tokenizer, "w5")


def test_a_tokenizer_that_cannot_encode_is_named(tiny_llama: PreTrainedModel) -> None:
    backend = Tokenizer(WordLevel({"w5": 5}))  # without a token for unknown words
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(CaptureError, match=r"the tokenizer cannot encode the prompts: .*WordLevel error"):
        engine.capture_activations(tiny_llama, tokenizer, "w6")


Texts = tuple[str, ...]
Capture = Callable[[PreTrainedModel, PreTrainedTokenizerFast, WrittenPairs, Path], Any]


def in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: WrittenPairs, _folder: Path) -> Any:
    return engine.capture_contrastive_activations(model, tokenizer, pairs.positive, pairs.negative)


def into_shards(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: WrittenPairs, folder: Path) -> Any:
    request = engine.CaptureRequest(pairs, paths=locate(folder / "pairs"), most_in_memory=1)
    return engine.capture_and_save(model, tokenizer, request)


def estimated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: WrittenPairs, _folder: Path) -> Any:
    return engine.estimate_capture(engine.prepare_capture(model, tokenizer, engine.CaptureRequest(pairs)))


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
