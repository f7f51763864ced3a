"""Mean, standard deviation and norm of each layer, against numpy in float64."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import RequestError
from engine.records.results import LayerStats
from engine.stats.contrast import compute_contrastive_diff
from engine.stats.summary import compute_activation_stats, layer_table
from tests.engine.stats.captures import LAYERS, contrast, one_prompt, provenance, random_states, several_prompts


def by_numpy(token_states: list[Tensor]) -> LayerStats:
    """Expected values from the included tokens, `(tokens, hidden)` each."""
    values = np.concatenate([states.float().numpy() for states in token_states]).astype(np.float64)
    return LayerStats(
        mean=float(values.mean()), std=float(values.std()), norm=float(np.sqrt((values**2).sum(1)).mean())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_prompt_without_its_first_token(dtype: torch.dtype) -> None:
    states = random_states(9, seed=0, dtype=dtype)
    stats = compute_activation_stats(one_prompt(states))
    assert list(stats) == LAYERS
    for layer in LAYERS:
        assert stats[layer] == pytest.approx(by_numpy([states[layer][1:]]), rel=1e-9)


def test_the_first_token_on_request() -> None:
    states = random_states(9, seed=0)
    stats = compute_activation_stats(one_prompt(states), include_first=True)
    for layer in LAYERS:
        assert stats[layer] == pytest.approx(by_numpy([states[layer]]), rel=1e-9)


def test_sums_of_many_bfloat16_values_do_not_saturate() -> None:
    """In bfloat16 a sum of ones stops at 256."""
    stats = compute_activation_stats(one_prompt({3: torch.ones(5000, 16, dtype=torch.bfloat16)}))
    assert stats[3] == pytest.approx(LayerStats(mean=1.0, std=0.0, norm=4.0))


def test_several_prompts_without_padding_and_first_tokens() -> None:
    prompts = [random_states(length, seed=length) for length in (4, 9, 1)]
    stats = compute_activation_stats(several_prompts(prompts))
    with_first = compute_activation_stats(several_prompts(prompts), include_first=True)
    for layer in LAYERS:
        first, second, only_token = (prompt[layer] for prompt in prompts)
        assert stats[layer] == pytest.approx(by_numpy([first[1:], second[1:], only_token]), rel=1e-9)
        assert with_first[layer] == pytest.approx(by_numpy([first, second, only_token]), rel=1e-9)


def test_tokens_that_are_not_the_first_all_count() -> None:
    states = random_states(9, seed=0)
    prompts = [random_states(length, seed=length) for length in (4, 9)]
    last = compute_activation_stats(one_prompt(states, start=8))
    later = compute_activation_stats(one_prompt(states, start=1))
    batch = compute_activation_stats(several_prompts(prompts, start=1))
    for layer in LAYERS:
        assert last[layer] == pytest.approx(by_numpy([states[layer][8:]]), rel=1e-9)
        assert later[layer] == pytest.approx(by_numpy([states[layer][1:]]), rel=1e-9)
        assert batch[layer] == pytest.approx(by_numpy([prompt[layer][1:] for prompt in prompts]), rel=1e-9)


def test_the_only_token_kept_counts_even_if_it_is_the_first() -> None:
    states = random_states(9, seed=0)
    stats = compute_activation_stats(one_prompt(states, stop=1))
    for layer in LAYERS:
        assert stats[layer] == pytest.approx(by_numpy([states[layer][:1]]), rel=1e-9)


def test_the_first_token_of_a_kept_span_is_excluded_too() -> None:
    """Positions like ":5" keep the first token without keeping the whole prompt."""
    states = random_states(9, seed=0)
    data = one_prompt(states, stop=5)
    data["provenance"] = provenance(positions=":5")
    stats = compute_activation_stats(data)
    for layer in LAYERS:
        assert stats[layer] == pytest.approx(by_numpy([states[layer][1:5]]), rel=1e-9)


def test_a_contrast_is_summarized_over_both_classes() -> None:
    positive = [random_states(length, seed=length) for length in (4, 9)]
    negative = [random_states(length, seed=length) for length in (5, 7)]
    stats = compute_activation_stats(contrast(positive, negative))
    for layer in LAYERS:
        assert stats[layer] == pytest.approx(by_numpy([s[layer][1:] for s in (*positive, *negative)]), rel=1e-9)


def test_an_object_that_is_no_capture_is_refused() -> None:
    wrong: Any = {"layers": [1]}
    with pytest.raises(RequestError, match="not a capture"):
        compute_activation_stats(wrong)


def test_a_contrast_has_all_columns() -> None:
    data = contrast([random_states(5, 0), random_states(6, 1)], [random_states(5, 2), random_states(7, 3)])
    stats, diffs = compute_activation_stats(data), compute_contrastive_diff(data)
    assert layer_table(data) == [{"layer": layer, **stats[layer], **diffs[layer]} for layer in LAYERS]
    assert all(row["pair_cosine"] is not None for row in layer_table(data))


def test_a_prompt_has_no_differences() -> None:
    data = one_prompt(random_states(5, 0))
    nothing = {"diff_norm": None, "relative_norm": None, "cosine_sim": None, "pair_cosine": None}
    stats = compute_activation_stats(data)
    assert layer_table(data) == [{"layer": layer, **stats[layer], **nothing} for layer in LAYERS]


def test_rows_survive_json() -> None:
    """Plain numbers, also for bfloat16 states."""
    rows = layer_table(contrast([random_states(5, 0, torch.bfloat16)], [random_states(5, 1, torch.bfloat16)]))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
