"""Options for loading a model, shared by all commands that load one."""

from collections.abc import Sequence
from typing import Annotated

import typer

from engine.errors import RequestError
from engine.models.placement import STRATEGIES, LoadOptions, read_max_memory, require_dtype, require_strategy

HOW = "How to run"

Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Dtype of the model: auto (its own, or float32), float32, bfloat16 or float16.",
        rich_help_panel=HOW,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help=f"Device map for models larger than memory, offloaded to disk: {', '.join(STRATEGIES)}.",
        rich_help_panel=HOW,
    ),
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option(
        "--max-memory",
        help="Memory limit for --device-map: 20GB for main memory, 0=20GB for GPU 0; repeat for several.",
        rich_help_panel=HOW,
    ),
]


def read_load_options(dtype: str, device_map: str | None, max_memory: Sequence[str] | None) -> LoadOptions:
    """Parse and validate the load options before a model is loaded.

    Raises:
        RequestError: See `require_dtype`, `require_strategy` and `read_max_memory`; or memory is limited without a
            device map.
    """
    require_dtype(dtype)
    if device_map is not None:
        require_strategy(device_map)
    elif max_memory:
        raise RequestError("--max-memory needs --device-map", next_step="add --device-map auto")
    return LoadOptions(dtype, device_map, read_max_memory(max_memory) if max_memory else None)
