"""Rank layers by what steering there does: `rank_layers_causally`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engine.capture.provenance import model_state
from engine.capture.selection import parse_layers
from engine.concepts.text_files import PromptFile
from engine.errors import RequestError
from engine.models.description import examine_model
from engine.records.captures import ContrastData, changed_model
from engine.records.causal import CausalLayer, CausalRanking, works
from engine.records.files import Direction
from engine.records.results import ENOUGH_GROUPS, Ranking, may_be_best
from engine.runtime import Steps, ignore_progress
from engine.stats.causal import AblationTest, AdditionResults, AdditionTest, compare_ablations, compare_additions
from engine.stats.contrast import require_contrast
from engine.stats.direction import extract_direction
from engine.stats.fitting import NoDifferenceError
from engine.steering.apply import directions_by_layer
from engine.steering.causal_request import MOST_CANDIDATES, CausalRequest
from engine.steering.experiment import Experiment, KeptScores
from engine.steering.fan_out import FanOut
from engine.steering.trials import Design, Trial, make_trials

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MOST_ABLATED_LAYERS = 3


def rank_layers_causally(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: ContrastData,
    request: CausalRequest | None = None,
    *,
    ranking: Ranking | None = None,
    neutral: Sequence[str] | PromptFile | None = None,
    steps: Steps | None = None,
    keep: Path | None = None,
) -> CausalRanking:
    """Measure at which layers the direction of a contrast changes what the model says.

    Both personas of held-out pairs answer their prompts. The answers follow a neutral prompt, the topic without a
    persona, and the margin is the log-probability of the positive answer minus that of the negative one, per token.
    The effect of a direction is half the difference of the margin between adding and subtracting it. Directions are
    fitted on pairs with other personas and other topics. An effect counts if it holds for new personas and prompts and
    exceeds that of random directions of the same length, drawn from the covariance of the states, and of directions
    fitted to permuted labels (half of the personas swapped, so that the concept cancels).

    At the three layers where adding does most, if it works, the direction is also projected out while the personas' own
    prompts run: how much of the difference between their margins disappears?

    Args:
        model: The model that the contrast was captured from.
        tokenizer: Its tokenizer.
        data: A contrast at the site `resid_post`.
        request: What to measure.
        ranking: Ranking of the contrast, which chooses the layers if the request does not; without it, all are tested
            up to twelve.
        neutral: One neutral prompt per pair, or their file (see `open_prompts`); by default, the topics of a concept.
        steps: Called with each step, the number of items done, and the total; an exception it raises stops the work.
        keep: File that keeps finished parts. A later call with the same arguments resumes from it.

    Returns:
        The tested layers with effects, intervals, p-values and damage.

    Raises:
        RequestError: The pairs are too few, have no neutral prompts, or come from another model or site.
        ModelError: The model fails the load check, or is compiled.
        CaptureError: A prompt is too long.

    Example:
        >>> chosen = {"layers": [14], "max_samples": 96, "positions": "last"}
        >>> contrast = capture_from_concept(model, tokenizer, "formality", **chosen)
        >>> wanted = CausalRequest(prompts=8, answer_tokens=2)
        >>> found = rank_layers_causally(model, tokenizer, contrast, wanted)
        >>> [row["layer"] for row in found["layers"]], found["prompts"] <= 8
        ([14], True)
    """
    request, steps, started = request or CausalRequest(), steps or ignore_progress, time.monotonic()
    if not isinstance(request, CausalRequest):
        raise RequestError(f"the request is {request!r}", expected="a CausalRequest")
    require_contrast(data)
    layers, reason = candidate_layers(data, request, ranking)
    directions_by_layer(model, _some_direction(data, layers))  # refuses another model or site
    design = Design.of(data, request)
    trials, dropped = make_trials(model, tokenizer, data, design, request, neutral, steps)
    kept = KeptScores(keep, examine_model(model).config)
    experiment = Experiment(FanOut(model), data, request, design, trials, layers, kept, steps)
    test = compare_additions(added := experiment.additions(), request.seed)
    rows = _rows(experiment.layers, added, test)
    best = sorted((row for row in rows if works(row)), key=lambda row: -row["effect"])[:_MOST_ABLATED_LAYERS]
    working = sorted(row["layer"] for row in best)
    warnings = _warnings(data, design, dropped, trials, request.prompts)
    if provenance := data.get("provenance"):
        warnings += changed_model(provenance, model_state(model), "the capture")
    ablated = experiment.ablations(working) if request.ablation and working else None
    if ablated is not None:
        compared = compare_ablations(ablated, request.seed)
        if compared is None:
            warnings.append("not ablated: it is not certain that the personas prefer their own answers")
        else:
            _add_ablations(rows, ablated.layers, compared)
    for why, left_out in (("classes do not differ", experiment.skipped), ("states overflow", experiment.overflowed)):
        if left_out:
            warnings.append(f"left out layers {', '.join(map(str, sorted({*left_out})))}: the {why} there")
    personas = design.groups.get("persona")
    found = CausalRanking(
        layers=rows,
        candidates=reason,
        strength=request.strength,
        method=request.method,
        prompts=len(trials),
        personas=0 if personas is None else len({int(personas[trial.pair]) for trial in trials}),
        dropped=dropped,
        answer_tokens=request.answer_tokens,
        folds=design.folds,
        random_directions=request.controls,
        permutations=request.permutations,
        smallest_p=1 / (2 * (1 + request.controls + request.permutations)),
        margin=experiment.margin,
        seed=request.seed,
        seconds=time.monotonic() - started,
        warnings=warnings,
    )
    if ablated is not None:
        found["persona_margin"] = float(ablated.difference.mean())
        found["ablation_prompts"], found["ablation_controls"] = len(ablated.difference), ablated.removed.shape[1] - 1
    return found


def _some_direction(data: ContrastData, layers: Sequence[int]) -> Direction:
    """The direction at the last layer where the classes differ."""
    for layer in reversed(layers):
        with suppress(NoDifferenceError):
            return extract_direction(data, layer)
    return extract_direction(data, layers[-1])  # raises the error again


def candidate_layers(data: ContrastData, request: CausalRequest, ranking: Ranking | None) -> tuple[list[int], str]:
    """Choose the layers to steer at: the requested ones, or those tied with the best and their neighbours.

    Returns:
        The layers, ascending, and how they were chosen, in words.

    Raises:
        RequestError: A requested layer was not captured.
    """
    captured = data["layers"]
    if request.layers is not None:
        wanted = parse_layers(request.layers, data["positive"][0]["num_layers"])
        if missing := sorted({*wanted} - {*captured}):
            raise RequestError(f"layer {missing[0]} was not captured", expected=f"some of {captured}")
        return wanted, "the requested layers"
    if ranking is None:
        chosen = _spread(captured, captured[0])
        every = "all captured layers"
        return chosen, every if len(chosen) == len(captured) else f"{len(chosen)} of {every}, evenly spaced"
    tied = [row["layer"] for row in ranking["layers"] if may_be_best(row)]
    tied = tied or [row["layer"] for row in ranking["layers"] if row["tied"]]
    places = [captured.index(layer) for layer in tied]
    near = sorted({captured[place] for at in places for place in (at - 1, at, at + 1) if 0 <= place < len(captured)})
    chosen = _spread(near, ranking["layers"][0]["layer"])
    reason = (
        f"the {len(tied)} layers tied with the best and their neighbours"
        if len(tied) > 1
        else "the best layer and its neighbours"
    )
    return chosen, reason if len(chosen) == len(near) else f"{len(chosen)} of {reason}, evenly spaced"


def _spread(layers: Sequence[int], needed: int) -> list[int]:
    """At most `MOST_CANDIDATES` of the layers, evenly spaced, with the needed one."""
    if len(layers) <= MOST_CANDIDATES:
        return list(layers)
    step = (len(layers) - 1) / (MOST_CANDIDATES - 1)
    chosen = [layers[round(number * step)] for number in range(MOST_CANDIDATES)]
    nearest = min(chosen, key=lambda layer: abs(layer - needed))
    return sorted({*chosen} - {nearest} | {needed})


def _rows(layers: Sequence[int], added: AdditionResults, test: AdditionTest) -> list[CausalLayer]:
    return [
        CausalLayer(
            layer=layer,
            effect=float(test.interval.mean[place]),
            low=float(test.interval.low[place]),
            high=float(test.interval.high[place]),
            p_value=float(test.p_values[place]),
            p_by_control={name: float(values[place]) for name, values in test.p_by_control.items()},
            random=float(test.random[place]),
            permuted=float(test.permuted[place]),
            wrong_way=float(test.wrong_way[place]),
            quantiles=test.quantiles[place].tolist(),
            damage=float(added.damage[place, 0]),
            damage_random=float(added.damage[place, 1 + added.permuted :].mean()),
            perplexity=float(added.perplexity[place]),
        )
        for place, layer in enumerate(layers)
    ]


def _add_ablations(rows: Sequence[CausalLayer], layers: Sequence[int], test: AblationTest) -> None:
    by_layer = {row["layer"]: row for row in rows}
    for place, layer in enumerate(layers):
        by_layer[layer]["ablation"] = float(test.interval.mean[place])
        by_layer[layer]["ablation_low"] = float(test.interval.low[place])
        by_layer[layer]["ablation_high"] = float(test.interval.high[place])
        by_layer[layer]["ablation_control"] = float(test.controls[place])
        by_layer[layer]["ablation_p"] = float(test.p_values[place])


def _warnings(data: ContrastData, design: Design, dropped: int, trials: Sequence[Trial], wanted: int) -> list[str]:
    warnings, count = [], len(trials)
    if "response" in data["positive"][0]:
        warnings.append("what the personas say is taken from the responses in the capture")
    if not design.held_out:
        warnings.append("the pairs have no personas or topics: pairs were held out, which may share their wording")
    few = [name for name, numbers in design.groups.items() if name != "pair" and int(numbers.max()) + 1 < ENOUGH_GROUPS]
    if len({*design.templates}) > 1 and len({design.templates[trial.pair] for trial in trials}) < ENOUGH_GROUPS:
        few.append("template")
    if few:
        warnings.append(f"few values of {' and '.join(few)}: the effect may not hold for others")
    neutral = len({tuple(trial.neutral) for trial in trials})
    if neutral < min(len({int(numbers[trial.pair]) for trial in trials}) for numbers in design.groups.values()):
        differ = f"{neutral} differ" if neutral > 1 else "all are the same"
        warnings.append(f"of {count} neutral prompts, {differ}: the effect may not hold for others")
    if dropped:
        left_out = f"left out {dropped} pairs whose personas say the same, or nothing"
        warnings.append(left_out if count == wanted else f"{left_out}: {count} of {wanted} prompts remain")
    return warnings
