"""Calibrated strengths: damage at the strength found, recomputed with plain steered passes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import engine
from engine.capture.responses import generate_responses
from engine.concepts.text_files import open_prompts
from engine.errors import CaptureError, RequestError
from engine.records.steering import STRENGTHS, Damage
from engine.steering.calibrate import _calibrated
from tests.engine.steering.directions import direction_at, logits_of

LAYER = 1
PROMPTS = [f"w{20 + number} w{50 + 2 * number} w9" for number in range(10)]
NEW = 3


def damage_at(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, strength: float) -> tuple[float, float]:
    """Mean KL divergence and loss of log-probability of the continuations, towards the worse class."""
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    answers = [response.ids for response in generate_responses(model, tokenizer, prompts, NEW)]
    found = []
    for sign in (1, -1):
        divergences, losses = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            ids, start = torch.tensor([[*prompt, *answer]]), len(prompt)
            plain = logits_of(model, ids)[0].double().log_softmax(-1)[start - 1 : -1]
            with engine.steer(model, direction_at(LAYER), sign * strength):
                steered = logits_of(model, ids)[0].double().log_softmax(-1)[start - 1 : -1]
            targets = torch.tensor(answer)[:, None]
            divergences.append(float((plain.exp() * (plain - steered)).sum(-1).mean()))
            losses.append(float((plain - steered).gather(1, targets).mean()))
        found.append((sum(divergences) / len(divergences), sum(losses) / len(losses)))
    return max(one for one, _ in found), max(other for _, other in found)


@pytest.mark.parametrize(("damage", "bound"), [("kl", 0.02), ("kl", 0.2), ("perplexity", 1.1)])
def test_damage_reaches_the_bound_at_the_strength(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, damage: Damage, bound: float
) -> None:
    direction = direction_at(LAYER)
    [found] = engine.calibrate_strength(
        tiny_llama, tiny_tokenizer, direction, PROMPTS, damage=damage, bound=bound, max_new_tokens=NEW
    )
    divergence, loss = damage_at(tiny_llama, tiny_tokenizer, found["strength"])
    assert (divergence if damage == "kl" else math.exp(loss)) == pytest.approx(bound, rel=0.05)
    assert found["damage"] == pytest.approx(divergence, rel=0.1)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=0.05)
    assert found["low"] < found["strength"] < found["high"]


def test_a_prompt_that_is_too_long_is_named_by_its_line(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    file = tmp_path / "neutral.txt"
    file.write_text("\n".join([*PROMPTS, "", "w3 " * 70]))
    with pytest.raises(CaptureError, match=r"the neutral prompt in .*neutral\.txt, line 12 has 70 tokens"):
        engine.calibrate_strength(tiny_llama, tiny_tokenizer, direction_at(LAYER), open_prompts(file))
    with pytest.raises(CaptureError, match="neutral prompt 10 has 70 tokens"):
        engine.calibrate_strength(tiny_llama, tiny_tokenizer, direction_at(LAYER), [*PROMPTS, "w3 " * 70])


def test_a_smaller_bound_allows_less_and_layers_come_in_order(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    directions = {layer: direction_at(layer) for layer in (2, 0)}
    found = [
        engine.calibrate_strength(tiny_llama, tiny_tokenizer, directions, PROMPTS, bound=bound, max_new_tokens=NEW)
        for bound in (1e-6, 0.05)
    ]
    assert [row["layer"] for row in found[1]] == [0, 2]
    assert all(less["strength"] < more["strength"] for less, more in zip(*found, strict=True))
    assert found[0][0]["strength"] == 0.01  # even the weakest strength does more damage
    assert found[0][0]["damage"] > 1e-6


def test_the_class_with_more_damage_counts(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """So a direction and its opposite allow the same strength."""
    direction = direction_at(LAYER)
    opposite = direction.copy()
    opposite["vector"] = -direction["vector"]
    one, other = (
        engine.calibrate_strength(tiny_llama, tiny_tokenizer, way, PROMPTS, bound=0.2, max_new_tokens=NEW)[0]
        for way in (direction, opposite)
    )
    assert one["strength"] == pytest.approx(other["strength"], rel=1e-4)
    assert one["damage"] == pytest.approx(other["damage"], rel=1e-4)


def squared_damage(factors: list[float]) -> Tensor:
    """Damage of each text that grows with the square of the strength, four times as much towards the other class."""
    grown = torch.tensor(STRENGTHS, dtype=torch.float64)[:, None] ** 2 * torch.tensor(factors, dtype=torch.float64)
    return torch.cat([grown, 4 * grown])  # (2 strengths, texts)


def test_the_strength_and_its_interval_are_those_of_a_known_damage() -> None:
    """The bound is met where 4 c s² = bound, with the mean c of all texts, or that of resampled ones."""
    factors = [1.0, 2.0, 4.0, 9.0]
    damage = squared_damage(factors)
    found = _calibrated(3, [(damage, damage / 10)], "kl", 0.5, torch.eye(4, dtype=torch.float64))
    assert found["strength"] == pytest.approx(math.sqrt(0.5 / (4 * 4.0)))
    alone = torch.tensor([math.sqrt(0.5 / (4 * factor)) for factor in factors], dtype=torch.float64)
    assert found["low"] == pytest.approx(float(alone.quantile(0.025)))
    assert found["high"] == pytest.approx(float(alone.quantile(0.975)))
    assert found["damage"] == pytest.approx(0.5)
    assert found["perplexity"] == pytest.approx(math.exp(0.05))


@pytest.mark.parametrize("text", [0, 3])
def test_the_interval_always_contains_the_strength(text: int) -> None:
    """Resamples of the most gentle text, or of the most fragile one, alone allow more, or less."""
    damage = squared_damage([1.0, 2.0, 4.0, 9.0])
    weights = torch.eye(4, dtype=torch.float64)[[text] * 5]
    found = _calibrated(3, [(damage, damage)], "kl", 0.5, weights)
    alone = math.sqrt(0.5 / (4 * (1.0, 9.0)[text // 3]))
    expected = (found["strength"], alone) if text == 0 else (alone, found["strength"])
    assert (found["low"], found["high"]) == pytest.approx(expected)


@pytest.mark.parametrize("lost", [math.inf, math.nan])
def test_damage_that_cannot_be_computed_is_infinite(lost: float) -> None:
    """The result is the strongest of the strengths before it."""
    damage = squared_damage([0.001] * 4)
    damage[len(STRENGTHS) + 9 :, 2] = lost  # towards the other class, in one of the texts
    for measure in ("kl", "perplexity"):
        found = _calibrated(3, [(damage, damage)], measure, 1.2, torch.ones(2, 4, dtype=torch.float64))
        assert found["strength"] == pytest.approx(STRENGTHS[8])
        assert found["damage"] == pytest.approx(0.004 * STRENGTHS[8] ** 2)


def test_predictions_that_overflow_count_as_damage(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    direction = direction_at(LAYER)
    direction["norm"] = 1e40  # the stronger ones overflow float32; the others destroy the text, but can be computed
    [found] = engine.calibrate_strength(tiny_llama, tiny_tokenizer, direction, PROMPTS, bound=30, max_new_tokens=NEW)
    assert found["strength"] < 1.28
    assert math.isfinite(found["damage"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": 0}, "the bound cannot be 0"),
        ({"bound": 1, "damage": "perplexity"}, "the bound cannot be 1"),
        ({"damage": "taste"}, "the measure of damage cannot be 'taste'"),
        ({"prompts": ["w3", "w4"]}, "2 neutral prompts are too few"),
    ],
    ids=["no damage", "no factor", "measure", "prompts"],
)
def test_refusals_say_what_is_wrong(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], message: str
) -> None:
    prompts = options.pop("prompts", PROMPTS)
    with pytest.raises(RequestError, match=message):
        engine.calibrate_strength(tiny_llama, tiny_tokenizer, direction_at(LAYER), prompts, **options)


def test_another_model_than_that_of_the_direction_is_a_warning(
    tiny_llama: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    one, other = ([f"w{20 + number} {word}" for number in range(8)] for word in ("w7", "w8"))
    data = engine.capture_contrastive_activations(tiny_llama, tiny_tokenizer, one, other, positions="last")
    directions = {layer: engine.extract_direction(data, layer) for layer in (1, 2)}
    same = engine.calibrate_strength(tiny_llama, tiny_tokenizer, directions, PROMPTS, max_new_tokens=NEW)
    assert not any("warnings" in layer for layer in same)
    with torch.no_grad():
        tiny_llama.model.layers[3].mlp.down_proj.weight.mul_(1.1)
    edited = engine.calibrate_strength(tiny_llama, tiny_tokenizer, directions, PROMPTS, max_new_tokens=NEW)
    assert all("differs from that of the directions in weights" in layer["warnings"][-1] for layer in edited)
