"""Find how strongly a direction may be added before it damages what the model says: `calibrate_strength`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from engine.capture.provenance import model_state
from engine.capture.responses import generate_responses
from engine.concepts.chat import render_chats
from engine.concepts.text_files import PromptFile, named_prompts
from engine.errors import RequestError
from engine.inputs import require_seed, require_strength, require_whole
from engine.records.captures import Message, changed_model
from engine.records.causal import Calibration
from engine.records.files import Direction
from engine.records.steering import DAMAGES, STRENGTHS, Damage
from engine.runtime import Steps, ignore_progress
from engine.stats.resampling import RESAMPLES
from engine.steering.apply import directions_by_layer, length_of, require_choice, unit_vector
from engine.steering.fan_out import Conditions, FanOut, Text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOUNDS: dict[Damage, float] = {"kl": 0.1, "perplexity": 1.2}
"""Default bound of each measure of damage."""

_FEWEST_PROMPTS = 4
_ENDS = (0.025, 0.975)


def calibrate_strength(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directions: Direction | Mapping[int, Direction],
    prompts: Iterable[str] | PromptFile,
    *,
    damage: Damage = "kl",
    bound: float | None = None,
    chat: bool = True,
    max_new_tokens: int = 12,
    seed: int = 0,
    steps: Steps | None = None,
) -> list[Calibration]:
    """Find the largest strength at each layer whose damage stays under a bound, with a 95% interval over prompts.

    The unsteered model continues neutral prompts. Each continuation is then read under steering by 15 strengths from
    0.01 to 1.28, towards either class; the class with more damage counts, and a prediction that overflows counts as
    infinite damage. Between these strengths, damage is interpolated on logarithmic scales. Where the weakest already
    does too much damage, or the strongest too little, the result is that strength.

    Args:
        model: The model that the directions were extracted from.
        tokenizer: Its tokenizer.
        directions: A direction, or layer to direction, with the mean norm of the states.
        prompts: Neutral prompts, or their file (see `open_prompts`), at least four: what users say that has nothing to
            do with the concept.
        damage: `kl`: mean KL divergence of the steered from the unsteered prediction of a token, in nats. `perplexity`:
            factor by which the perplexity of the continuation rises.
        bound: Largest damage; by default 0.1 nats, or a factor of 1.2.
        chat: Whether the prompts go through the chat template.
        max_new_tokens: Maximum length of a continuation.
        seed: Seed for resampling prompts.
        steps: Called with each step; an exception it raises stops the work.

    Returns:
        One entry per layer, ascending.

    Raises:
        RequestError: An argument is invalid, there are too few prompts, or see `steer`.
        CaptureError: A prompt is too long.
        ModelError: See `steer`.

    Example:
        >>> direction = extract_direction(data, 16)
        >>> prompts = ["Name a fruit.", "What time is it?", "Tell me a story.", "Add 2 and 3."]
        >>> [found] = calibrate_strength(model, tokenizer, direction, prompts, max_new_tokens=2)
        >>> 0 < found["low"] <= found["strength"] <= found["high"]
        True
    """
    require_choice("the measure of damage", damage, DAMAGES)
    limit = require_strength(BOUNDS[damage] if bound is None else bound, "the bound")
    if limit <= (0 if damage == "kl" else 1):
        least = "0 nats" if damage == "kl" else "a factor of 1"
        raise RequestError(f"the bound cannot be {limit:g}", expected=f"more than {least}, which is no damage")
    steps, named = steps or ignore_progress, named_prompts(prompts, "neutral prompt")
    if len(named) < _FEWEST_PROMPTS:
        count = "1 neutral prompt is" if len(named) == 1 else f"{len(named)} neutral prompts are"
        raise RequestError(f"{count} too few", expected=f"{_FEWEST_PROMPTS} or more")
    by_layer = {layer: here[0] for layer, here in sorted(directions_by_layer(model, directions).items())}
    lengths = {layer: length_of(direction, "norm") for layer, direction in by_layer.items()}
    new = require_whole(max_new_tokens, "the number of new tokens", 1)
    continued = _continue(model, tokenizer, named, new, steps, chat=chat)
    runner = FanOut(model)
    rows = runner.rows([[text] for text in continued])
    drawing = torch.Generator().manual_seed(require_seed(seed))
    weights = torch.empty(RESAMPLES, len(continued), dtype=torch.float64).exponential_(generator=drawing)
    found: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in by_layer}
    for done, row in enumerate(rows):
        unsteered = runner.predict(row)
        plain = row.mean_of(unsteered.gather(1, row.targets.to(unsteered.device)[:, None])[:, 0])
        for place, (layer, direction) in enumerate(by_layer.items()):
            steps("steering", done * len(by_layer) + place, len(rows) * len(by_layer))
            by = torch.tensor([sign * strength for sign in (1, -1) for strength in STRENGTHS], dtype=torch.float64)
            vectors = (by[:, None] * lengths[layer] * unit_vector(direction)).float()  # (2 strengths, hidden)
            scores = runner.score(row, Conditions(layer, vectors), unsteered)
            found[layer].append((scores.divergences, plain - scores.log_probs))  # (2 strengths, texts) each
    calibrated = [_calibrated(layer, parts, damage, limit, weights) for layer, parts in found.items()]
    now = model_state(model)
    for one in calibrated:
        theirs = by_layer[one["layer"]]["provenance"]
        if theirs and (changes := changed_model(theirs, now, "the directions")):
            one["warnings"] = changes
    return calibrated


def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    named: list[tuple[str, str]],
    new: int,
    steps: Steps,
    *,
    chat: bool,
) -> list[Text]:
    """Let the model continue the prompts, greedily; continuations without a token are left out."""
    names, prompts = [name for name, _ in named], [text for _, text in named]
    rendered = render_chats(tokenizer, [(Message(role="user", content=text),) for text in prompts]) if chat else prompts
    special = not (chat and tokenizer.chat_template)  # a chat template writes the special tokens itself
    rows = [list(ids) for ids in tokenizer(rendered, add_special_tokens=special)["input_ids"]]
    progress = partial(steps, "continuing the prompts")
    answers = generate_responses(model, tokenizer, rows, new, names=names, progress=progress)
    texts = [Text([*row, *answer.ids], len(row)) for row, answer in zip(rows, answers, strict=True) if answer.ids]
    if len(texts) < _FEWEST_PROMPTS:
        raise RequestError(
            f"the model continues only {len(texts)} of {len(prompts)} prompts",
            expected=f"{_FEWEST_PROMPTS} or more prompts that it answers",
        )
    return texts


def _calibrated(
    layer: int, parts: list[tuple[Tensor, Tensor]], damage: Damage, bound: float, weights: Tensor
) -> Calibration:
    """Find where the damage at one layer crosses the bound, for all prompts and for resampled ones.

    Args:
        layer: Layer number.
        parts: KL divergence and loss of log-probability of each row of texts, `(2 strengths, texts)`.
        damage: What the bound is of.
        bound: The bound.
        weights: Bayesian bootstrap weights of the prompts, `(resamples, prompts)`.
    """
    divergences, losses = (
        torch.nan_to_num(torch.cat(each, dim=1), nan=torch.inf, posinf=torch.inf) for each in zip(*parts, strict=True)
    )  # (2 strengths, prompts)
    values, limit = (divergences, bound) if damage == "kl" else (losses, math.log(bound))
    shares = torch.cat([torch.full((1, weights.shape[1]), 1.0, dtype=torch.float64), weights])
    means = (shares / shares.sum(dim=1, keepdim=True)) @ values.T  # (1 + resamples, 2 strengths)
    crossed = torch.tensor([_crossing(row, limit) for row in _worse(means).tolist()], dtype=torch.float64)
    strength = float(crossed[0])
    low, high = crossed[1:].quantile(torch.tensor(_ENDS, dtype=torch.float64)).tolist()
    return Calibration(
        layer=layer,
        strength=strength,
        low=min(low, strength),
        high=max(high, strength),
        damage=_damage_at(strength, _worse(divergences.mean(dim=1)).tolist()),
        perplexity=math.exp(_damage_at(strength, _worse(losses.mean(dim=1)).tolist())),
    )


def _worse(values: Tensor) -> Tensor:
    """The damage towards the worse class: `(..., 2 strengths)` to `(..., strengths)`."""
    return torch.maximum(*values.chunk(2, dim=-1))


def _crossing(damage: list[float], bound: float) -> float:
    """The strength at which damage first exceeds a bound; either end if it always or never does."""
    points = [(math.log(by), _log(value)) for by, value in zip(STRENGTHS, damage, strict=True)]
    wanted = math.log(bound)
    if points[0][1] > wanted:
        return STRENGTHS[0]
    for (before, less), (after, more) in pairwise(points):
        if more > wanted:
            return math.exp(before + (after - before) * (wanted - less) / (more - less))
    return STRENGTHS[-1]


def _damage_at(strength: float, damage: list[float]) -> float:
    """Damage at a strength, interpolated as in `_crossing`."""
    for (before, less), (after, more) in pairwise(zip(STRENGTHS, damage, strict=True)):
        if strength <= before:
            return less
        if strength < after:
            along = math.log(strength / before) / math.log(after / before)
            return math.exp(_log(less) + along * (_log(more) - _log(less))) if math.isfinite(more) else less
    return damage[-1]


def _log(damage: float) -> float:
    return math.log(max(damage, 1e-12))
