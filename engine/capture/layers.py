"""What a layer argument means for a model of n blocks. A layer number is always the number of a block, from 0."""

import re
from collections.abc import Collection, Iterable

from engine.errors import RequestError
from engine.plain import whole_number, whole_numbers

LayerSpec = str | int | Iterable[int] | None

_PART = re.compile(r"(-?\d{1,9})(?:-(-?\d{1,9}))?")


def recommended_layers(num_layers: int) -> list[int]:
    """The middle of the model, where concepts tend to be carried: floor(0.45 n) to floor(0.85 n), both included.

    Example:
        >>> recommended_layers(30)[0], recommended_layers(30)[-1]
        (13, 25)
    """
    return list(range(int(0.45 * num_layers), int(0.85 * num_layers) + 1))


def wants_all(layers: LayerSpec) -> bool:
    """Whether a layer argument names no layers in particular."""
    return layers is None or (isinstance(layers, str) and layers.strip() == "all")


def parse_layers(layers: LayerSpec, num_layers: int) -> list[int]:
    """Turn what a user writes into layer numbers.

    Args:
        layers: None or "all", "recommended", one number, several (a list, range, array, Series or generator), or text
            such as "14,15" or "0,10-20,-1". Ranges include both ends; negative numbers count from the end.
        num_layers: Number of decoder blocks, n.

    Returns:
        Layer numbers from 0 to n - 1, ascending, each once.

    Raises:
        RequestError: A number is out of range, a range runs backwards, or the text cannot be read.

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
        raise RequestError("no layers were asked for", expected=_range(num_layers))
    return sorted(set(numbers))


def captured_layer(layer: object, layers: Collection[int]) -> int:
    """The number of a layer that a capture holds.

    Args:
        layer: What a user asks for.
        layers: Those that were captured.

    Raises:
        RequestError: It is none of them.
    """
    number = whole_number(layer)
    if number is None or number not in layers:
        raise RequestError(f"layer {layer} was not captured", expected=f"one of {[*layers]}")
    return number


def _parse_part(part: str, whole: str, num_layers: int) -> range:
    match = _PART.fullmatch(part)
    if match is None:
        raise RequestError(
            f"the layers {whole!r} cannot be read at {part!r}",
            expected="all, recommended, or numbers and ranges such as 14,15 or 10-20",
        )
    first = _from_start(int(match[1]), num_layers)
    last = _from_start(int(match[2]), num_layers) if match[2] else first
    if last < first:
        raise RequestError(f"the range of layers {part!r} runs backwards", expected=f"{last}-{first}")
    return range(first, last + 1)


def _from_start(layer: object, num_layers: int) -> int:
    number = whole_number(layer)
    if number is None:
        raise RequestError(f"{layer!r} is not a layer number", expected=_range(num_layers))
    if not -num_layers <= number < num_layers:
        raise RequestError(
            f"layer {number} is out of range for a model of {num_layers} layers", expected=_range(num_layers)
        )
    return number % num_layers


def _range(num_layers: int) -> str:
    return f"layers 0 to {num_layers - 1}, or -{num_layers} to -1 counted from the end"
