"""Generate texts with and without steering, and measure them under the unsteered model: `steer_text`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from engine.capture.activations import capture_activations
from engine.capture.generation import require_settings
from engine.capture.prompts import longest_prompt
from engine.capture.responses import require_room
from engine.concepts.chat import render_chat
from engine.errors import RequestError
from engine.inputs import plain_text, require_seed, require_strength, require_whole
from engine.records.captures import ContrastData, Message, Provenance, changed_model
from engine.records.files import Direction
from engine.records.steering import UNITS, Kind, SteeredText, SteeredTexts, Tokens, Unit
from engine.runtime import Steps, ignore_progress
from engine.stats.reading import require_same_model, unknown_origin
from engine.stats.token_texts import token_texts
from engine.steering.apply import NotFiniteError, ablate, length_of, listed, not_finite, require_choice, steer
from engine.steering.controls import random_directions
from engine.steering.writing import Writer, Written

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Plan:
    """A text to generate.

    Attributes:
        kind: See `SteeredText`.
        strength: See `SteeredText`.
        steering: Makes the context for the generation.
    """

    kind: Kind
    strength: float | None
    steering: Callable[[], AbstractContextManager[None]]

    def refusal(self, dtype: torch.dtype) -> NotFiniteError:
        """The error if a prediction is not finite."""
        along = "a random direction" if self.kind == "control" else "the direction"
        if self.strength is not None:
            return not_finite(f"when steered by {self.strength:g} along {along}", dtype)
        return not_finite("without steering" if self.kind == "baseline" else f"without {along}", dtype, steered=False)


def steer_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directions: Direction | Mapping[int, Direction],
    prompt: str,
    *,
    layer: int | None = None,
    strengths: Sequence[float] = (0.1,),
    unit: Unit = "norm",
    tokens: Tokens = "all",
    ablation: bool = False,
    data: ContrastData | None = None,
    chat: bool = True,
    max_new_tokens: int = 60,
    sample: bool = False,
    seed: int = 0,
    earlier: SteeredTexts | None = None,
    steps: Steps | None = None,
) -> SteeredTexts:
    """Let a model answer a prompt with and without steering, next to a random direction of the same length.

    The unsteered model then reads every text: its perplexity shows the damage, its mean projection on the direction the
    effect on what is said (not the vector that was added).

    A strength at which a state or a prediction overflows, as it may in float16, has no text: its entry says why in
    `problem`, and so does a warning. If all strengths overflow, that is an error.

    Args:
        model: The model that the directions were extracted from.
        tokenizer: Tokenizer of the model.
        directions: A direction, or layer to direction, as returned by `load_directions`.
        prompt: What the user says.
        layer: Layer to steer at; the middle one of `directions` by default.
        strengths: One or more strengths, see `steer`.
        unit: Unit of the strengths, see `steer`.
        tokens: Tokens to steer, see `steer`.
        ablation: Project the direction out of every token instead of adding it; the three arguments above do not apply.
        data: The contrast that the directions come from. The random direction is drawn from the covariance of its
            states; without it, there is none.
        chat: Whether to pass the prompt through the chat template. A model without one receives it unchanged.
        max_new_tokens: Maximum number of new tokens of each text.
        sample: Whether to sample, with the model's own generation settings, instead of taking the most likely token.
        seed: Seed for sampling, the same for every text, and for the random direction.
        earlier: An earlier result of the same model. Its baseline is used again, instead of being written again, if it
            answers the same prompt with the same length and sampling.
        steps: Called with a step, the number of new tokens done, and the maximum number in total.

    Returns:
        The texts with their measurements.

    Raises:
        RequestError: An argument is invalid, there is no direction at the layer, predictions are not finite at any of
            the strengths or without steering, or see `steer`.
        CaptureError: The prompt is empty or too long.
        ModelError: See `steer`.

    Example:
        >>> direction = extract_direction(data, 16)
        >>> texts = steer_text(model, tokenizer, direction, "Who broke the vase?", data=data, max_new_tokens=4)
        >>> [(text["kind"], text["tokens"]) for text in (texts["baseline"], *texts["steered"], *texts["controls"])]
        [('baseline', 4), ('steered', 4), ('control', 4)]
    """
    direction = _chosen(directions, layer)
    provenance = require_same_model(model, {direction["layer"]: direction})
    require_choice("the unit", unit, UNITS)
    amounts = [] if ablation else _amounts(strengths)
    limit, number = require_whole(max_new_tokens, "the number of new tokens", 1), require_seed(seed)
    prompt = plain_text(prompt, "the prompt")
    has_template = bool(tokenizer.chat_template)
    rendered = render_chat(tokenizer, (Message(role="user", content=prompt),)) if chat else prompt
    here = capture_activations(
        model, tokenizer, rendered, [direction["layer"]], positions="last", rendered=chat and has_template
    )
    ids: list[int] = here["input_ids"][0].tolist()
    require_room(len(ids), limit, longest_prompt(model, tokenizer), "the prompt")
    require_settings(model)
    warnings = _warnings(direction, provenance, here["provenance"])
    if chat and not has_template:
        warnings.append("the model has no chat template: it received the prompt unchanged")
    control = _control(data, direction, number, warnings)
    plans = (
        _ablations(model, direction, control)
        if ablation
        else _additions(model, direction, control, amounts, tokens=tokens, unit=unit)
    )
    writer = Writer(model, tokenizer, ids, direction, limit, bool(sample), number)
    baseline = _known_baseline(earlier, writer, rendered)
    texts = _write_all(writer, plans, baseline, steps or ignore_progress)
    warnings += [text["problem"] for text in texts if "problem" in text]
    found = SteeredTexts(
        prompt=prompt,
        rendered=rendered,
        layer=direction["layer"],
        concept=direction["concept"],
        method=direction["method"],
        unit=unit,
        steered_tokens="all" if ablation else tokens,
        sampled=writer.sample,
        seed=number,
        max_new_tokens=limit,
        baseline=texts[0],
        steered=[text for text in texts if text["kind"] in {"steered", "ablated"}],
        controls=[text for text in texts if text["kind"] == "control"],
        warnings=warnings,
    )
    if not ablation:
        found["unit_length"] = length_of(direction, unit)
    for one in control:
        found["control_cosine"] = float(one["vector"] @ direction["vector"].float())
    return found


def _additions(
    model: PreTrainedModel,
    direction: Direction,
    control: Sequence[Direction],
    amounts: Sequence[float],
    *,
    tokens: Tokens,
    unit: Unit,
) -> list[_Plan]:
    """Plan the baseline, a text for each strength, and the same with random directions."""
    length = length_of(direction, unit)
    return [
        _Plan("baseline", None, nullcontext),
        *(
            _Plan("steered", amount, partial(steer, model, direction, amount, tokens=tokens, unit=unit))
            for amount in amounts
        ),
        *(
            _Plan("control", amount, partial(steer, model, one, amount * length, tokens=tokens, unit="raw"))
            for one in control
            for amount in amounts
        ),
    ]


def _ablations(model: PreTrainedModel, direction: Direction, control: Sequence[Direction]) -> list[_Plan]:
    """Plan the baseline, a text without the direction, and the same with random directions."""
    return [
        _Plan("baseline", None, nullcontext),
        _Plan("ablated", None, partial(ablate, model, direction)),
        *(_Plan("control", None, partial(ablate, model, one)) for one in control),
    ]


def _known_baseline(earlier: SteeredTexts | None, writer: Writer, rendered: str) -> Written | None:
    """Return the baseline of an earlier result if it is the one that would be written now."""
    if earlier is None or "token_ids" not in earlier["baseline"]:
        return None
    asked = (rendered, writer.max_new_tokens, writer.sample, writer.seed if writer.sample else None)
    given = (earlier["rendered"], earlier["max_new_tokens"], earlier["sampled"])
    if asked != (*given, earlier["seed"] if earlier["sampled"] else None):
        return None
    text = earlier["baseline"]
    return Written(text["text"], text["token_ids"], text["ended"], text["perplexity"])


def _write_all(writer: Writer, plans: Sequence[_Plan], baseline: Written | None, steps: Steps) -> list[SteeredText]:
    """Write and measure the texts, the baseline first, unless it is known.

    Raises:
        NotFiniteError: Predictions overflow at every strength.
        RequestError: Predictions are not finite without steering.
    """
    overflows: dict[int, NotFiniteError] = {}
    for number, plan in enumerate(plans):  # an invalid argument is refused before any text is written
        try:
            with plan.steering():
                pass
        except NotFiniteError as error:  # that of a control names its length, not the strength
            refusal = plan.refusal(writer.model.dtype) if plan.kind == "control" else error
            _add_overflow(overflows, number, refusal, plans)
    texts: list[SteeredText] = []
    total = len(plans) * writer.max_new_tokens
    for number, plan in enumerate(plans):
        before = number * writer.max_new_tokens

        def report(new: int, before: int = before, kind: str = plan.kind) -> None:
            steps(f"writing: {kind}", before + new, total)

        report(0)
        written = baseline if plan.kind == "baseline" else None
        if written is None and number not in overflows:
            try:
                written = writer.write(plan.steering(), plan.refusal(writer.model.dtype), report)
            except NotFiniteError as error:
                _add_overflow(overflows, number, error, plans)
        if written is None:
            texts.append(_without_text(plan, overflows[number].problem))
        else:
            texts.append(_measured(writer, plan, written, texts[0] if texts else None))
    return texts


def _add_overflow(
    overflows: dict[int, NotFiniteError], number: int, error: NotFiniteError, plans: Sequence[_Plan]
) -> None:
    """Note that a text overflows; raise an error if it is the baseline, or if nothing steered is left."""
    if plans[number].kind == "baseline":  # no strength is to blame
        raise RequestError(error.problem, expected=error.expected, next_step=error.next_step)
    overflows[number] = error
    steered = [place for place, plan in enumerate(plans) if plan.kind in {"steered", "ablated"}]
    if overflows.keys() >= {*steered}:
        raise overflows[min(steered, key=lambda place: abs(plans[place].strength or 0.0))]


def _without_text(plan: _Plan, problem: str) -> SteeredText:
    return SteeredText(
        kind=plan.kind,
        strength=plan.strength,
        text="",
        tokens=0,
        ended=True,
        perplexity=math.nan,
        projection=math.nan,
        shift=math.nan,
        token_ids=[],
        token_texts=[],
        projections=[],
        problem=problem,
    )


def _measured(writer: Writer, plan: _Plan, written: Written, baseline: SteeredText | None) -> SteeredText:
    values = writer.project(written.ids)
    projection = fmean(values)
    spelled = writer.tokenizer.convert_ids_to_tokens(written.ids)
    return SteeredText(
        kind=plan.kind,
        strength=plan.strength,
        text=written.text,
        tokens=len(written.ids),
        ended=written.ended,
        perplexity=written.perplexity,
        projection=projection,
        shift=projection - baseline["projection"] if baseline else 0.0,
        token_ids=written.ids,
        token_texts=token_texts(writer.tokenizer, written.ids, spelled),
        projections=values,
    )


def _chosen(directions: Direction | Mapping[int, Direction], layer: int | None) -> Direction:
    """Return the direction at a layer; the middle one by default."""
    by_layer = {direction["layer"]: direction for direction in listed(directions)}
    layers = sorted(by_layer)
    chosen = layers[len(layers) // 2] if layer is None else layer
    if chosen not in by_layer:
        raise RequestError(f"there is no direction at layer {layer}", expected=f"one of {layers}")
    return by_layer[chosen]


def _amounts(strengths: Sequence[float]) -> list[float]:
    if isinstance(strengths, str | bytes) or not isinstance(strengths, Sequence):
        raise RequestError(f"the strengths cannot be {strengths!r}", expected="a list of numbers, such as [0.1]")
    amounts = [require_strength(strength) for strength in strengths]
    if not amounts:
        raise RequestError("there is no strength to steer with", expected="at least one number, such as 0.1")
    return list(dict.fromkeys(amounts))


def _warnings(direction: Direction, theirs: Provenance | None, mine: Provenance) -> list[str]:
    warnings = [] if theirs else [unknown_origin({direction["layer"]: direction})]
    if theirs:
        warnings += changed_model(theirs, mine, "the direction")
    if direction["positive_mean"] == direction["negative_mean"]:
        warnings.append("the direction has no class means: projections are in the units of the states")
    return warnings


def _control(data: ContrastData | None, direction: Direction, seed: int, warnings: list[str]) -> list[Direction]:
    """Draw the random direction; without the pairs, return none and add a warning."""
    layer = direction["layer"]
    if data is None:
        warnings.append("no control: the pairs of the direction are needed to draw a random one")
        return []
    if layer not in data["layers"] or data["positive"][0]["activations"][layer].shape[-1] != len(direction["vector"]):
        warnings.append(f"no control: the pairs do not have layer {layer} of the direction's width")
        return []
    return random_directions(data, direction, 1, seed)
