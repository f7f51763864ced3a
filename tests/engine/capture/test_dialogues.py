"""States of responses, given or generated, against plain forward passes over prompt and response."""

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.activations import capture_in_memory
from engine.capture.request import CaptureRequest, written_pairs
from engine.capture.responses import generate_responses
from engine.errors import CaptureError, LayerscopeError, RequestError
from engine.records.captures import ActivationData, ContrastData, ResponseText
from engine.store.names import locate
from tests.conftest import family_called
from tests.engine.capture.test_families import plain_states
from tests.families import build

POSITIVE = ["w5 w17 w99 w23", "w7 w8 w9 w50 w12 w13", "w101 w40"]
NEGATIVE = ["w6 w17 w99 w23", "w7 w3 w9 w50 w12 w13", "w102 w40"]
SAID = ["w64 w31", "w90", "w33 w34 w35 w36"]
REPLIED = ["w70 w71 w72", "w91 w92", "w61"]
LAYER = 1


def ids_of(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def state_rows(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """States of every token at the layer, `(tokens, hidden)`, from one plain pass."""
    return plain_states(model, ids)[0][LAYER][0]


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def given(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **how: Any) -> ContrastData:
    how = {"positive_responses": SAID, "negative_responses": REPLIED} | how
    return engine.capture_contrastive_activations(model, tokenizer, POSITIVE, NEGATIVE, [LAYER], **how)


def response_of(data: ActivationData) -> ResponseText:
    response = data["response"]
    assert not isinstance(response, list)
    return response


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_positions_of_a_response_equal_a_plain_pass_over_prompt_and_response(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(family_called(name))
    by_position = {
        positions: given(model, tiny_tokenizer, positions=positions)
        for positions in (None, "response", "response:all", "response:last", "last")
    }
    for side, prompts, responses in (("positive", POSITIVE, SAID), ("negative", NEGATIVE, REPLIED)):
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids = ids_of(prompt) + ids_of(response)
            own = state_rows(model, ids)[len(ids_of(prompt)) :]
            wanted = {
                None: own.mean(0, keepdim=True),
                "response": own.mean(0, keepdim=True),
                "response:all": own,
                "response:last": own[-1:],
                "last": own[-1:],
            }
            for positions, expected in wanted.items():
                one: ActivationData = dict(by_position[positions])[side][number]  # type: ignore[index]
                assert close(one["activations"][LAYER][0], expected)
                assert one["input_ids"].tolist() == [ids]
                assert one["tokens"] == f"{prompt} {response}".split()
                assert one["prompt"] == prompt
                assert response_of(one) == ResponseText(text=response, tokens=len(response.split()), ended=None)
    assert by_position[None]["provenance"]["positions"] == "response"
    assert by_position[None]["positive"][0]["activations"][LAYER].dtype == torch.float32
    assert by_position[None]["provenance"].get("responses") == {
        "origin": "given",
        "max_new_tokens": None,
        "sampled": False,
        "seed": None,
        "settings": "",
    }


@pytest.mark.parametrize("sample", [False, True])
def test_generated_responses_are_those_of_the_model(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, sample: bool
) -> None:
    data = engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, POSITIVE, NEGATIVE, [LAYER], respond=6, sample=sample, seed=7
    )
    prompts = [text for pair in zip(POSITIVE, NEGATIVE, strict=True) for text in pair]
    expected = generate_responses(
        tiny_llama, tiny_tokenizer, [ids_of(text) for text in prompts], 6, sample=sample, seed=7
    )
    pairs = zip(data["positive"], data["negative"], strict=True)
    for prompt, new, one in zip(prompts, expected, (one for pair in pairs for one in pair), strict=True):
        assert one["input_ids"][0].tolist() == ids_of(prompt) + new.ids
        text = " ".join(tiny_tokenizer.convert_ids_to_tokens(new.ids))
        assert response_of(one) == ResponseText(text=text, tokens=len(new.ids), ended=new.ended)
        own = state_rows(tiny_llama, ids_of(prompt) + new.ids)[len(ids_of(prompt)) :]
        assert close(one["activations"][LAYER][0, 0], own.mean(0))
    assert data["provenance"].get("responses") == {
        "origin": "generated",
        "max_new_tokens": 6,
        "sampled": sample,
        "seed": 7 if sample else None,
        "settings": "temperature 1.0, top_k 50, top_p 1.0" if sample else "",
    }


def test_generated_responses_that_are_given_again_have_the_same_states(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    one = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, POSITIVE, NEGATIVE, respond=5)
    texts = [[response_of(data)["text"] for data in side] for side in (one["positive"], one["negative"])]
    two = engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, POSITIVE, NEGATIVE, positive_responses=texts[0], negative_responses=texts[1]
    )
    for first, second in zip(one["positive"] + one["negative"], two["positive"] + two["negative"], strict=True):
        assert torch.equal(first["input_ids"], second["input_ids"])
        for layer, states in first["activations"].items():
            assert torch.equal(states, second["activations"][layer])


def test_several_prompts_and_a_single_one(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    batch = engine.capture_activations(tiny_llama, tiny_tokenizer, POSITIVE, [LAYER], respond=4, positions="all")
    mean = engine.capture_activations(tiny_llama, tiny_tokenizer, POSITIVE, [LAYER], respond=4)
    assert mean["activations"][LAYER].shape == (3, 1, 32)
    for row, prompt in enumerate(POSITIVE):
        single = engine.capture_activations(tiny_llama, tiny_tokenizer, prompt, [LAYER], respond=4)
        assert response_of(single) == cast("list[ResponseText]", batch["response"])[row]
        assert close(mean["activations"][LAYER][row], single["activations"][LAYER][0])
        ids = single["input_ids"][0].tolist()
        assert ids[: len(prompt.split())] == ids_of(prompt)
        assert close(batch["activations"][LAYER][row, -len(ids) :], state_rows(tiny_llama, ids))


def test_an_empty_response_is_read_at_the_last_token_of_its_prompt(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = generate_responses(tiny_llama, tiny_tokenizer, [ids_of(POSITIVE[0])], 1)
    assert tiny_llama.generation_config is not None
    tiny_llama.generation_config.eos_token_id = first.ids[0]
    for positions in ("response", "response:all", "response:last"):
        with caplog.at_level(logging.WARNING, "engine"):
            data = engine.capture_activations(
                tiny_llama, tiny_tokenizer, POSITIVE[0], [LAYER], respond=4, positions=positions
            )
        assert response_of(data) == ResponseText(text="", tokens=0, ended=True)
        assert close(data["activations"][LAYER][0], state_rows(tiny_llama, ids_of(POSITIVE[0]))[-1:])
    assert "1 of 1 responses are empty: the last token of the prompt stands for each of them" in caplog.text


def test_one_prompt_may_have_two_responses(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, POSITIVE, POSITIVE, positive_responses=SAID, negative_responses=REPLIED
    )
    assert data["num_pairs"] == 3
    with pytest.raises(CaptureError, match="both classes have identical prompts"):
        engine.capture_contrastive_activations(
            tiny_llama, tiny_tokenizer, POSITIVE, POSITIVE, positive_responses=SAID, negative_responses=SAID
        )


def test_special_tokens_are_added_to_the_prompt_and_not_to_the_response(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    from tokenizers.processors import TemplateProcessing

    backend = type(tiny_tokenizer.backend_tokenizer).from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    ending = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")  # noqa: S106
    data = given(tiny_llama, ending)
    assert data["positive"][1]["input_ids"].tolist() == [[1, *ids_of(POSITIVE[1]), 2, 90]]


def test_tokens_beyond_the_vocabulary_of_the_tokenizer_have_a_name(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Embeddings are often padded to a round number, and nothing keeps a model from generating such an id."""
    (first,) = generate_responses(tiny_llama, tiny_tokenizer, [[3]], 1)
    backend = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    backend["model"]["vocab"] = {word: one for word, one in backend["model"]["vocab"].items() if one not in first.ids}
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    smaller = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    request = CaptureRequest(written_pairs(["w3"], ["w4"]), respond=1, shards=True, paths=locate("mine", tmp_path))
    engine.capture_and_save(tiny_llama, smaller, request)
    (shard,) = engine.open_shards("mine", store=tmp_path)
    assert shard.tokens[0] == ["w3", f"<token {first.ids[0]}>"]
    assert shard.responses is not None
    assert shard.responses[0] == ResponseText(text="", tokens=1, ended=False)


@pytest.mark.parametrize(("name", "value"), [("repetition_penalty", 1.5), ("temperature", 0.5)])
def test_generation_settings_are_in_the_provenance(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, name: str, value: float
) -> None:
    setattr(tiny_llama.generation_config, name, value)
    data = engine.capture_activations(tiny_llama, tiny_tokenizer, POSITIVE[0], [LAYER], respond=2)
    assert dict(data["provenance"].get("responses", {}))["settings"] == f"{name} {value}"


def test_steps_name_the_responses(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prepared = engine.prepare_capture(tiny_llama, tiny_tokenizer, CaptureRequest(POSITIVE, respond=3))
    told: list[tuple[str, int, int]] = []
    capture_in_memory(prepared, lambda done, total: told.append(("run", done, total)), lambda *s: told.append(s))
    assert told[0] == ("generating responses", 0, 3)
    assert ("generating responses", 3, 3) in told
    assert told[-1] == ("run", 3, 3)
    assert [name for name, *_ in told] == sorted((name for name, *_ in told), key="generating responses run".find)


def test_progress_stops_the_responses(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.capture_activations(tiny_llama, tiny_tokenizer, POSITIVE, respond=3, progress=stop)


ANSWERED = written_pairs(POSITIVE, NEGATIVE, None, SAID, REPLIED)


@pytest.mark.parametrize(
    ("source", "how", "error", "said"),
    [
        (POSITIVE, {"positions": "response"}, RequestError, "positions 'response' need responses.*pass respond=60"),
        ("w5", {"positions": "response:all"}, RequestError, "positions 'response:all' need responses"),
        (POSITIVE, {"respond": 0}, RequestError, "the number of tokens of a response cannot be 0"),
        (POSITIVE, {"sample": True}, RequestError, "sampling applies only to responses of the model"),
        (POSITIVE, {"respond": 3, "sample": True, "seed": -1}, RequestError, "the seed cannot be -1"),
        (ANSWERED, {"respond": 3}, RequestError, "the prompts already have responses"),
        (POSITIVE, {"respond": 60}, CaptureError, r"prompt 1 .* has 6 tokens, so that 60 tokens .* the model's 64"),
        (
            POSITIVE,
            {"respond": 9, "positions": "4"},
            RequestError,
            r"prompt 0 .* has 4 tokens, so positions '4' do not",
        ),
    ],
)
def test_refused_before_the_model_responds(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    source: Any,
    how: dict[str, Any],
    error: type[LayerscopeError],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        engine.prepare_capture(tiny_llama, tiny_tokenizer, CaptureRequest(source, **how))


@pytest.mark.parametrize(
    ("responses", "said"),
    [
        ({"positive_responses": SAID}, "there are 3 pairs, 3 positive and 0 negative responses"),
        ({"positive_responses": SAID, "negative_responses": REPLIED[1:]}, "3 positive and 2 negative responses"),
        (
            {"positive_responses": SAID, "negative_responses": [*REPLIED[1:], ""]},
            "response to negative prompt 2.*empty",
        ),
        ({"positive_responses": SAID, "negative_responses": [*REPLIED[1:], " "]}, "negative prompt 2 .* has no tokens"),
        (
            {"positive_responses": ["w5 " * 61, *SAID[1:]], "negative_responses": REPLIED},
            "positive prompt 0 .*, with its response, has 65 tokens, more than the model's 64",
        ),
        ({"positive_responses": SAID, "negative_responses": ["\ud83d", *SAID[1:]]}, "contains a lone surrogate"),
        ({"positive_responses": SAID, "negative_responses": [3, *SAID[1:]]}, "negative response 0 is a number"),
    ],
)
def test_given_responses_that_are_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, responses: dict[str, Any], said: str
) -> None:
    with pytest.raises(CaptureError, match=said):
        engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, POSITIVE, NEGATIVE, **responses)


def test_the_estimate_is_an_upper_bound(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    def told(**how: Any) -> Any:
        prepared = engine.prepare_capture(tiny_llama, tiny_tokenizer, CaptureRequest(POSITIVE, layers=[0], **how))
        return engine.estimate_capture(prepared, timed=True)

    estimate = told(respond=6, positions="response:all")
    assert (estimate["prompts"], estimate["tokens"]) == (3, 12 + 18)
    assert estimate["bytes"] == 18 * 32 * 4
    assert estimate["seconds"] > 0
    assert told(respond=6)["bytes"] == 3 * 32 * 4
    data = engine.capture_activations(tiny_llama, tiny_tokenizer, POSITIVE, [0], respond=6, positions="response:all")
    assert data["attention_mask"].sum() * 32 * 4 <= estimate["bytes"]


def test_baselines_see_the_responses(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Words that only the responses differ in separate the classes without the model."""
    prompts = [f"w{20 + n} w{40 + n}" for n in range(12)]
    data = engine.capture_contrastive_activations(
        tiny_llama,
        tiny_tokenizer,
        prompts,
        [f"w6 {text}" for text in prompts],
        [LAYER],
        positive_responses=[f"w{60 + n} w100" for n in range(12)],
        negative_responses=[f"w{60 + n} w101" for n in range(12)],
        positions="response:last",
    )
    checks = {check["what"]: check for check in engine.find_confounds(data)["checks"]}
    assert "w100" in checks["all words"]["detail"]
    assert checks["token read"]["auroc"] == 1.0
