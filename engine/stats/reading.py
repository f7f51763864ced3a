"""What a text shows along directions, token by token: `read_text`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.capture.activations import capture_activations
from engine.concepts.chat import render_chat
from engine.errors import RequestError
from engine.inputs import plain_text, whole_number
from engine.models.description import describe_model
from engine.records.captures import ActivationData, Message, Provenance, model_differences
from engine.records.files import Direction, TokenReading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOW, _HIGH = -1.0, 2.0  # one class gap beyond either side


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
    """Read every token of a text along directions, in units of the gap between the two sides.

    Args:
        model: The model that the directions come from.
        tokenizer: Its tokenizer.
        directions: Layer to direction, as `load_directions` returns them.
        text: Any text that the model can take.
        leading: The layer to look at first; the middle one unless given.
        chat: Whether the text is what a user says, to go through the chat template; else it is taken as it is.
        rendered: Whether the text went through the chat template already, as a captured prompt did.

    Returns:
        For each token and layer its projection, 0 at the mean of the negative prompts and 1 at that of the positive.

    Raises:
        RequestError: The directions come from another model, or there are none.
        CaptureError: The text is empty or too long.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24, positions="last")
        >>> reading = read_text(model, tokenizer, {16: extract_direction(contrast, 16)}, "I swear it is true")
        >>> reading["tokens"]
        ['I', 'Ġswear', 'Ġit', 'Ġis', 'Ġtrue']
    """
    text = plain_text(text, "the text")
    provenance = _require_same_model(model, directions)
    warnings = [] if provenance else ["where the directions come from is unknown"]
    if chat and not tokenizer.chat_template:
        warnings.append("the model has no chat template: the text was taken as it is")
    prompt = render_chat(tokenizer, (Message(role="user", content=text),)) if chat else text
    rendered = rendered or (chat and bool(tokenizer.chat_template))
    site = _site(directions)
    layers = None if site in {"embed", "final_norm"} else sorted(directions)
    data = capture_activations(model, tokenizer, prompt, layers, use_hooks=True, rendered=rendered, site=site)
    if provenance:
        warnings += [
            f"the model differs from that of the directions in {field}: {theirs} there, {mine} here"
            for field, theirs, mine in model_differences(provenance, data["provenance"])
        ]
    return read_tokens(data, directions, leading=leading, warnings=warnings)


def read_tokens(
    data: ActivationData,
    directions: Mapping[int, Direction],
    *,
    leading: int | None = None,
    warnings: list[str] | None = None,
) -> TokenReading:
    """The same for a text that has been captured, all positions kept.

    Args:
        data: A capture of one prompt.
        directions: Layer to direction.
        leading: The layer to look at first.
        warnings: To be passed on.
    """
    layers = sorted(directions)
    chosen = whole_number(leading) if leading is not None else layers[len(layers) // 2]
    if chosen is None or chosen not in directions:
        raise RequestError(f"there is no direction at layer {leading}", expected=f"one of {layers}")
    some = directions[chosen]
    values = {layer: _values(data, directions[layer]) for layer in layers}
    return TokenReading(
        prompt=str(data["prompt"]),
        tokens=[str(token) for token in data["tokens"]],
        layers=layers,
        leading=chosen,
        values=values,
        concept=some["concept"],
        method=some["method"],
        warnings=[*(warnings or []), *_far_off(values[chosen], some)],
    )


def _values(data: ActivationData, direction: Direction) -> list[float]:
    states = data["activations"][direction["layer"]][0].double()  # (tokens, hidden)
    projected = states @ direction["vector"].double()
    gap = direction["positive_mean"] - direction["negative_mean"]
    values: list[float] = ((projected - direction["negative_mean"]) / gap).tolist()
    return values


def _far_off(values: list[float], direction: Direction) -> list[str]:
    """A warning where 0 and 1 mean little: tokens of another kind than those that the sides were read at."""
    far = sum(not _LOW <= value <= _HIGH for value in values)
    if 2 * far <= len(values):
        return []
    provenance = direction["provenance"]
    read = f" (positions {provenance['positions']})" if provenance else ""
    return [
        f"most tokens lie far from both sides at layer {direction['layer']}: they are of another kind than those that"
        f" the direction was read at{read}; compare them with each other, not with 0 and 1"
    ]


def _site(directions: Mapping[int, Direction]) -> str:
    provenance = next(iter(directions.values()))["provenance"]
    return provenance["site"] if provenance else "resid_post"


def _require_same_model(model: PreTrainedModel, directions: Mapping[int, Direction]) -> Provenance | None:
    """How the directions were captured, if that is known; refuses those of another model."""
    if not directions:
        raise RequestError("there are no directions to read along", expected="one layer's at least")
    config = describe_model(model)
    width = len(next(iter(directions.values()))["vector"])
    provenance = next(iter(directions.values()))["provenance"]
    if width != config.hidden_size or (provenance and provenance["model"] != config.source.model_id):
        origin = provenance["model"] if provenance else "an unknown model"
        raise RequestError(
            f"the directions come from {origin} (width {width}), the model is {config.source.model_id}"
            f" (width {config.hidden_size})",
            expected="directions of the same model",
            next_step="capture the contrast with this model",
        )
    return provenance
