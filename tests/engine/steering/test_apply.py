"""Steering and ablation against blocks changed without hooks: values, tokens, nesting, errors, threads, refusals."""

import copy
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.errors import CaptureError, LayerscopeError, ModelError, RequestError
from engine.models.description import describe_model
from engine.models.structure import find_blocks
from engine.records.captures import Provenance
from engine.records.steering import Tokens
from tests.conftest import family_called
from tests.engine.steering.directions import NORM, direction_at, hook_count, logits_of, patched, some_ids
from tests.families import FAMILIES, WIDTH, Family, build, each_of

LAYER = 1
FAST = {"llama", "gpt2", "gemma3_text", "gemma3", "qwen2", "qwen3", "opt", "opt_350m", "bloom", "mixtral", "mamba"}
NO_PHASES = {"openai-gpt", "mpt", "xlstm"}  # no cache, none unless asked for, one that does not generate
PROMPTS = ["w3 w4 w5 w6 w7", "w3 w4 w5 w8 w9 w10", "w3 w4 w11"]  # with shared prefixes, so they would be packed


def added(strength: float = 0.5, seed: int = 0) -> Tensor:
    return strength * NORM * direction_at(LAYER, seed)["vector"].double().float()


def generate(model: PreTrainedModel, ids: Tensor, **options: Any) -> Any:
    """Output of a greedy generation of four tokens, with its logits."""
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    run: Any = model.generate
    return run(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **settings, **options)


def states_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """States after the layer in a plain pass."""
    with torch.no_grad():
        states: Tensor = model(input_ids=ids, output_hidden_states=True).hidden_states[LAYER + 1]
    return states


def generated(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """Logits of each new token, `(new tokens, batch, vocabulary)`."""
    return torch.stack(generate(model, ids, **options).logits)


# Values


@pytest.mark.parametrize("family", each_of(FAMILIES, FAST))
def test_it_adds_the_vector_to_the_output_of_the_block(family: Family) -> None:
    model, ids = build(family), some_ids()
    options = {"use_cache": False} if family.name == "xlstm" else {}  # its cache is for fused kernels
    plain = logits_of(model, ids, **options)
    with patched(model, LAYER, lambda states: states + added()):
        expected = logits_of(model, ids, **options)
    with engine.steer(model, direction_at(LAYER), 0.5):
        found = logits_of(model, ids, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)
    assert torch.equal(logits_of(model, ids, **options), plain)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_the_later_blocks_alone_give_the_same_logits(name: str) -> None:
    """Without a patch either: a copy of the later blocks runs on the states plus the vector."""
    model, ids = build(family_called(name)), some_ids()
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[LAYER + 1]
    rest = copy.deepcopy(model)
    rest.model.layers = rest.model.layers[LAYER + 1 :]
    with torch.no_grad():
        expected = rest(inputs_embeds=states + added(0.5), use_cache=False).logits
    with engine.steer(model, direction_at(LAYER), 0.5):
        torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("unit", "length"), [("norm", NORM), ("gap", 3.0), ("raw", 1.0)], ids=["norm", "gap", "raw"])
def test_units_of_strength(tiny_llama: PreTrainedModel, unit: Any, length: float) -> None:
    ids, direction = some_ids(), direction_at(LAYER)
    with patched(tiny_llama, LAYER, lambda states: states - 0.4 * length * direction["vector"]):
        expected = logits_of(tiny_llama, ids)
    with engine.steer(tiny_llama, direction, -0.4, unit=unit):
        torch.testing.assert_close(logits_of(tiny_llama, ids), expected, rtol=1e-5, atol=1e-5)


def test_the_default_strength_moves_a_state_by_a_tenth_of_the_norm(tiny_llama: PreTrainedModel) -> None:
    ids = some_ids()
    with engine.steer(tiny_llama, direction_at(LAYER), 0.1):
        expected = logits_of(tiny_llama, ids)
    with engine.steer(tiny_llama, direction_at(LAYER)):
        assert torch.equal(logits_of(tiny_llama, ids), expected)


def test_half_precision_is_added_in_float32() -> None:
    model, ids, vector = build(family_called("llama")), some_ids(), added(0.02)
    nn.Module.to(model, torch.bfloat16)
    with patched(model, LAYER, lambda states: (states.float() + vector).bfloat16()):
        expected = logits_of(model, ids)
    with patched(model, LAYER, lambda states: states + vector.bfloat16()):
        rounded = logits_of(model, ids)
    with engine.steer(model, direction_at(LAYER), 0.02):
        found = logits_of(model, ids)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert not torch.equal(found, rounded)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 3e18), (torch.bfloat16, 3e18), (torch.float16, 1e4)], ids=str
)
def test_a_strength_that_overflows_is_refused(dtype: torch.dtype, most: float) -> None:
    """The square of the length must not overflow in float32, nor any element in the model's dtype."""
    model, ids = build(family_called("llama")), some_ids()
    nn.Module.to(model, dtype)
    with engine.steer(model, direction_at(LAYER), most, unit="raw"):
        assert logits_of(model, ids).abs().max() > 0
    for strength in (-1e30, 3e38, 1e300, 20 * most):
        with pytest.raises(RequestError, match=f"a strength of {re.escape(f'{strength:g}')} at layer 1 overflows in"):
            engine.steer(model, direction_at(LAYER), strength, unit="raw").__enter__()
    assert hook_count(model) == 0


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [(torch.float32, "steer by less."), (torch.float16, "steer by less, or load the model with dtype='float32'")],
    ids=str,
)
def test_float32_is_advised_only_where_its_range_is_larger(dtype: torch.dtype, advice: str) -> None:
    model = build(family_called("llama"))
    nn.Module.to(model, dtype)
    with pytest.raises(RequestError, match=f"Next: {re.escape(advice)}"):
        engine.steer(model, direction_at(LAYER), 1e30, unit="raw").__enter__()


def test_a_capture_refuses_states_that_overflow_with_the_vector(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model, vector = build(family_called("llama")), torch.eye(WIDTH)[0]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 3e4
    nn.Module.to(model, torch.float16)
    with engine.steer(model, direction_at(LAYER, vector=vector), 6e4, unit="raw"):
        assert not states_of(model, some_ids()).isfinite().all()
        with pytest.raises(ModelError, match="the output of block 1 contains non-finite values"):
            engine.capture_activations(model, tiny_tokenizer, PROMPTS[0], [LAYER])


def test_a_strength_of_zero_changes_nothing_to_the_bit(tiny_llama: PreTrainedModel) -> None:
    ids = some_ids()
    plain, hooks = logits_of(tiny_llama, ids), hook_count(tiny_llama)
    with engine.steer(tiny_llama, direction_at(LAYER), 0.0):
        assert hook_count(tiny_llama) == hooks
        assert torch.equal(logits_of(tiny_llama, ids), plain)


def test_the_vector_of_several_directions_and_layers(tiny_llama: PreTrainedModel) -> None:
    ids = some_ids()
    vectors = {layer: direction_at(layer, seed=layer) for layer in (0, 2)}
    with (
        patched(tiny_llama, 0, lambda states: states + 0.5 * NORM * vectors[0]["vector"]),
        patched(tiny_llama, 2, lambda states: states + 0.5 * NORM * vectors[2]["vector"]),
    ):
        expected = logits_of(tiny_llama, ids)
    with engine.steer(tiny_llama, vectors, 0.5):
        torch.testing.assert_close(logits_of(tiny_llama, ids), expected, rtol=1e-5, atol=1e-5)
    with engine.steer(tiny_llama, [*vectors.values()], 0.5):
        torch.testing.assert_close(logits_of(tiny_llama, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "opt"])
def test_padding_does_not_matter(name: str, left: bool) -> None:
    model, rows = build(family_called(name)), [some_ids(1, 7)[0], some_ids(1, 4, seed=2)[0]]
    width = 7
    ids, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long)
    for row, one in enumerate(rows):
        place = slice(width - len(one), width) if left else slice(0, len(one))
        ids[row, place], mask[row, place] = one, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with engine.steer(model, direction_at(LAYER), 0.5):
        together = logits_of(model, ids, attention_mask=mask, position_ids=positions)
        for row, one in enumerate(rows):
            alone = logits_of(model, one[None])[0]
            torch.testing.assert_close(together[row][mask[row].bool()], alone, rtol=1e-3, atol=1e-4)


# Which tokens


@pytest.mark.parametrize("family", each_of(FAMILIES, FAST))
def test_generation_with_a_cache_equals_plain_passes_over_all_tokens(family: Family) -> None:
    if family.name == "xlstm":
        pytest.skip("transformers cannot generate with it")
    model, ids = build(family), some_ids(2, 6)
    with engine.steer(model, direction_at(LAYER), 0.5):
        output = generate(model, ids)
        for step, new in enumerate(output.logits):
            plain = logits_of(model, output.sequences[:, : 6 + step])
            torch.testing.assert_close(new, plain[:, -1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
@pytest.mark.parametrize("family", each_of([one for one in FAMILIES if one.name not in NO_PHASES], FAST))
def test_the_prompt_is_what_runs_while_the_cache_is_empty(family: Family, tokens: Tokens) -> None:
    """By a patch that looks at the number of tokens: generation runs them one at a time."""
    model, ids = build(family), some_ids(2, 6)
    layer = 0 if len(find_blocks(model).blocks) == 2 else LAYER  # later tokens do not see the last block's output

    def change(states: Tensor) -> Tensor:
        prompt = states.shape[-2] > 1
        return states + added() if prompt == (tokens == "prompt") else states

    with patched(model, layer, change):
        expected = generated(model, ids)
    plain = generated(model, ids)
    with engine.steer(model, direction_at(layer), 0.5, tokens=tokens):
        found = generated(model, ids)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(generated(model, ids), expected, rtol=1e-4, atol=1e-4)  # the next call begins anew
    assert torch.allclose(found[0], plain[0], atol=1e-5) == (tokens == "generated")
    assert not torch.allclose(found[1], plain[1], atol=1e-3)


def test_without_a_cache_only_all_tokens_are_allowed(tiny_llama: PreTrainedModel) -> None:
    with (
        engine.steer(tiny_llama, direction_at(LAYER), tokens="prompt"),
        pytest.raises(CaptureError, match=r"without a key-value cache.*Next: .*tokens='all'"),
    ):
        generated(tiny_llama, some_ids(), use_cache=False)
    model = build(family_called("openai-gpt"))
    with (
        pytest.raises(ModelError, match="has no key-value cache"),
        engine.steer(model, direction_at(LAYER), tokens="generated"),
    ):
        pass
    assert hook_count(model) == 0


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "mixtral"])
def test_a_captured_response_is_steered_as_it_was_generated(
    name: str, tokens: Tokens, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Against the states of `generate`, which runs the tokens of the response one at a time."""
    model, new = build(family_called(name)), 4
    model.generation_config.eos_token_id = None  # so that all have the same length
    ids = torch.tensor([tiny_tokenizer(PROMPTS[0])["input_ids"]])

    def change(states: Tensor) -> Tensor:
        prompt = states.shape[-2] > 1
        return states + added() if tokens == "all" or prompt == (tokens == "prompt") else states

    with patched(model, LAYER, change):
        written = generate(model, ids, output_hidden_states=True)
    steps = [states[LAYER + 1] for states in written.hidden_states]  # the prompt, then each new token but the last
    with engine.steer(model, direction_at(LAYER), 0.5, tokens=tokens):
        found = engine.capture_activations(
            model, tiny_tokenizer, PROMPTS[0], layers=[LAYER], positions="all", respond=new
        )
        plain = engine.capture_activations(model, tiny_tokenizer, PROMPTS[1], layers=[LAYER])
    assert torch.equal(found["input_ids"], written.sequences)
    states = found["activations"][LAYER]
    torch.testing.assert_close(states[:, :-1], torch.cat(steps, dim=1), rtol=1e-3, atol=1e-3)
    assert "is steered by 0.5" in str(found["provenance"].get("altered"))
    with patched(model, LAYER, lambda states: states + added() if tokens != "generated" else states):
        expected = states_of(model, plain["input_ids"])
    torch.testing.assert_close(plain["activations"][LAYER], expected, rtol=1e-4, atol=1e-4)


def test_a_capture_without_responses_warns_that_generated_tokens_are_none_of_it(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    with engine.steer(tiny_llama, direction_at(LAYER), 0.5, tokens="generated"):
        engine.capture_activations(tiny_llama, tiny_tokenizer, ["w5 w6", "w7"], respond=2)
        assert "changes no state" not in caplog.text
        engine.capture_activations(tiny_llama, tiny_tokenizer, ["w5 w6", "w7"])
    assert "steering of generated tokens changes no state here: these prompts have no responses" in caplog.text


def test_given_responses_are_steered_as_generated_ones(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def captured(positions: str) -> Tensor:
        data = engine.capture_contrastive_activations(
            tiny_llama, tiny_tokenizer, ["w3 w4"], ["w3 w5"], [LAYER], positions=positions,
            positive_responses=["w6 w7 w8"], negative_responses=["w9"],
        )  # fmt: skip
        return data["positive"][0]["activations"][LAYER]

    before = captured("all")
    with engine.steer(tiny_llama, direction_at(LAYER), 0.5, tokens="generated"):
        torch.testing.assert_close(captured("all")[:, :2], before[:, :2])
        torch.testing.assert_close(captured("all")[:, 2:], before[:, 2:] + added())
        torch.testing.assert_close(captured("response"), (before[:, 2:] + added()).mean(dim=1, keepdim=True))


# Ablation


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "opt"])
def test_ablation_leaves_no_projection(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model, direction = build(family_called(name)), direction_at(LAYER)
    vector = direction["vector"]
    before = engine.capture_activations(model, tiny_tokenizer, PROMPTS[0])["activations"]
    with engine.ablate(model, direction):
        states = engine.capture_activations(model, tiny_tokenizer, PROMPTS[0])["activations"]
    assert torch.equal(states[0], before[0])
    torch.testing.assert_close(states[LAYER], before[LAYER] - (before[LAYER] @ vector)[..., None] * vector)
    assert float((before[LAYER] @ vector).abs().max()) > 0.1
    assert float((states[LAYER] @ vector).abs().max()) < 1e-5 * float(before[LAYER].norm())
    assert not torch.allclose(states[LAYER + 1], before[LAYER + 1])


def test_directions_that_are_not_orthogonal_are_ablated_together(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    one, other = direction_at(LAYER, 0), direction_at(LAYER, 1)
    other["vector"] = (one["vector"] + other["vector"]) / (one["vector"] + other["vector"]).norm()
    with engine.ablate(tiny_llama, [one, other, one]):
        states = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS[0])["activations"][LAYER]
    for direction in (one, other):
        assert float((states @ direction["vector"]).abs().max()) < 1e-5 * float(states.norm())


# Contexts


def test_nested_contexts_add_up(tiny_llama: PreTrainedModel) -> None:
    ids = some_ids()
    with patched(tiny_llama, LAYER, lambda states: states + added(0.5, 0) + added(0.3, 1)):
        expected = logits_of(tiny_llama, ids)
    with engine.steer(tiny_llama, direction_at(LAYER, 0), 0.5):
        outer = logits_of(tiny_llama, ids)
        with engine.steer(tiny_llama, direction_at(LAYER, 1), 0.3):
            torch.testing.assert_close(logits_of(tiny_llama, ids), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(logits_of(tiny_llama, ids), outer)


def test_nested_contexts_act_in_the_order_in_which_they_were_entered(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    direction = direction_at(LAYER)
    with engine.steer(tiny_llama, direction, 0.5), engine.ablate(tiny_llama, direction):
        states = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS[0])["activations"][LAYER]
    assert float((states @ direction["vector"]).abs().max()) < 1e-4
    with engine.ablate(tiny_llama, direction), engine.steer(tiny_llama, direction, 0.5):
        states = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS[0])["activations"][LAYER]
    torch.testing.assert_close(states @ direction["vector"], torch.full((1, 5), 0.5 * NORM), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [engine.steer, engine.ablate])
def test_after_an_error_the_model_is_as_it_was(
    tiny_llama: PreTrainedModel, context: Callable[..., AbstractContextManager[None]]
) -> None:
    ids = some_ids()
    plain, hooks = logits_of(tiny_llama, ids), hook_count(tiny_llama)
    attributes = {name: set(vars(module)) for name, module in tiny_llama.named_modules()}
    with pytest.raises(KeyError), context(tiny_llama, [direction_at(0), direction_at(2)]):
        assert hook_count(tiny_llama) == hooks + 2
        raise KeyError
    assert hook_count(tiny_llama) == hooks
    assert {name: set(vars(module)) for name, module in tiny_llama.named_modules()} == attributes
    assert torch.equal(logits_of(tiny_llama, ids), plain)


def test_an_error_in_a_pass_leaves_the_next_pass_right(tiny_llama: PreTrainedModel) -> None:
    ids = some_ids()
    with engine.steer(tiny_llama, direction_at(LAYER), 0.5):
        expected = logits_of(tiny_llama, ids)
        with pytest.raises(IndexError):
            logits_of(tiny_llama, ids + 1000)
        assert torch.equal(logits_of(tiny_llama, ids), expected)


def test_threads_steer_one_model_at_the_same_time_without_mixing(tiny_llama: PreTrainedModel) -> None:
    """Each thread sees its own steering only; the last steers nothing."""
    ids, strengths = some_ids(), [0.5, -0.5, 1.0, None]
    plain = logits_of(tiny_llama, ids)
    expected = []
    for strength in strengths:
        with patched(tiny_llama, LAYER, partial(torch.add, added(strength or 0.0))):
            expected.append(logits_of(tiny_llama, ids) if strength else plain)
    together = Barrier(len(strengths), timeout=60)

    def work(strength: float | None) -> list[Tensor]:
        together.wait()
        if strength is None:
            return [logits_of(tiny_llama, ids) for _ in range(30)]
        found = []
        for _ in range(10):
            with engine.steer(tiny_llama, direction_at(LAYER), strength):
                found += [logits_of(tiny_llama, ids) for _ in range(3)]
        return found

    describe_model(tiny_llama)
    with ThreadPoolExecutor(len(strengths)) as pool:
        for found, right in zip(pool.map(work, strengths), expected, strict=True):
            assert all(torch.allclose(one, right, atol=1e-5) for one in found)
    assert torch.equal(logits_of(tiny_llama, ids), plain)


def test_a_capture_in_another_thread_is_not_steered(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS[0])
    with engine.steer(tiny_llama, direction_at(LAYER), 0.5), ThreadPoolExecutor(1) as pool:
        here = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS[0])
        there = pool.submit(engine.capture_activations, tiny_llama, tiny_tokenizer, PROMPTS[0]).result()
    assert "altered" not in there["provenance"]
    assert "altered" in here["provenance"]
    assert torch.equal(there["activations"][LAYER], plain["activations"][LAYER])
    assert not torch.equal(here["activations"][LAYER], plain["activations"][LAYER])


def test_steering_does_not_disturb_a_running_capture_in_another_thread(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A capture refuses a model that changes while it runs; steering in another thread is no such change."""
    plain = engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, batch_size=1)
    ids = some_ids()

    def capture() -> list[Any]:
        return [engine.capture_activations(tiny_llama, tiny_tokenizer, PROMPTS, batch_size=1) for _ in range(20)]

    with ThreadPoolExecutor(1) as pool:
        running, opened = pool.submit(capture), 0
        while not running.done() or opened < 2:
            with engine.steer(tiny_llama, direction_at(LAYER), 0.5):
                logits_of(tiny_llama, ids)
            opened += 1
        found = running.result()
    assert all("altered" not in one["provenance"] for one in found)
    assert all(torch.equal(one["activations"][3], plain["activations"][3]) for one in found)


# Captures


@pytest.mark.parametrize("use_hooks", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "qwen3", "opt"])
def test_a_capture_inside_sees_the_steered_states(
    name: str, use_hooks: bool, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Prompts with a shared prefix give the states of plain steered passes of each prompt."""
    model = build(family_called(name))
    with engine.steer(model, direction_at(LAYER), 0.5):
        data = engine.capture_contrastive_activations(
            model, tiny_tokenizer, PROMPTS, [f"{prompt} w12" for prompt in PROMPTS], use_hooks=use_hooks
        )
    for prompt, one in zip(PROMPTS, data["positive"], strict=True):
        ids = torch.tensor([[int(word[1:]) for word in prompt.split()]])
        with (
            patched(model, LAYER, lambda states: states + added()),
            torch.no_grad(),
        ):
            reported = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        for layer in (0, LAYER, LAYER + 1):
            torch.testing.assert_close(one["activations"][layer], reported[layer + 1], rtol=1e-4, atol=1e-4)
    assert data["provenance"]["altered"] == [
        f"{find_blocks(model).path}.{LAYER} is steered by 0.5 times the mean norm of the states along loudness"
        " (mean_diff) (all tokens)"
    ]
    after = engine.capture_activations(model, tiny_tokenizer, PROMPTS[0])["provenance"]
    assert "altered" not in after


def test_the_reported_hidden_states_are_the_steered_ones(tiny_llama: PreTrainedModel) -> None:
    """Also with hooks of transformers that were there before."""
    ids = some_ids()
    with torch.no_grad():
        plain = tiny_llama(ids, output_hidden_states=True).hidden_states
        with engine.steer(tiny_llama, direction_at(LAYER), 0.5):
            steered = tiny_llama(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(steered[LAYER + 1], plain[LAYER + 1] + added())


def test_weights_on_disk_are_steered_the_same(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    build(family_called("llama")).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    found = []
    for options in ({}, {"device_map": "auto", "max_memory": {"cpu": 0}}):
        model, _, _ = engine.load_model_and_tokenizer(str(tmp_path / "tiny"), **options)  # type: ignore[arg-type]
        with engine.steer(model, direction_at(LAYER), 0.5):
            found.append(logits_of(model, some_ids()))
    torch.testing.assert_close(found[1], found[0])


# Refusals


def provenance(site: str) -> Provenance:
    """Provenance of a capture of the tiny llama at another site."""
    known: Any = {"model": "LlamaForCausalLM", "site": site}  # nothing else is read
    return cast("Provenance", known)


def compiled(model: PreTrainedModel) -> None:
    find_blocks(model).blocks[0].compile()


@pytest.mark.parametrize(
    ("direction", "options", "said"),
    [
        ([], {}, "there are no directions to steer with"),
        ({}, {}, "there are no directions to steer with"),
        (direction_at(9), {}, "the model has no layer 9. Expected: 0 to 3"),
        ({2: direction_at(1)}, {}, "the direction at layer 1 is given for layer 2"),
        (direction_at(1, vector=torch.ones(8)), {}, r"width 8\), but the model is"),
        (direction_at(1, vector=torch.zeros(32)), {}, "has no length"),
        (direction_at(1, vector=torch.full((32,), torch.nan)), {}, "has no length"),
        (direction_at(1, provenance=provenance("mlp_out")), {}, "was read at the site mlp_out"),
        (direction_at(1), {"unit": "norms"}, "the unit cannot be 'norms'.*did you mean 'norm'"),
        (direction_at(1), {"tokens": "every"}, "tokens cannot be 'every'. Expected: one of all, prompt, generated"),
        (direction_at(1), {"strength": float("nan")}, "the strength cannot be nan"),
        (direction_at(1), {"strength": "0.1"}, "the strength cannot be '0.1'"),
        (direction_at(1), {"strength": True}, "the strength cannot be True"),
        (direction_at(1, positive_mean=-1.0), {"unit": "gap"}, "does not store different class means"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_llama: PreTrainedModel, direction: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said), engine.steer(tiny_llama, direction, **options):
        pass
    assert hook_count(tiny_llama) == 0


def test_directions_from_before_the_norm_was_stored_are_refused_with_a_remedy(tiny_llama: PreTrainedModel) -> None:
    direction = direction_at(LAYER)
    del direction["norm"]
    with (
        pytest.raises(LayerscopeError, match="does not store the mean norm") as caught,
        engine.steer(tiny_llama, direction),
    ):
        pass
    assert "layerscope directions CAPTURE --force" in caught.value.said("command_line")
    with engine.steer(tiny_llama, direction, unit="gap"), engine.ablate(tiny_llama, direction):
        pass


def test_a_compiled_model_is_refused(tiny_llama: PreTrainedModel) -> None:
    compiled(tiny_llama)
    with pytest.raises(ModelError, match="the model is compiled"), engine.steer(tiny_llama, direction_at(LAYER)):
        pass


@pytest.mark.parametrize(
    "given", [None, "honesty", 3, [None], torch.ones(32)], ids=["none", "text", "number", "in a list", "tensor"]
)
def test_what_is_not_a_direction_is_refused(tiny_llama: PreTrainedModel, given: Any) -> None:
    with pytest.raises(RequestError, match="is not a direction"), engine.steer(tiny_llama, given, 0.1):
        pass


@pytest.mark.parametrize(
    "given",
    [{LAYER: torch.ones(WIDTH)}, {"vector": torch.ones(WIDTH)}, [{"vector": torch.ones(WIDTH)}], [torch.ones(WIDTH)]],
    ids=["by layer", "only the vector", "in a list", "list of vectors"],
)
def test_plain_vectors_are_refused_with_how_to_make_directions(tiny_llama: PreTrainedModel, given: Any) -> None:
    for context in (engine.steer, engine.ablate):
        with pytest.raises(RequestError, match=r"is not a direction.*import_directions"), context(tiny_llama, given):
            pass


def test_plain_vectors_by_layer_are_refused_wherever_directions_are_taken(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    vectors: Any = {LAYER: torch.ones(WIDTH)}
    calls: list[Callable[[], object]] = [
        partial(engine.steer_text, tiny_llama, tiny_tokenizer, vectors, "w3 w4"),
        partial(engine.read_text, tiny_llama, tiny_tokenizer, vectors, "w3 w4"),
        partial(engine.save_directions, vectors, tmp_path / "mine"),
        partial(engine.export_directions, vectors, tmp_path / "mine.npz"),
    ]
    for call in calls:
        with pytest.raises(RequestError, match=r"a Tensor is not a direction.*import_directions"):
            call()
    assert not [*tmp_path.iterdir()]
