"""The options that say how a model is loaded, the same for every command that loads one."""

from collections.abc import Sequence
from typing import Annotated

import typer

from engine.errors import RequestError
from engine.models.placement import STRATEGIES, LoadOptions, read_max_memory, require_dtype, require_strategy

HOW = "How to run it"

Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="auto (the model's own, or float32), float32, bfloat16, float16.", rich_help_panel=HOW
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help=f"{', '.join(STRATEGIES)}: what does not fit into memory stays on the disk.",
        rich_help_panel=HOW,
    ),
]
MaxMemory = Annotated[
    list[str] | None,
    typer.Option("--max-memory", help="With --device-map: 20GB of main memory, 0=20GB of GPU 0.", rich_help_panel=HOW),
]


def read_load_options(dtype: str, device_map: str | None, max_memory: Sequence[str] | None) -> LoadOptions:
    """What was typed, checked before any model is loaded.

    Raises:
        RequestError: As `require_dtype`, `require_strategy` and `read_max_memory`, or memory is limited but there is no
            device map.
    """
    require_dtype(dtype)
    if device_map is not None:
        require_strategy(device_map)
    elif max_memory:
        raise RequestError("--max-memory is for --device-map", next_step="add --device-map auto")
    return LoadOptions(dtype, device_map, read_max_memory(max_memory) if max_memory else None)
