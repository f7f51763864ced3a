"""How models are to be loaded, as a person says it once for every model of a command. Loads without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import RequestError, nearest

AUTO = "auto"
DTYPE_NAMES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class LoadOptions:
    """How models are to be loaded.

    Attributes:
        dtype: A name of `DTYPE_NAMES`, or "auto".
        device_map: One of the words that accelerate knows; None for the one device that suits best.
        max_memory: Bytes that each place holds at most; None for all that is free.
    """

    dtype: str = AUTO
    device_map: str | None = None
    max_memory: Mapping[int | str, int] | None = None

    def arguments(self) -> dict[str, Any]:
        """The same as `load_model_and_tokenizer` takes it."""
        return {"dtype": self.dtype, "device_map": self.device_map, "max_memory": self.max_memory}


def require_dtype(dtype: str) -> None:
    """Refuse a name that is no dtype's.

    Raises:
        RequestError: There is none.
    """
    if dtype not in (AUTO, *DTYPE_NAMES):
        raise RequestError(f"there is no dtype {dtype!r}; {nearest(dtype, [AUTO, *DTYPE_NAMES])}")


STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")

MaxMemory = Mapping[int | str, int | str]
"""Place to most bytes of weights there: number of a GPU, "cpu" or "mps" to a number or a text such as "20GB"."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMGT]I?)B?", re.IGNORECASE)
_SIZES = "a size such as 200MB or 16GiB"
_PLACES = "cpu, mps or the number of a GPU"


def parse_max_memory(limits: MaxMemory) -> dict[int | str, int]:
    """How many bytes of weights each place holds at most.

    Args:
        limits: Places as accelerate calls them, with numbers of bytes or texts.

    Returns:
        The same in bytes; a place that is not in it holds nothing.

    Raises:
        RequestError: There is no such place, or no such size.

    Example:
        >>> parse_max_memory({0: "20GB", "cpu": "1.5 GiB"})
        {0: 20000000000, 'cpu': 1610612736}
    """
    return {_parse_place(place): _parse_size(size) for place, size in limits.items()}


def read_max_memory(texts: Sequence[str]) -> dict[int | str, int]:
    """The same from what is typed: `PLACE=SIZE` for each place, a size alone for the main memory.

    Args:
        texts: What was typed, once or several times.

    Raises:
        RequestError: As `parse_max_memory`, or a place was named twice.

    Example:
        >>> read_max_memory(["0=20GB", "200MB"])
        {0: 20000000000, 'cpu': 200000000}
    """
    limits: dict[int | str, int] = {}
    for text in texts:
        place, _, size = text.rpartition("=")
        ((key, limit),) = parse_max_memory({place or "cpu": size}).items()
        if key in limits:
            raise RequestError(f"the memory of {key} is limited twice", next_step="name each place once")
        limits[key] = limit
    return limits


def require_strategy(device_map: str) -> None:
    """Refuse a word for a device map that accelerate does not know.

    Raises:
        RequestError: It is none of "auto", "balanced", "balanced_low_0" and "sequential".
    """
    if device_map not in STRATEGIES:
        raise RequestError(
            f"there is no device map {device_map!r}; {nearest(device_map, STRATEGIES)}",
            expected=f"{', '.join(STRATEGIES)}, or a dictionary of parts of the model and their places",
            next_step="a single device is given as the device",
        )


def _parse_place(place: int | str) -> int | str:
    if isinstance(place, str) and place.isdecimal():
        return int(place)
    if place in ("cpu", "mps") or (isinstance(place, int) and not isinstance(place, bool) and place >= 0):
        return place
    raise RequestError(f"there is no place {place!r} for weights", expected=_PLACES)


def _parse_size(size: int | str) -> int:
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        if found:
            return int(float(found[1]) * _UNITS[found[2].upper()])
    elif not isinstance(size, bool) and size >= 0:
        return size
    raise RequestError(f"{size!r} is no size", expected=_SIZES)
