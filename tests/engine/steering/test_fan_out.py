"""Texts scored under many steerings at once, against plain passes of the steered model, one at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import engine
from engine.models.forward import TokenBatch, run_decoder
from engine.steering import fan_out
from engine.steering.fan_out import Conditions, FanOut, Row, Text
from tests.conftest import family_called
from tests.engine.steering.directions import NORM, direction_at, hook_count, logits_of
from tests.families import FAMILIES, Family, build, each_of

LAYER = 1
FAST = {"llama", "gpt2", "gemma3_text", "qwen2", "bloom", "mixtral", "mamba"}
GROUPS = [
    [Text([3, 4, 5, 6, 7], 3), Text([3, 4, 5, 8, 9, 10], 3)],
    [Text([3, 4, 11, 12], 3), Text([3, 4, 11, 12, 13], 4)],
]


def vectors(count: int = 3) -> Tensor:
    return torch.stack([0.5 * NORM * direction_at(LAYER, seed)["vector"] for seed in range(count)])


def predictions(model: PreTrainedModel, text: Text) -> Tensor:
    """Log-probabilities of the scored tokens' places, `(scored, vocabulary)`, in a pass of the text alone."""
    return logits_of(model, torch.tensor([text.ids]))[0].double().log_softmax(-1)[text.start - 1 : -1]


def expected(model: PreTrainedModel, text: Text, plain: Tensor) -> tuple[float, float]:
    found = predictions(model, text)
    targets = torch.tensor(text.ids[text.start :])[:, None]
    return float(found.gather(1, targets).mean()), float((plain.exp() * (plain - found)).sum(-1).mean())


def scored(model: PreTrainedModel, conditions: Conditions) -> dict[int, tuple[Tensor, Tensor]]:
    """Text to its log-probability and divergence under every condition."""
    runner = FanOut(model)
    found = {}
    for row in runner.rows(GROUPS):
        scores = runner.score(row, conditions, runner.predict(row))
        for place, number in enumerate(row.texts):
            found[number] = scores.log_probs[:, place], scores.divergences[:, place]
    return found


@pytest.mark.parametrize("family", each_of(FAMILIES, FAST))
@pytest.mark.parametrize("project", [False, True], ids=["add", "project"])
def test_scores_equal_those_of_the_steered_model(family: Family, project: bool) -> None:
    if family.name == "xlstm":
        pytest.skip("its cache is for fused kernels, and it runs without one")
    model = build(family)
    units = torch.stack([direction_at(LAYER, seed)["vector"] for seed in range(3)])
    found = scored(model, Conditions(LAYER, units if project else vectors(), project))
    hooks = hook_count(model)
    for number, text in enumerate(text for group in GROUPS for text in group):
        plain = predictions(model, text)
        for condition in range(3):
            direction = direction_at(LAYER, condition)
            with engine.ablate(model, direction) if project else engine.steer(model, direction, 0.5):
                log_prob, divergence = expected(model, text, plain)
            assert float(found[number][0][condition]) == pytest.approx(log_prob, abs=2e-4)
            assert float(found[number][1][condition]) == pytest.approx(divergence, abs=2e-4)
    assert hook_count(model) == hooks


def test_lower_blocks_run_once_and_upper_ones_once_per_condition(tiny_llama: PreTrainedModel) -> None:
    runner = FanOut(tiny_llama)
    [row] = runner.rows(GROUPS)
    unsteered = runner.predict(row)
    runner.score(row, Conditions(LAYER, vectors()), unsteered)  # measures that the model may fan out
    seen: list[tuple[int, int]] = []
    for layer, block in enumerate(tiny_llama.model.layers):
        block.register_forward_pre_hook(lambda _block, args, layer=layer: seen.append((layer, len(args[0]))))
    runner.score(row, Conditions(LAYER, vectors()), unsteered)
    assert seen == [(0, 1), (1, 1), (2, 3), (3, 3)]


def test_little_memory_splits_the_conditions_and_changes_nothing(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(tiny_llama, Conditions(LAYER, vectors()))
    monkeypatch.setattr(fan_out, "free_bytes", lambda _device: 0)
    split = scored(tiny_llama, Conditions(LAYER, vectors()))
    for number, (log_probs, _) in whole.items():
        torch.testing.assert_close(split[number][0], log_probs, rtol=0, atol=1e-5)


def test_a_model_that_cannot_fan_out_runs_every_block_once_per_condition(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = scored(tiny_llama, Conditions(LAYER, vectors()))

    def refuse(model: PreTrainedModel, batch: TokenBatch, *, logits_at: Tensor | None) -> Any:
        output = run_decoder(model, batch, logits_at=logits_at)
        if output.logits.shape[0] != len(batch.input_ids):
            raise RuntimeError("shapes cannot be broadcast")
        return output

    monkeypatch.setattr(fan_out, "run_decoder", refuse)
    found = scored(tiny_llama, Conditions(LAYER, vectors()))
    for number, (log_probs, _) in right.items():
        torch.testing.assert_close(found[number][0], log_probs, rtol=0, atol=1e-5)


def test_groups_stay_together_and_rows_stay_short(tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "_ROW_TOKENS", 6)
    rows: list[Row] = FanOut(tiny_llama).rows([*GROUPS, *GROUPS])
    assert [row.texts for row in rows] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [len(row.places) for row in rows] == [5, 2, 5, 2]


def test_a_recurrent_model_runs_one_text_per_row() -> None:
    rows = FanOut(build(family_called("mamba"))).rows(GROUPS)
    assert [row.texts for row in rows] == [[0], [1], [2], [3]]


def test_a_model_on_several_devices_computes_all_logits(
    tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last states are elsewhere than the indices of the scored tokens would be."""
    right = scored(tiny_llama, Conditions(LAYER, vectors()))
    monkeypatch.setattr(FanOut, "_devices", lambda _runner: {torch.device("cpu"), torch.device("cpu", 0)})
    wanted: list[object] = []

    def note(model: PreTrainedModel, batch: TokenBatch, *, logits_at: Tensor | None) -> Any:
        wanted.append(logits_at)
        return run_decoder(model, batch, logits_at=logits_at)

    monkeypatch.setattr(fan_out, "run_decoder", note)
    found = scored(tiny_llama, Conditions(LAYER, vectors()))
    assert set(wanted) == {None}
    for number, (log_probs, _) in right.items():
        torch.testing.assert_close(found[number][0], log_probs, rtol=0, atol=1e-5)
