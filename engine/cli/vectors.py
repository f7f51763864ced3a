"""`layerscope vectors`: import the control vectors of other tools."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from engine.cli.console import Command, CommandGroup, Narrator, print_data, print_json, print_lines
from engine.cli.directions import Store, saved_path, vectors_of
from engine.errors import RequestError, StoreError
from engine.records.files import VECTOR_ORIGINS
from engine.store.directions_header import path_of
from engine.store.names import DEFAULT_STORE, locate

HELP = """Import the control vectors of other tools, to read and steer with.

[bold]Examples[/bold]

  layerscope vectors import joy.gguf --from repeng -m smollm2 -n joy
"""

IMPORT_HELP = """Import the control vectors of another tool as directions.

Layers are renumbered to the output of block N, counted from 0. Nothing in the file is run.

[bold]Examples[/bold]

  layerscope vectors import joy.gguf --from repeng -m smollm2 -n joy
  layerscope vectors import evil.pt --from persona-vectors -m qwen -n evil
  layerscope vectors import v.gguf --from llama.cpp -m qwen -n v --compare mine
"""


def vectors(context: typer.Context) -> None:
    """Import the control vectors of other tools."""
    if context.invoked_subcommand is None:
        print_data(context.get_help())


def import_vectors(
    file: Annotated[Path, typer.Argument(help="File of control vectors.")],
    origin: Annotated[str, typer.Option("--from", help=f"Tool that wrote the file: {', '.join(VECTOR_ORIGINS)}.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model that the vectors belong to; only its config is read.")
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="Name to save the directions under.")],
    compare: Annotated[
        str | None,
        typer.Option("--compare", help="Capture or saved directions of that model to compare with."),
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing directions of that name.")] = False,
) -> None:
    """Import the control vectors of another tool as directions."""
    if origin not in VECTOR_ORIGINS:
        raise RequestError(f"there is no origin {origin!r}", expected=", ".join(VECTOR_ORIGINS))
    from engine.steering.vectors import direction_cosines, import_directions
    from engine.store.directions import save_directions

    target = saved_path(name, file.stem, store)
    if not force and (taken := path_of(locate(target))).exists():
        raise StoreError(
            f"{taken} already exists", next_step="choose another name with --name, or replace them with --force"
        )
    narrator = Narrator(quiet=False)
    own = None if compare is None else vectors_of(compare, store)[0]
    with narrator.engine_log():
        found = import_directions(file, origin, model=model, own=own)
    cosines = direction_cosines(found, own) if own else {}
    saved = save_directions(found, target, force=force)
    narrator.say(f"saved {len(found)} directions, layers {min(found)} to {max(found)}")
    if any("norm" not in direction for direction in found.values()):
        narrator.say("their scale is unknown: to steer in units of the states' norm, import with --compare CAPTURE")
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode({"path": str(saved), "cosines": cosines})))
        return
    print_lines(f"{saved}\n")
    if cosines:
        print_lines("layer  cosine\n" + "".join(f"{layer:5}  {cosine:+.3f}\n" for layer, cosine in cosines.items()))


COMMANDS = {
    "vectors": CommandGroup(
        "vectors", vectors, HELP, (Command("import", import_vectors, IMPORT_HELP, needs_arguments=True),)
    ),
}
