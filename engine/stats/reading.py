"""Projection of every token of a text on directions: `read_text`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engine.capture.activations import capture_activations
from engine.capture.selection import parse_positions
from engine.concepts.chat import render_chat, time_now
from engine.errors import RequestError
from engine.inputs import plain_text, whole_number
from engine.models.description import describe_model
from engine.records.captures import ActivationData, Message, Provenance, changed_model
from engine.records.checks import require_directions
from engine.records.files import Direction, TokenReading
from engine.stats.token_texts import token_texts, tokens_to_set_aside

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOW, _HIGH = -1.0, 2.0  # one class gap beyond either class mean
_FROM_THE_END = (
    "the direction comes from the last token of each prompt: to read running text, capture with positions=mean"
)


def read_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directions: Mapping[int, Direction],
    text: str,
    *,
    leading: int | None = None,
    chat: bool = False,
    rendered: bool = False,
) -> TokenReading:
    """Project every token of a text on directions, scaled to the class means.

    Args:
        model: The model that the directions were extracted from.
        tokenizer: Tokenizer of the model.
        directions: Layer to direction, as returned by `load_directions`.
        text: Text to read, within the model's maximum length.
        leading: Layer to show first; the middle one by default.
        chat: Whether to pass the text through the chat template as a user message. Otherwise it is read unchanged.
        rendered: Whether the text has already been through the chat template, like a captured prompt.

    Returns:
        One projection per token and layer: 0 at the mean of the negative prompts, 1 at the mean of the positive ones.
        `set_aside` lists the tokens that say little about the text: the first, special tokens and the markup of the
        chat template.

    Raises:
        RequestError: There are no directions, none at the leading layer, or they come from another model.
        CaptureError: The text is empty or too long.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24, positions="last")
        >>> reading = read_text(model, tokenizer, {16: extract_direction(contrast, 16)}, "I swear it is true")
        >>> reading["tokens"]
        ['I', 'Ġswear', 'Ġit', 'Ġis', 'Ġtrue']
    """
    text = plain_text(text, "the text")
    provenance = require_same_model(model, directions)
    warnings = [] if provenance else [unknown_origin(directions)]
    if chat and not tokenizer.chat_template:
        warnings.append("the model has no chat template: the text was read unchanged")
    moment = provenance.get("template_time") if provenance and rendered else time_now()
    prompt = render_chat(tokenizer, (Message(role="user", content=text),), moment) if chat else text
    roles = _possible_roles(tokenizer, chat=chat, rendered=rendered)
    site = _site(directions)
    layers = None if site in {"embed", "final_norm"} else sorted(directions)
    data = capture_activations(
        model, tokenizer, prompt, layers, use_hooks=True, rendered=rendered or bool(roles), site=site
    )
    if provenance:
        warnings += changed_model(provenance, data["provenance"], "the directions")
    if provenance and not rendered and not parse_positions(provenance["positions"]).mean:
        warnings.append(_FROM_THE_END)
    ids: list[int] = data["input_ids"][0].tolist()
    aside = tokens_to_set_aside(tokenizer, prompt, ids, roles=roles, moment=moment)
    reading = read_tokens(data, directions, leading=leading, warnings=warnings, set_aside=aside)
    reading["texts"] = token_texts(tokenizer, ids, reading["tokens"])
    return reading


def read_tokens(
    data: ActivationData,
    directions: Mapping[int, Direction],
    *,
    leading: int | None = None,
    warnings: list[str] | None = None,
    set_aside: Sequence[int] = (0,),
) -> TokenReading:
    """Project every token of a captured text on directions; see `read_text`.

    Args:
        data: A capture of one prompt with all positions.
        directions: Layer to direction.
        leading: Layer to show first; the middle one by default.
        warnings: Warnings to include in the result.
        set_aside: Indices of the tokens that say little about the text.

    Raises:
        RequestError: There is no direction at the leading layer.
    """
    layers = sorted(directions)
    chosen = whole_number(leading) if leading is not None else layers[len(layers) // 2]
    if chosen is None or chosen not in directions:
        raise RequestError(f"there is no direction at layer {leading}", expected=f"one of {layers}")
    some = directions[chosen]
    values = {layer: _values(data, directions[layer]) for layer in layers}
    others = [value for place, value in enumerate(values[chosen]) if place not in set_aside]
    reading = TokenReading(
        prompt=str(data["prompt"]),
        tokens=[str(token) for token in data["tokens"]],
        layers=layers,
        leading=chosen,
        values=values,
        concept=some["concept"],
        method=some["method"],
        warnings=[*(warnings or []), *_far_off(others or values[chosen], some)],
        set_aside=[*set_aside],
    )
    if "methods" in some:
        reading["methods"] = some["methods"]
    return reading


def _possible_roles(tokenizer: PreTrainedTokenizerBase, *, chat: bool, rendered: bool) -> list[list[str]]:
    """Roles of the messages that the chat template may have rendered; empty if the text did not go through it."""
    if not tokenizer.chat_template:
        return []
    if rendered:
        return [["user"], ["system", "user"]]
    return [["user"]] if chat else []


def _values(data: ActivationData, direction: Direction) -> list[float]:
    states = data["activations"][direction["layer"]][0].double()  # (tokens, hidden)
    projected = states @ direction["vector"].double()
    gap = direction["positive_mean"] - direction["negative_mean"]
    values: list[float] = ((projected - direction["negative_mean"]) / gap).tolist()
    return values


def unknown_origin(directions: Mapping[int, Direction]) -> str:
    """Warn that nothing shows which model directions without provenance come from."""
    imported = next(iter(directions.values())).get("imported")
    if imported is None:
        return "the directions have no provenance: they may come from another model"
    return f"the directions were imported for {imported['model']}: nothing shows that they come from this model"


def _far_off(values: list[float], direction: Direction) -> list[str]:
    """Warn if most tokens are far outside both classes: 0 and 1 then mean little."""
    if "imported" in direction:
        return []  # without classes, 1 is the length of the vector in its file
    far = sum(not _LOW <= value <= _HIGH for value in values)
    if 2 * far <= len(values):
        return []
    provenance = direction["provenance"]
    read = f" (positions {provenance['positions']})" if provenance else ""
    return [
        f"most tokens project far outside both classes at layer {direction['layer']}: they differ in kind from those"
        f" that the direction was extracted from{read}; compare them with each other, not with 0 and 1"
    ]


def _site(directions: Mapping[int, Direction]) -> str:
    provenance = next(iter(directions.values()))["provenance"]
    return provenance["site"] if provenance else "resid_post"


def require_same_model(model: PreTrainedModel, directions: Mapping[int, Direction]) -> Provenance | None:
    """Return the provenance of the directions, if known.

    Raises:
        RequestError: There are no directions, or they come from another model.
    """
    require_directions(directions)
    if not directions:
        raise RequestError("there are no directions to project on", expected="at least one direction")
    config = describe_model(model)
    width = len(next(iter(directions.values()))["vector"])
    provenance = next(iter(directions.values()))["provenance"]
    if width != config.hidden_size or (provenance and provenance["model"] != config.source.model_id):
        origin = provenance["model"] if provenance else "an unknown model"
        raise RequestError(
            f"the directions come from {origin} (width {width}), but the model is {config.source.model_id}"
            f" (width {config.hidden_size})",
            expected="directions of the same model",
            next_step="capture the contrast with this model",
        )
    return provenance
