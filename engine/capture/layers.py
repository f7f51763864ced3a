"""What a layer argument means for a model of n blocks. A layer number is always the number of a block, from 0."""

import operator
import re
from collections.abc import Sequence
from typing import SupportsIndex

from engine.errors import RequestError

LayerSpec = str | int | Sequence[int] | None

_PART = re.compile(r"(-?\d+)(?:-(-?\d+))?")


def recommended_layers(num_layers: int) -> list[int]:
    """The middle of the model, where concepts tend to be carried: floor(0.45 n) to floor(0.85 n), both included.

    Example:
        >>> recommended_layers(30)[0], recommended_layers(30)[-1]
        (13, 25)
    """
    return list(range(int(0.45 * num_layers), int(0.85 * num_layers) + 1))


def parse_layers(layers: LayerSpec, num_layers: int) -> list[int]:
    """Turn what a user writes into layer numbers.

    Args:
        layers: None or "all", "recommended", one number, a list of them, or text such as "14,15" or "0,10-20,-1".
            Ranges include both ends; negative numbers count from the end.
        num_layers: Number of decoder blocks, n.

    Returns:
        Layer numbers from 0 to n - 1, ascending, each once.

    Raises:
        RequestError: A number is out of range, a range runs backwards, or the text cannot be read.

    Example:
        >>> parse_layers("0,10-12,-1", 30)
        [0, 10, 11, 12, 29]
    """
    if layers is None or layers == "all":
        return list(range(num_layers))
    if layers == "recommended":
        return recommended_layers(num_layers)
    if isinstance(layers, str):
        numbers = [number for part in layers.split(",") for number in _parse_part(part.strip(), layers, num_layers)]
    elif isinstance(layers, int):
        numbers = [_from_start(layers, num_layers)]
    else:
        numbers = [_from_start(number, num_layers) for number in layers]
    if not numbers:
        raise RequestError("no layers were asked for", expected=_range(num_layers))
    return sorted(set(numbers))


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
    # NumPy's integers are welcome; True and 3.0 are mistakes.
    if isinstance(layer, bool) or not isinstance(layer, SupportsIndex):
        raise RequestError(f"{layer!r} is not a layer number", expected=_range(num_layers))
    layer = operator.index(layer)
    if not -num_layers <= layer < num_layers:
        raise RequestError(
            f"layer {layer} is out of range for a model of {num_layers} layers", expected=_range(num_layers)
        )
    return layer % num_layers


def _range(num_layers: int) -> str:
    return f"layers 0 to {num_layers - 1}, or -{num_layers} to -1 counted from the end"
