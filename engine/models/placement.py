"""Load options for all models of a command, and their parsing. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import RequestError, nearest, similar

AUTO = "auto"
DTYPE_NAMES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading models.

    Attributes:
        dtype: A name in `DTYPE_NAMES`, or "auto".
        device_map: A name in `STRATEGIES`; None for the single best device.
        max_memory: Maximum bytes of weights per device; None for all free memory.
    """

    dtype: str = AUTO
    device_map: str | None = None
    max_memory: Mapping[int | str, int] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the options as keyword arguments for `load_model_and_tokenizer`."""
        return {"dtype": self.dtype, "device_map": self.device_map, "max_memory": self.max_memory}


def require_dtype(dtype: str) -> None:
    """Refuse an unknown dtype name.

    Raises:
        RequestError: There is no such dtype.
    """
    if dtype not in (AUTO, *DTYPE_NAMES):
        raise RequestError(f"there is no dtype {dtype!r}; {nearest(dtype, [AUTO, *DTYPE_NAMES])}")


STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")

MaxMemory = Mapping[int | str, int | str]
"""Device to maximum bytes of weights: GPU index, "cpu" or "mps" to a number or a string such as "20GB"."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMGT]I?)B?", re.IGNORECASE)
_SIZES = "a size such as 200MB or 16GiB"
_LEAST = 10**6  # bytes; a smaller limit lacks its unit
_PLACES = "cpu, mps or a GPU index"


def parse_max_memory(limits: MaxMemory) -> dict[int | str, int]:
    """Parse the maximum size of the weights on each device.

    Args:
        limits: accelerate's device names to sizes, as numbers of bytes or strings.

    Returns:
        Device to bytes. A device that is not listed holds no weights.

    Raises:
        RequestError: A device does not exist, or a size cannot be parsed.

    Example:
        >>> parse_max_memory({0: "20GB", "cpu": "1.5 GiB"})
        {0: 20000000000, 'cpu': 1610612736}
    """
    return {_parse_place(place): _parse_size(size) for place, size in limits.items()}


def read_max_memory(texts: Sequence[str]) -> dict[int | str, int]:
    """Parse the memory limits given on the command line.

    Args:
        texts: One `DEVICE=SIZE` per device, or a size alone for main memory.

    Raises:
        RequestError: As for `parse_max_memory`; or a device is given twice, or a limit seems to lack its unit.

    Example:
        >>> read_max_memory(["0=20GB", "200MB"])
        {0: 20000000000, 'cpu': 200000000}
    """
    limits: dict[int | str, int] = {}
    for text in texts:
        place, _, size = text.rpartition("=")
        ((key, limit),) = parse_max_memory({place or "cpu": size}).items()
        if 0 < limit < _LEAST:
            raise RequestError(f"a memory limit of {limit:,} bytes holds no weights", expected=_SIZES)
        if key in limits:
            raise RequestError(f"the memory limit for {key} is given twice", next_step="give one limit per device")
        limits[key] = limit
    return limits


def require_strategy(device_map: str) -> None:
    """Refuse an unknown device map name.

    Raises:
        RequestError: The name is not "auto", "balanced", "balanced_low_0" or "sequential".
    """
    if device_map not in STRATEGIES:
        raise RequestError(
            f"there is no device map {device_map!r}",
            expected=f"{', '.join(STRATEGIES)}, or a dictionary from module names to devices",
            next_step=similar(device_map, STRATEGIES) or "to use a single device, pass it as the device",
        )


def _parse_place(place: int | str) -> int | str:
    if isinstance(place, str) and place.isdecimal():
        return int(place)
    if place in ("cpu", "mps") or (isinstance(place, int) and not isinstance(place, bool) and place >= 0):
        return place
    raise RequestError(f"there is no device {place!r} to hold weights", expected=_PLACES)


def _parse_size(size: int | str) -> int:
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        if found:
            return int(float(found[1]) * _UNITS[found[2].upper()])
    elif not isinstance(size, bool) and size >= 0:
        return size
    raise RequestError(f"{size!r} is not a size", expected=_SIZES)
