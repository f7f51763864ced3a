"""One row a layer, with what the two statistics say, in a form that JSON holds."""

import json

import torch

from engine.stats.contrast import compute_contrastive_diff
from engine.stats.summary import compute_activation_stats
from engine.stats.table import layer_table
from tests.engine.stats.captures import LAYERS, contrast, one_prompt, random_states


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
    """Plain numbers, also of bfloat16 states."""
    rows = layer_table(contrast([random_states(5, 0, torch.bfloat16)], [random_states(5, 1, torch.bfloat16)]))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
