"""The options that say where the weights of a model lie, the same for every command that loads one."""

from typing import Annotated

import typer

from engine.models.placement import STRATEGIES

HOW = "How to run it"

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
