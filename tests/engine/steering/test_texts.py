"""Steered texts against a plain greedy loop and plain passes of the unsteered model."""

import copy
import math
from functools import partial
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import CaptureError, LayerscopeError, RequestError
from engine.records.captures import ContrastData
from engine.records.files import Direction
from engine.records.steering import SteeredText, SteeredTexts
from tests.conftest import Loaded, family_called
from tests.engine.steering.directions import hook_count, logits_of, patched
from tests.families import build

PROMPT = "w5 w60 w9"
IDS = [5, 60, 9]
LAYER = 1


@pytest.fixture
def data(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> ContrastData:
    positive = [f"w{20 + n} w{40 + n} w7" for n in range(8)]
    return engine.capture_contrastive_activations(
        tiny_llama, tiny_tokenizer, positive, [f"{text} w8" for text in positive], positions="last"
    )


@pytest.fixture
def direction(data: ContrastData) -> Direction:
    return engine.extract_direction(data, LAYER)


def greedy(model: PreTrainedModel, number: int) -> list[int]:
    """New tokens of a greedy loop without a cache, up to the end of text."""
    ids = list(IDS)
    while len(ids) < len(IDS) + number and ids[-1] != 2:
        ids.append(int(logits_of(model, torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(IDS) :]


def measured(model: PreTrainedModel, new: list[int], direction: Direction) -> tuple[float, list[float]]:
    """Perplexity and projections of new tokens, from a plain pass of the unsteered model."""
    ids = torch.tensor([[*IDS, *new]])
    with torch.no_grad():
        output = model(ids, output_hidden_states=True, use_cache=False)
    chances = output.logits[0].log_softmax(-1)
    losses = [-float(chances[len(IDS) - 1 + place, token]) for place, token in enumerate(new)]
    states: Tensor = output.hidden_states[direction["layer"] + 1][0, len(IDS) :]
    gap = direction["positive_mean"] - direction["negative_mean"]
    values = (states @ direction["vector"] - direction["negative_mean"]) / gap
    return math.exp(sum(losses) / len(losses)), values.tolist()


def words(new: list[int]) -> str:
    return " ".join(f"w{token}" for token in new)


def test_the_texts_and_their_measurements(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData, direction: Direction
) -> None:
    texts = engine.steer_text(
        tiny_llama, tiny_tokenizer, direction, PROMPT, strengths=[0.5, -2], data=data, chat=False, max_new_tokens=6
    )
    assert [(text["kind"], text["strength"]) for text in (*texts["steered"], *texts["controls"])] == [
        ("steered", 0.5),
        ("steered", -2.0),
        ("control", 0.5),
        ("control", -2.0),
    ]

    def require(text: SteeredText, new: list[int]) -> None:
        perplexity, projections = measured(tiny_llama, new, direction)
        assert (text["text"], text["tokens"]) == (words(new), len(new))
        assert text["perplexity"] == pytest.approx(perplexity, rel=1e-4)
        assert text["projections"] == pytest.approx(projections, rel=1e-3, abs=1e-3)
        assert text["projection"] == pytest.approx(sum(projections) / len(new), rel=1e-3, abs=1e-3)
        assert (text["token_ids"], text["token_texts"]) == (new, [f"w{token}" for token in new])
        shift = text["projection"] - texts["baseline"]["projection"]
        assert text["shift"] == pytest.approx(shift)

    require(texts["baseline"], greedy(tiny_llama, 6))
    for text in texts["steered"]:
        assert text["strength"] is not None
        pushed = text["strength"] * direction["norm"] * direction["vector"]
        with patched(tiny_llama, LAYER, partial(torch.add, pushed)):
            new = greedy(tiny_llama, 6)
        require(text, new)
    assert len({text["text"] for text in (texts["baseline"], *texts["steered"])}) == 3
    assert texts["unit_length"] == direction["norm"]
    assert -1 < texts["control_cosine"] < 1
    assert texts["warnings"] == []


def test_the_control_adds_a_random_vector_of_the_same_length(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData, direction: Direction
) -> None:
    from engine.steering.controls import random_directions

    (control,) = random_directions(data, direction, 1, seed=7)
    texts = engine.steer_text(
        tiny_llama, tiny_tokenizer, direction, PROMPT, strengths=[2], unit="gap", data=data, seed=7, chat=False,
        max_new_tokens=6,
    )  # fmt: skip
    gap = direction["positive_mean"] - direction["negative_mean"]
    with patched(tiny_llama, LAYER, lambda states: states + 2 * gap * control["vector"]):
        assert texts["controls"][0]["text"] == words(greedy(tiny_llama, 6))
    assert texts["unit_length"] == pytest.approx(gap)


def test_the_baseline_of_an_earlier_result_is_measured_again_but_not_written_again(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data: ContrastData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directions = engine.extract_directions(data)
    generate = Mock(wraps=tiny_llama.generate)
    monkeypatch.setattr(tiny_llama, "generate", generate)

    def write(**options: Any) -> SteeredTexts:
        given: dict[str, Any] = {"prompt": PROMPT, "layer": LAYER, "strengths": [0.5], "max_new_tokens": 6} | options
        generate.reset_mock()
        return engine.steer_text(tiny_llama, tiny_tokenizer, directions, data=data, chat=False, **given)

    first = write()
    assert generate.call_count == 3
    same: list[dict[str, Any]] = [{"strengths": [-2.0]}, {"layer": 2}, {"seed": 3}, {"unit": "gap"}]
    for change in same:
        fresh = write(**change)
        assert write(earlier=first, **change) == fresh
        assert generate.call_count == 2
    assert fresh["baseline"] == first["baseline"]
    assert write(layer=2)["baseline"]["projections"] == pytest.approx(
        measured(tiny_llama, greedy(tiny_llama, 6), directions[2])[1], rel=1e-3, abs=1e-3
    )
    others: list[dict[str, Any]] = [{"prompt": "w5 w9"}, {"max_new_tokens": 5}, {"sample": True}]
    for change in others:
        write(earlier=first, **change)
        assert generate.call_count == 3
    sampled = write(sample=True, seed=1)
    write(sample=True, seed=2, earlier=sampled)
    assert generate.call_count == 3


def test_ablation(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData, direction: Direction
) -> None:
    texts = engine.steer_text(
        tiny_llama, tiny_tokenizer, {LAYER: direction}, PROMPT, ablation=True, data=data, chat=False, max_new_tokens=6
    )
    vector = direction["vector"]
    with patched(tiny_llama, LAYER, lambda states: states - (states @ vector)[..., None] * vector):
        assert texts["steered"][0]["text"] == words(greedy(tiny_llama, 6))
    assert [text["kind"] for text in (*texts["steered"], *texts["controls"])] == ["ablated", "control"]
    assert "unit_length" not in texts


def test_samples_repeat_with_their_seed_and_leave_the_generator_alone(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, direction: Direction
) -> None:
    def sampled(seed: int) -> str:
        texts = engine.steer_text(
            tiny_llama, tiny_tokenizer, direction, PROMPT, strengths=[0.5], chat=False, sample=True, seed=seed
        )
        return texts["steered"][0]["text"]

    state = torch.get_rng_state()
    assert sampled(1) == sampled(1) != sampled(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert hook_count(tiny_llama) == 0


def test_an_end_of_text_is_not_counted(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, direction: Direction
) -> None:
    first, second = greedy(tiny_llama, 2)
    settings: Any = tiny_llama.generation_config
    settings.eos_token_id = [second, 2]
    text = engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, strengths=[0], chat=False)["baseline"]
    assert (text["text"], text["tokens"], text["ended"]) == (words([first]), 1, True)
    assert text["perplexity"] == pytest.approx(measured(tiny_llama, [first], direction)[0], rel=1e-4)


def test_progress_counts_tokens_and_an_error_in_it_stops_the_writing(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, direction: Direction
) -> None:
    told: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"chat": False, "max_new_tokens": 3}
    engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, steps=lambda *said: told.append(said), **options)
    assert told == [(f"writing: {kind}", done, 6) for kind, done in (
        *[("baseline", done) for done in range(4)], *[("steered", done) for done in range(3, 7)]
    )]  # fmt: skip

    def stop(_step: str, done: int, _total: int) -> None:
        if done == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, steps=stop, **options)
    assert hook_count(tiny_llama) == 0


def test_what_limits_the_comparison_is_said(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, data: ContrastData, direction: Direction
) -> None:
    direction["provenance"] = None
    texts = engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, max_new_tokens=2)
    said = " ".join(texts["warnings"])
    assert "have no provenance" in said
    assert "no chat template" in said
    assert "no control" in said
    assert texts["controls"] == []
    del data["positive"][0]["activations"][LAYER]
    data["layers"].remove(LAYER)
    texts = engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, data=data, max_new_tokens=2)
    assert "the pairs do not have layer 1" in " ".join(texts["warnings"])


@pytest.mark.parametrize("sample", [False, True])
def test_a_strength_that_overflows_is_marked_and_loses_no_other(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data: ContrastData,
    direction: Direction,
    sample: bool,
) -> None:
    options: dict[str, Any] = {"data": data, "chat": False, "sample": sample, "strengths": [0.5]}

    def overflow(states: Tensor) -> Tensor:  # as half precision may in a later block
        return states.where(states.norm() < 1e3, torch.inf)

    with patched(tiny_llama, LAYER + 1, overflow):
        alone = engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, **options)
        options["strengths"] = [-5000, 0.5, 1e30]
        found = engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, **options)
        options["strengths"] = [-5000, 4000]
        with pytest.raises(RequestError, match="not finite when steered by 4000 along the direction"):
            engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, **options)
    assert hook_count(tiny_llama) == 0
    assert (found["baseline"], found["steered"][1], found["controls"][1]) == (
        alone["baseline"],
        *alone["steered"],
        *alone["controls"],
    )
    marked = [text for text in (*found["steered"], *found["controls"]) if "problem" in text]
    assert [text["strength"] for text in marked] == [-5000, 1e30] * 2
    assert [text["problem"] for text in marked] == [
        "the predictions are not finite when steered by -5000 along the direction",
        "a strength of 1e+30 at layer 1 overflows in float32",
        "the predictions are not finite when steered by -5000 along a random direction",
        "the predictions are not finite when steered by 1e+30 along a random direction",
    ]
    assert found["warnings"][-4:] == [text["problem"] for text in marked]
    for text in marked:
        assert (text["text"], text["tokens"], text["projections"]) == ("", 0, [])
        assert all(math.isnan(text[measure]) for measure in ("perplexity", "projection", "shift"))
    assert "problem" not in found["baseline"]
    assert b'"perplexity":null' in msgspec.json.encode(marked[0])


def test_a_strength_that_overflows_is_refused_before_any_text_is_written(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, direction: Direction
) -> None:
    steps, strengths = Mock(), [2e30, -1e30]
    with pytest.raises(RequestError, match="a strength of -1e\\+30 at layer 1 overflows"):
        engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, strengths=strengths, steps=steps)
    steps.assert_not_called()
    assert hook_count(tiny_llama) == 0


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [(torch.float32, "use another model"), (torch.float16, "load it with dtype='float32'")],
    ids=str,
)
def test_less_steering_is_advised_only_if_steered_by_a_strength(
    tiny_tokenizer: PreTrainedTokenizerFast, direction: Direction, dtype: torch.dtype, advice: str
) -> None:
    model = build(family_called("llama"))
    nn.Module.to(model, dtype)
    direction["provenance"] = None
    earlier = engine.steer_text(model, tiny_tokenizer, direction, PROMPT, max_new_tokens=2)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)
    for known, how in ((None, "without steering"), (earlier, "without the direction")):
        with pytest.raises(RequestError, match=f"not finite {how}.*Next: {advice}"):
            engine.steer_text(model, tiny_tokenizer, direction, PROMPT, ablation=True, max_new_tokens=2, earlier=known)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strengths": [1e30]}, "a strength of 1e\\+30 at layer 1 overflows in float32"),
        ({"strengths": []}, "there is no strength to steer with"),
        ({"strengths": 0.1}, "the strengths cannot be 0.1"),
        ({"layer": 9}, r"there is no direction at layer 9. Expected: one of \[1\]"),
        ({"max_new_tokens": 0}, "the number of new tokens cannot be 0"),
        ({"max_new_tokens": 100}, "the prompt has 3 tokens, so that 100 tokens of a response exceed the model's 64"),
        ({"seed": -1}, "the seed cannot be -1"),
        ({"unit": "meters"}, "the unit cannot be 'meters'"),
        ({"tokens": "some"}, "tokens cannot be 'some'"),
    ],
)
def test_invalid_arguments_are_refused(
    tiny_llama: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    direction: Direction,
    options: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(LayerscopeError, match=said):
        engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, **options)


@pytest.mark.parametrize(
    "own", [{"return_dict_in_generate": True}, {"num_return_sequences": 2}, {"num_beams": 3}, {"use_cache": False}]
)
def test_settings_of_the_model_change_neither_the_number_nor_the_form_of_texts(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, direction: Direction, own: dict[str, Any]
) -> None:
    before = engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, max_new_tokens=4)
    for name, value in own.items():
        setattr(tiny_llama.generation_config, name, value)
    after = engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, max_new_tokens=4)
    assert [text["text"] for text in after["steered"]] == [text["text"] for text in before["steered"]]


def test_a_text_ends_where_a_response_does(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, direction: Direction
) -> None:
    """A model that names no end token ends at its tokenizer's; settings that texts cannot follow are refused."""
    free = engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT, max_new_tokens=6)["baseline"]
    tiny_llama.generation_config.eos_token_id = None
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = free["text"].split()[2]
    ended = engine.steer_text(tiny_llama, tokenizer, direction, PROMPT, max_new_tokens=6)["baseline"]
    assert (ended["text"].split(), ended["ended"]) == (free["text"].split()[:2], True)
    tiny_llama.generation_config.stop_strings = ["w5"]
    with pytest.raises(RequestError, match="generation settings have stop_strings"):
        engine.steer_text(tiny_llama, tiny_tokenizer, direction, PROMPT)


def test_an_empty_prompt_is_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, direction: Direction
) -> None:
    with pytest.raises(CaptureError, match="is empty"):
        engine.steer_text(tiny_llama, tiny_tokenizer, direction, "", chat=False)


def test_the_prompt_goes_through_the_chat_template(smollm2: Loaded) -> None:
    contrast = engine.capture_from_concept(*smollm2, "honesty", layers=[16], max_samples=8, positions="last")
    direction = engine.extract_direction(contrast, 16)
    texts = engine.steer_text(*smollm2, direction, "Who broke it?", data=contrast, max_new_tokens=3)
    assert texts["rendered"].endswith("<|im_start|>user\nWho broke it?<|im_end|>\n<|im_start|>assistant\n")
    raw = engine.steer_text(*smollm2, direction, "Who broke it?", chat=False, max_new_tokens=3)
    assert raw["rendered"] == "Who broke it?"
    assert raw["baseline"]["text"] != texts["baseline"]["text"]
    assert texts["warnings"] == []
