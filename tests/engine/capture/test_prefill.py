"""Keys and values of prompts with shared prefixes against those of each prompt alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from engine.capture.batches import Limits
from engine.capture.prefill import _copy, _empty, _Filled, prefill
from engine.capture.responses import generate_responses
from engine.models.description import describe_model, examine_model
from engine.models.forward import cache_name
from engine.models.structure import find_blocks
from tests.conftest import framework_hook
from tests.engine.capture.test_families import TOLERANCE
from tests.engine.capture.test_responses import alone
from tests.engine.capture.test_reuse import PROMPTS as TEXTS
from tests.engine.capture.test_reuse import SEPARATE, WINDOWED
from tests.families import FAMILIES, REPRESENTATIVE, Family, build, each_of

PROMPTS = [[int(word[1:]) for word in text.split()] for text in TEXTS]
NEW = 5


def by_hand(model: PreTrainedModel, prompt: list[int]) -> DynamicCache:
    """The cache after a plain forward pass of one prompt."""
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([prompt]), **{cache_name(model.forward): cache}, use_cache=True)
    return cache


@pytest.mark.parametrize("tokens", [16, 10_000], ids=["trunks", "one_row"])
@pytest.mark.parametrize("family", each_of([*FAMILIES, *WINDOWED], REPRESENTATIVE | {"gemma2_wide"}))
def test_the_cache_equals_that_of_each_prompt_alone(family: Family, tokens: int) -> None:
    model = build(family)
    cache = prefill(model, describe_model(model), PROMPTS, 1, Limits(tokens))
    assert (cache is None) == (family.name in SEPARATE)
    if cache is None:
        return
    width = max(map(len, PROMPTS)) - 1
    assert cache.get_seq_length() == width
    for row, prompt in enumerate(PROMPTS):
        layers: Any = zip(cache.layers, by_hand(model, prompt[:-1]).layers, strict=True)
        for found, own in layers:
            for states, plain in ((found.keys, own.keys), (found.values, own.values)):
                padding = width - len(prompt) + 1
                assert not states[row, :, :padding].any()
                error = (states[row, :, padding:] - plain[0]).abs().max() / plain.abs().max()
                assert error < TOLERANCE


@pytest.mark.parametrize("family", each_of([*FAMILIES, *WINDOWED], REPRESENTATIVE | {"gemma2_wide"}))
def test_responses_to_prompts_that_share_a_prefix_equal_those_to_each_alone(
    family: Family, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    if family.name == "xlstm":
        pytest.skip("xLSTM cannot generate with its cache in transformers")
    model = build(family)
    expected = [alone(model, prompt, NEW) for prompt in PROMPTS]
    assert generate_responses(model, tiny_tokenizer, PROMPTS, NEW) == expected


def tokens_run(model: PreTrainedModel) -> list[int]:
    """A list of the numbers of tokens of the passes to come."""
    went: list[int] = []

    def hook(_module: nn.Module, args: Any) -> None:
        went.append(args[0].shape[0] * args[0].shape[1])

    find_blocks(model).blocks[0].register_forward_pre_hook(framework_hook(hook))
    return went


def test_a_shared_prefix_runs_once_unless_that_is_not_wanted(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    examine_model(tiny_llama)
    went = tokens_run(tiny_llama)
    shared = generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 2)
    # All tokens but the last of each prompt, each shared one once; then two tokens of each response.
    assert sum(went) == len({tuple(p[:end]) for p in PROMPTS for end in range(1, len(p))}) + 2 * len(PROMPTS)
    went.clear()
    assert generate_responses(tiny_llama, tiny_tokenizer, PROMPTS, 2, prefix_reuse=False) == shared
    assert went == [len(PROMPTS) * max(map(len, PROMPTS)), len(PROMPTS)]


def test_a_prompt_with_its_response_may_not_exceed_the_window() -> None:
    model = build(next(family for family in WINDOWED if family.name == "mistral_wide"))
    known = describe_model(model)
    assert known.receipt["window"] == 48
    room = 48 - max(map(len, PROMPTS))
    assert prefill(model, known, PROMPTS, room, Limits(512)) is not None
    assert prefill(model, known, PROMPTS, room + 1, Limits(512)) is None


def test_a_prompt_of_one_token_has_nothing_to_compute_before(tiny_llama: PreTrainedModel) -> None:
    assert prefill(tiny_llama, describe_model(tiny_llama), [[5], [5, 6, 7]], NEW, Limits(512)) is None


def test_a_block_without_attention_has_no_keys() -> None:
    cache = DynamicCache()
    states = torch.arange(6.0).view(1, 1, 3, 2)
    for layer in (0, 2):
        cache.update(states, states + 1, layer)
    padded = _empty(cache, 2, 4)
    _copy(_Filled([1], [np.array([0, 2])], cache), padded, 4)
    kept: Any = padded.layers
    assert kept[1].keys is None
    assert kept[2].values[1, 0].tolist() == [[0, 0], [0, 0], [1, 2], [5, 6]]
    assert not kept[0].keys[0].any()
