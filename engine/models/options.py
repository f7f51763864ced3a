"""How models are to be loaded, as a person says it once for every model of a command. Loads without torch."""

from __future__ import annotations

from collections.abc import Mapping
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
