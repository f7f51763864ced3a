"""Answers of a batch against those of `generate` to each prompt alone."""

import logging
from typing import cast

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from engine.capture import responses
from engine.capture.batches import Limits
from engine.capture.responses import Response, generate_responses, response_batches
from engine.errors import CaptureError, RequestError
from engine.runtime import MainMemory
from tests.engine.capture.test_passes import limit_memory
from tests.families import FAMILIES, Family, build, each_of

PROMPTS = [[5, 17, 99, 23, 8, 64, 31], [7, 8, 9, 50], [101, 12, 13, 40, 6], [9, 9, 33, 7], [77, 3, 4, 5, 6]]
# xLSTM cannot generate with its cache in transformers, not even from one prompt.
ANSWERING = [family for family in FAMILIES if family.name != "xlstm"]
# Left padding, a short attention window, state spaces, and both attention and linear attention.
FAST = {"llama", "gemma2", "gpt2", "bloom", "opt_350m", "mixtral", "mamba", "qwen3_next"}
END = 2


def alone(model: PreTrainedModel, prompt: list[int], number: int, **options: object) -> Response:
    """The greedy answer to one prompt, from `generate`."""
    ids = torch.tensor([prompt])
    output = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=number,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    new = output[0, len(prompt) :].tolist()
    return Response(new[: new.index(END)], True) if END in new else Response(new, False)


@pytest.fixture(params=each_of(ANSWERING, FAST), scope="module")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny random model of each family."""
    return build(cast("Family", request.param))


def test_greedy_answers_equal_those_to_each_prompt_alone(
    model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = [alone(model, prompt, 12) for prompt in PROMPTS]
    assert generate_responses(model, tiny_tokenizer, PROMPTS, 12) == expected


def test_sampled_answers_do_not_depend_on_the_batch(
    model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    together = generate_responses(model, tiny_tokenizer, PROMPTS, 12, sample=True, seed=3)
    for number, prompt in enumerate(PROMPTS):
        single = generate_responses(model, tiny_tokenizer, [prompt], 12, sample=True, seed=3, first=number)
        assert single == [together[number]]
    assert together != generate_responses(model, tiny_tokenizer, PROMPTS, 12, sample=True, seed=4)


def test_tokens_are_drawn_with_the_probabilities_of_the_generation_settings(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = tiny_llama.generation_config
    assert settings is not None
    settings.temperature, settings.top_k = 2.0, 4
    draws = 4000
    answers = generate_responses(tiny_llama, tiny_tokenizer, [PROMPTS[0]] * draws, 1, sample=True, seed=1)
    with torch.no_grad():
        scores = tiny_llama(torch.tensor([PROMPTS[0]])).logits[0, -1] / 2.0
    best = scores.topk(4)
    chances = best.values.softmax(-1)
    drawn = [answer.ids[0] if answer.ids else END for answer in answers]
    assert set(drawn) == set(best.indices.tolist())
    for token, chance in zip(best.indices.tolist(), chances.tolist(), strict=True):
        spread = (chance * (1 - chance) / draws) ** 0.5
        assert abs(drawn.count(token) / draws - chance) < 5 * spread


def test_an_answer_stops_before_the_end_token(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = alone(tiny_llama, PROMPTS[1], 8).ids
    settings = tiny_llama.generation_config
    assert settings is not None
    settings.eos_token_id = [plain[3], plain[0]]
    answers = generate_responses(tiny_llama, tiny_tokenizer, [PROMPTS[0], PROMPTS[1]], 8)
    assert answers[1] == Response([], True)
    settings.eos_token_id = plain[3]
    answers = generate_responses(tiny_llama, tiny_tokenizer, [PROMPTS[0], PROMPTS[1]], 8)
    assert answers[1] == Response(plain[: plain.index(plain[3])], True)


@pytest.mark.parametrize(("name", "value"), [("repetition_penalty", 1.5), ("no_repeat_ngram_size", 2)])
def test_settings_that_look_back_do_not_see_padding(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, name: str, value: float
) -> None:
    setattr(tiny_llama.generation_config, name, value)
    expected = [alone(tiny_llama, prompt, 12) for prompt in PROMPTS]
    assert generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 12) == expected


def test_answers_under_a_cache_of_fixed_size_leave_the_model_alone(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = [alone(tiny_llama, prompt, 5) for prompt in PROMPTS]
    settings = tiny_llama.generation_config
    assert settings is not None
    settings.cache_implementation = "static"
    tiny_llama.train()
    before = set(vars(tiny_llama))
    torch.manual_seed(0)
    numbers = torch.rand(3)
    torch.manual_seed(0)
    assert generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 5) == expected
    assert generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 5, sample=True)
    assert torch.equal(torch.rand(3), numbers)
    assert set(vars(tiny_llama)) == before
    assert all(module.training for module in tiny_llama.modules())
    assert settings.cache_implementation == "static"


def test_batches_are_halved_until_they_fit(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [alone(tiny_llama, prompt, 6) for prompt in PROMPTS]
    generate_responses(tiny_llama, tiny_tokenizer, [[3]], 1)
    went = limit_memory(tiny_llama, 15, torch.OutOfMemoryError("CUDA out of memory"))
    told: list[int] = []
    with caplog.at_level(logging.INFO, "engine"):
        answers = generate_responses(
            tiny_llama, tiny_tokenizer, PROMPTS, 6, progress=lambda done, _total: told.append(done)
        )
    assert answers == expected
    assert "out of memory in a batch of 5 responses" in caplog.text
    assert 0 < max(went) <= 15
    assert (told[0], told[-1]) == (0, 5)
    assert told == sorted(told)


def test_a_prompt_that_does_not_fit_into_memory_is_a_readable_error(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    generate_responses(tiny_llama, tiny_tokenizer, [[3]], 1)
    limit_memory(tiny_llama, 1, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(CaptureError, match="memory does not suffice to respond to a single prompt of 7 tokens with 6"):
        generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 6)


def test_code_added_to_the_model_sees_one_prompt_at_a_time(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    sizes: set[int] = set()
    tiny_llama.model.layers[1].register_forward_hook(lambda _module, _args, output: sizes.add(len(output)))
    assert len(generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 3)) == 5
    assert sizes == {1}


def test_batch_size_and_progress(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    generate_responses(tiny_llama, tiny_tokenizer, [[3]], 1)
    went = limit_memory(tiny_llama, 10**9, RuntimeError())
    told: list[tuple[int, int]] = []
    answers = generate_responses(
        tiny_llama, tiny_tokenizer, PROMPTS, 4, limits=Limits(512, 2), progress=lambda *said: told.append(said)
    )
    sizes = [size for size in went if size <= 2]
    assert set(sizes) == {1, 2}
    assert told[0] == (0, 5)
    assert told[-1] == (5, 5)
    assert answers == generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 4)


def test_progress_can_stop_the_work_within_a_batch(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    told: list[int] = []

    def stop(done: int, _total: int) -> None:
        told.append(done)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 40, progress=stop)
    assert len(told) == 4
    assert generate_responses(tiny_llama, tiny_tokenizer, [PROMPTS[0]], 3) == [alone(tiny_llama, PROMPTS[0], 3)]


def test_refusals(tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CaptureError, match=r"prompt 7 has 7 tokens, .* exceed the model's 64.*at most 57 tokens"):
        generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 58, first=7)
    for number in (0, -1, 1.5, True):
        with pytest.raises(RequestError, match="the number of new tokens cannot be"):
            generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, number)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="the seed cannot be -1"):
        generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 3, sample=True, seed=-1)
    assert generate_responses(tiny_llama, tiny_tokenizer, [], 3) == []


@pytest.mark.parametrize(("name", "value"), [("stop_strings", ["w5"]), ("penalty_alpha", 0.6), ("dola_layers", "low")])
def test_settings_that_responses_would_not_follow_are_refused(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, name: str, value: object
) -> None:
    setattr(tiny_llama.generation_config, name, value)
    with pytest.raises(RequestError, match=f"generation settings have {name}"):
        generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 3)


def test_own_sampling_settings_are_no_warning_if_nothing_is_sampled(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the settings of most chat models are."""
    before = generate_responses(tiny_llama, tiny_tokenizer, [[5, 6, 7]], 4)
    for name, value in {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "do_sample": True}.items():
        setattr(tiny_llama.generation_config, name, value)
    assert generate_responses(tiny_llama, tiny_tokenizer, [[5, 6, 7]], 4) == before
    assert "generation flags" not in capfd.readouterr().err


def test_a_forced_first_token_is_forced_alike_in_a_batch(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_llama.generation_config.forced_bos_token_id = 9
    together = generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 3)
    assert together == [generate_responses(tiny_llama, tiny_tokenizer, [prompt], 3)[0] for prompt in PROMPTS]


def test_the_cache_of_a_batch_takes_a_part_of_main_memory(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the system kills a process that takes too much."""
    limits = Limits(512)
    assert len(response_batches(tiny_llama, PROMPTS, 10, limits)) == 1
    token = 2 * 4 * 32 * 4  # keys and values of four layers of width 32, in float32
    memory = MainMemory(8 * 34 * token, 0, limited=False)
    monkeypatch.setattr(responses, "main_memory", lambda: memory)
    assert [batch.prompts for batch in response_batches(tiny_llama, PROMPTS, 10, limits)] == [[0, 2], [4, 1], [3]]
