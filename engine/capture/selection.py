"""Parse layer and token position arguments."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from engine.errors import RequestError
from engine.inputs import whole_number, whole_numbers
from engine.remedies import Remedy

LayerSpec = str | int | Iterable[int] | None

_PART = re.compile(r"(-?\d{1,9})(?:-(-?\d{1,9}))?")


def recommended_layers(num_layers: int) -> list[int]:
    """The middle layers, where concepts tend to be represented.

    These are floor(0.45 n) to floor(0.85 n), inclusive, for n layers.

    Example:
        >>> recommended_layers(30)[0], recommended_layers(30)[-1]
        (13, 25)
    """
    return list(range(int(0.45 * num_layers), int(0.85 * num_layers) + 1))


def wants_all(layers: LayerSpec) -> bool:
    """Whether a layer argument means all layers."""
    return layers is None or (isinstance(layers, str) and layers.strip() == "all")


def parse_layers(layers: LayerSpec, num_layers: int) -> list[int]:
    """Parse a layer argument into layer numbers.

    Args:
        layers: None or "all", "recommended", one number, several (a list, range, array, Series or generator), or text
            such as "14,15" or "0,10-20,-1". Ranges include both ends; negative numbers count from the end.
        num_layers: Number of decoder blocks, n.

    Returns:
        Layer numbers from 0 to n - 1, ascending, without duplicates.

    Raises:
        RequestError: A number is out of range, a range is reversed, the text cannot be parsed, or there are no layers.

    Example:
        >>> parse_layers("0,10-12,-1", 30)
        [0, 10, 11, 12, 29]
    """
    if wants_all(layers):
        return list(range(num_layers))
    if isinstance(layers, str):
        if layers.strip() == "recommended":
            return recommended_layers(num_layers)
        numbers = [number for part in layers.split(",") for number in _parse_part(part.strip(), layers, num_layers)]
    else:
        entries = whole_numbers(layers)
        numbers = [_from_start(number, num_layers) for number in ([layers] if entries is None else entries)]
    if not numbers:
        raise RequestError("no layers were requested", expected=_range(num_layers))
    return sorted(set(numbers))


def plain_layers(layers: LayerSpec) -> LayerSpec:
    """A layer argument in plain values, refused if no model can have such layers.

    Args:
        layers: See `parse_layers`.

    Returns:
        None, the text, or the numbers as a tuple.

    Raises:
        RequestError: There are no layers, or something is not a layer number.

    Example:
        >>> plain_layers(range(14, 17)), plain_layers("recommended")
        ((14, 15, 16), 'recommended')
    """
    if layers is None or wants_all(layers):
        return layers
    if isinstance(layers, str):
        text = layers.strip()
        if text != "recommended":
            for part in text.split(","):
                _match_part(part.strip(), layers)
        return layers
    entries = whole_numbers(layers)
    numbers = [whole_number(entry) for entry in ([layers] if entries is None else entries)]
    for number, entry in zip(numbers, [layers] if entries is None else entries, strict=True):
        if number is None:
            raise RequestError(f"{entry!r} is not a layer number", expected="whole numbers")
    if not numbers:
        raise RequestError("no layers were requested", expected="at least one, or None for all")
    return tuple(number for number in numbers if number is not None)


def captured_layer(layer: object, layers: Collection[int]) -> int:
    """Check that a layer was captured, and return its number.

    Args:
        layer: The requested layer.
        layers: The captured layers.

    Raises:
        RequestError: The layer was not captured.
    """
    number = whole_number(layer)
    if number is None or number not in layers:
        raise RequestError(f"layer {layer} was not captured", expected=f"one of {[*layers]}")
    return number


def _match_part(part: str, whole: str) -> re.Match[str]:
    match = _PART.fullmatch(part)
    if match is None:
        raise RequestError(
            f"the layers {whole!r} cannot be parsed at {part!r}",
            expected="all, recommended, or numbers and ranges such as 14,15 or 10-20",
        )
    return match


def _parse_part(part: str, whole: str, num_layers: int) -> range:
    match = _match_part(part, whole)
    first = _from_start(int(match[1]), num_layers)
    last = _from_start(int(match[2]), num_layers) if match[2] else first
    if last < first:
        raise RequestError(f"the layer range {part!r} is reversed", expected=f"{last}-{first}")
    return range(first, last + 1)


def _from_start(layer: object, num_layers: int) -> int:
    number = whole_number(layer)
    if number is None:
        raise RequestError(f"{layer!r} is not a layer number", expected=_range(num_layers))
    if not -num_layers <= number < num_layers:
        raise RequestError(
            f"layer {number} is out of range for a model with {num_layers} layers", expected=_range(num_layers)
        )
    return number % num_layers


def _range(num_layers: int) -> str:
    return f"layers 0 to {num_layers - 1}, or -{num_layers} to -1 counted from the end"


PositionSpec = str | int | tuple[int, int]

DEFAULT_POSITIONS = "last"
"""Default for contrasts and for lists and files of prompts, where all tokens would take too much space."""
SINGLE_PROMPT_POSITIONS = "all"
"""Default for a single prompt."""
RESPONSE_POSITIONS = "response"
"""Default for prompts with responses."""

_SPAN = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?")


@dataclass(frozen=True)
class Positions:
    """The tokens to keep of every prompt: a span, kept whole or averaged.

    Attributes:
        start: First token of the span; negative counts from the end.
        stop: Token after the last; None for the end of the prompt.
        mean: Whether to average the states of the span into one.
        text: The argument as written; saved with a capture.
        response: Whether the span counts from the first token of the response.
    """

    start: int
    stop: int | None
    mean: bool
    text: str
    response: bool = False

    def span(self, length: int, prompt: object = "a prompt", boundary: int | None = None) -> tuple[int, int]:
        """First token and the token after the last, for a prompt of `length` tokens.

        For an empty response, which the model ended at once, every position is the last token of the prompt.

        Args:
            length: Number of tokens of the prompt, its response included.
            prompt: What error messages call the prompt.
            boundary: Number of tokens before the response; None without one.

        Raises:
            RequestError: The prompt does not have these tokens, or has no response.
        """
        if self.response:
            if boundary is None:
                raise no_responses(self.text)
            return (length - 1 if self.start < 0 else min(boundary, length - 1)), length
        start = self.start + length if self.start < 0 else self.start
        stop = length if self.stop is None else self.stop + length if self.stop < 0 else self.stop
        if not 0 <= start < stop <= length:
            raise RequestError(
                f"{prompt} has {length} token{'' if length == 1 else 's'}, so positions {self.text!r} do not exist",
                expected="two or more tokens, because the mean leaves out the first; mean:0: takes all"
                if self.text == "mean"
                else f"tokens 0 to {length - 1}, or -{length} to -1 counted from the end",
            )
        return start, stop

    def kept(self, length: int, prompt: object = "a prompt", boundary: int | None = None) -> int:
        """Number of states kept per layer of a prompt of `length` tokens; see `span`.

        Raises:
            RequestError: See `span`.
        """
        start, stop = self.span(length, prompt, boundary)
        return 1 if self.mean else stop - start


def parse_positions(positions: PositionSpec) -> Positions:
    """Parse a positions argument.

    Args:
        positions: "all"; "last"; an index such as 3 or "-2"; a span such as "2:10", "-5:" or (2, 10), end excluded;
            "mean" for the mean of all tokens but the first, whose state is hundreds of times larger than the others in
            many models; "mean:2:10" for the mean of a span ("mean:0:" for all tokens). Of prompts with responses:
            "response" for the mean of all tokens of the response, "response:all" for each of them, "response:last" for
            the last one. The other positions count the tokens of a prompt and its response together.

    Raises:
        RequestError: The text cannot be parsed.

    Example:
        >>> parse_positions("last").span(7)
        (6, 7)
    """
    if isinstance(positions, tuple):
        ends = [*map(whole_number, positions)]
        positions = f"{ends[0]}:{ends[1]}" if len(ends) == 2 else str(positions)
    text = str(positions).strip()
    named = {"all": (0, None, False), "last": (-1, None, False), "mean": (1, None, True)}
    if text in named:
        return Positions(*named[text], text)
    of_response = {"response": (0, None, True), "response:all": (0, None, False), "response:last": (-1, None, False)}
    if text in of_response:
        return Positions(*of_response[text], text, response=True)
    body = text.removeprefix("mean:")
    if match := _SPAN.fullmatch(body):
        return Positions(int(match[1] or 0), int(match[2]) if match[2] else None, body != text, text)
    if re.fullmatch(r"-?\d{1,9}", text):
        index = int(text)
        return Positions(index, index + 1 if index != -1 else None, False, text)
    raise RequestError(
        f"the positions {text!r} cannot be parsed",
        expected="all, last, mean, an index such as -2, a span such as 2:10, mean:2:10, response, response:all or"
        " response:last",
    )


def no_responses(positions: str) -> RequestError:
    """The error for positions of a response where there is none."""
    return RequestError(
        f"positions {positions!r} need responses, and the prompts have none", next_step=Remedy.ADD_RESPONSES
    )
