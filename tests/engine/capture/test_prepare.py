"""Preparation reads the prompts once and finds the errors in a request."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture import prepare
from engine.concepts.pair_files import WrittenPairs
from engine.concepts.text_files import open_prompts, open_texts
from engine.errors import CaptureError, LayerscopeError, RequestError
from engine.runtime import Processes
from engine.store.names import locate
from tests.engine.cli.conftest import concept_text

TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}w9"


@pytest.fixture
def read(tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each text was tokenized, and each conversation rendered."""
    counts: Counter[str] = Counter()
    kind = type(tiny_tokenizer)
    encode, render = kind.__call__, kind.apply_chat_template

    def counted_encode(self: Any, texts: list[str], *args: Any, **options: Any) -> Any:
        counts.update(texts)
        return encode(self, texts, *args, **options)

    def counted_render(self: Any, turns: Any, *args: Any, **options: Any) -> Any:
        counts[f"rendered {turns}"] += 1
        return render(self, turns, *args, **options)

    monkeypatch.setattr(kind, "__call__", counted_encode)
    monkeypatch.setattr(kind, "apply_chat_template", counted_render)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", TEMPLATE)
    return counts


@pytest.mark.parametrize("shards", [False, True])
def test_each_prompt_is_rendered_and_tokenized_once(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    read: Counter[str],
    tmp_path: Path,
    shards: bool,
) -> None:
    concept = tmp_path / "loudness.toml"
    concept.write_text(concept_text("loudness"))
    paths = locate(tmp_path / "it")
    request = engine.CaptureRequest(engine.load_concept(concept), paths=paths, shards=shards, specificity=False)
    paths = engine.capture_and_save(tiny_llama, tiny_tokenizer, request)
    texts = {text: times for text, times in read.items() if not text.startswith("rendered")}
    conversations = [times for text, times in read.items() if "layerscope" not in text and text not in texts]
    assert paths.in_shards is shards
    assert (len(texts), set(texts.values())) == (48, {1})
    assert (len(conversations), set(conversations)) == (48, {1})


def test_prompts_not_held_in_memory_are_tokenized_again_when_run(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    read: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [f"w{5 + number} w6" for number in range(20)]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(texts))
    held = engine.capture_prompt_file(tiny_llama, tiny_tokenizer, file, tmp_path / "held")
    assert set(read.values()) == {1}
    monkeypatch.setattr(prepare, "_HELD_TOKENS", 30)
    again = engine.capture_prompt_file(tiny_llama, tiny_tokenizer, file, tmp_path / "again")
    assert set(read.values()) == {3}
    one, other = (engine.open_shards(paths.shards) for paths in (held, again))
    assert [shard.prompts for shard in one] == [shard.prompts for shard in other]
    assert all((a.states(3) == b.states(3)).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("source", "values", "error", "said"),
    [
        ([], {}, CaptureError, "no prompts"),
        (3, {}, CaptureError, "a number"),
        ("w5", {"positions": "first"}, RequestError, "positions 'first' cannot be parsed"),
        ("w5", {"site": "resid"}, RequestError, "no site 'resid'"),
        ("w5", {"site": "embed", "layers": [3]}, RequestError, "has no layer"),
        ("w5", {"layers": [1.5]}, RequestError, "1.5 is not a layer number"),
        ("w5", {"layers": []}, RequestError, "no layers were requested"),
        ("w5", {"layers": ""}, RequestError, "layers '' cannot be parsed"),
        ("w5", {"layers": "3,x"}, RequestError, "cannot be parsed at 'x'"),
        (WrittenPairs(("w5",), (), None), {}, CaptureError, "1 positive and 0 negative prompts"),
        (WrittenPairs(("w5",), ("w6",), ()), {}, CaptureError, "1 pairs and 0 sets of factors"),
        ("w5", {"store_dtype": "bfloat16"}, RequestError, "applies only to shards"),
        ("w5", {"batch_size": 0}, RequestError, "batch size cannot be 0"),
        ("w5", {"use_hooks": "no"}, RequestError, "use_hooks cannot be 'no'. Expected: True or False"),
        ("w5", {"respond": 3, "sample": 1}, RequestError, "sample cannot be 1"),
        ("w5", {"seed": "one"}, RequestError, "seed cannot be 'one'"),
        ("w5", {"max_samples": 0}, RequestError, "number of pairs cannot be 0"),
        ("w5", {"store_dtype": "float8"}, RequestError, "'float8'. Expected: one of as captured, float32, bfloat16"),
    ],
)
def test_an_invalid_request_is_refused_without_a_model(
    source: Any, values: dict[str, Any], error: type[LayerscopeError], said: str
) -> None:
    with pytest.raises(error, match=said):
        engine.CaptureRequest(source, **values)


def test_a_request_holds_plain_values() -> None:
    layers = np.array([3, 4])
    request = engine.CaptureRequest(np.array(["w5", "w6"]), layers=layers, seed=np.int64(3))  # type: ignore[arg-type]
    assert (request.source, request.layers, request.seed) == (("w5", "w6"), (3, 4), 3)
    assert request == engine.CaptureRequest(["w5", "w6"], layers=[3, 4], seed=3)
    assert [type(layer) for layer in request.layers] == [int, int]  # type: ignore[union-attr]
    assert engine.CaptureRequest("w5", layers=(number for number in (3, 4))).layers == (3, 4)


def test_by_default_one_prompt_keeps_all_tokens_and_several_the_last() -> None:
    kept = [engine.CaptureRequest(source).kept.text for source in ("w5", ["w5"], ["w5", "w6"])]
    assert kept == ["all", "last", "last"]
    assert engine.CaptureRequest("w5", positions=-2).kept.text == "-2"


def test_a_request_without_paths_is_not_saved(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RequestError, match="does not say where to save"):
        engine.capture_and_save(tiny_llama, tiny_tokenizer, engine.CaptureRequest("w5"))


def test_a_file_that_was_emptied_is_named(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("w5\n")
    request = engine.CaptureRequest(open_prompts(file), paths=locate(tmp_path / "it"))
    file.write_text("")
    with pytest.raises(RequestError, match=r"prompts\.txt contains no prompts"):
        engine.capture_and_save(tiny_llama, tiny_tokenizer, request)


def test_processes_share_shards_alone(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    request = engine.CaptureRequest(["w5", "w6"], paths=locate(tmp_path / "it"))
    with pytest.raises(RequestError, match="one file, which 2 processes cannot share"):
        engine.capture_and_save(tiny_llama, tiny_tokenizer, request, processes=Processes(1, 2, 1))
    assert not [*tmp_path.iterdir()]


LONG = "w3 " * 65


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "q.txt",
            f"w5\n\n{LONG}\n",
            r"the prompt in \S*q\.txt, line 3 \('w3 .* has 65 tokens, more than the model's 64",
        ),
        ("q.csv", f"prompt\nw5\n{LONG}\n", r"the prompt in \S*q\.csv, line 3 \('w3 "),
        (
            "p.jsonl",
            f'{{"positive": "w5", "negative": "w6"}}\n{{"positive": "w5", "negative": "{LONG}"}}',
            r"the negative prompt in \S*p\.jsonl, line 2 \('w3 ",
        ),
        (
            "p.jsonl",
            f'\n{{"positive": "w5", "negative": "w6", "positive_response": "{LONG}", "negative_response": "w7"}}',
            r"the positive prompt in \S*p\.jsonl, line 2 \('w5'\), with its response, has 66 tokens",
        ),
        (
            "p.jsonl",
            '{"positive": "w5", "negative": "w6"}\n{"positive": "w5 w6", "negative": "w5  w6"}',
            r"the pair in \S*p\.jsonl, line 2 has two prompts with the same tokens",
        ),
    ],
)
def test_errors_name_the_line(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    name: str,
    content: str,
    said: str,
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CaptureError, match=said):
        engine.prepare_capture(tiny_llama, tiny_tokenizer, engine.CaptureRequest(open_texts(tmp_path / name)))


def test_errors_name_the_item_of_a_concept(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = tmp_path / "loudness.toml"
    file.write_text(concept_text("loudness").replace('"w20 w21"', f'"{LONG}"'))
    with pytest.raises(CaptureError) as caught:
        engine.prepare_capture(tiny_llama, tiny_tokenizer, engine.CaptureRequest(engine.load_concept(file)))
    named = r"positive prompt \d+ of loudness, persona 'voice \d', template '(plain|other)', topic 'w3 w3 "
    assert re.match(named, str(caught.value))
    assert "more than the model's 64" in str(caught.value)


def test_a_single_prompt_has_no_number(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def refused(source: str | list[str]) -> str:
        with pytest.raises(CaptureError) as caught:
            engine.prepare_capture(tiny_llama, tiny_tokenizer, engine.CaptureRequest(source))
        return str(caught.value)

    assert refused("").startswith("the prompt is empty. Expected: a text with at least one token")
    assert refused(["w5", ""]).startswith("prompt 1 is empty")
    said = r"('\n') has no tokens: it is only white space, which the tokenizer drops. Expected: a text with at least"
    assert refused("\n").startswith(f"the prompt {said}")
    assert refused(["w5", "\n"]).startswith(f"prompt 1 {said}")


@pytest.mark.parametrize(("tokens", "said"), [(64, "which leave no room for a response"), (60, "so that 5 tokens")])
def test_a_prompt_without_room_for_a_response_is_named(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, tokens: int, said: str
) -> None:
    (tmp_path / "q.txt").write_text("w5\n" + " ".join(["w6"] * tokens))
    request = engine.CaptureRequest(open_prompts(tmp_path / "q.txt"), respond=5)
    with pytest.raises(CaptureError, match=rf"q\.txt, line 2 \('w6 .* has {tokens} tokens, {said}"):
        engine.prepare_capture(tiny_llama, tiny_tokenizer, request)
