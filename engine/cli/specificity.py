"""`layerscope specificity`: is it this concept, or a neighbour?"""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from engine.cli.console import Command, Narrator, print_data, print_json
from engine.cli.load_options import DeviceMap, MaxMemory, OtherDtype, OtherModel, load_captured_model, read_load_options
from engine.cli.store import capture_path, find_amendable, find_record
from engine.models.placement import AUTO
from engine.plots.findings import describe_neighbours
from engine.plots.specificity_text import specificity_as_text
from engine.store.names import DEFAULT_STORE

HELP = """Compare a contrast with its neighbours: is it this concept, or another one?

Measures how well the directions of desirability, sentiment, formality and verbosity sort its pairs, and what is left of
d' without them. The first time for a model, these four are captured; later runs reuse them. The result is kept in the
record of the capture, and `layerscope rank` shows it. `layerscope capture --concept` does the same after a capture.

[bold]Examples[/bold]

  layerscope specificity smollm2_honesty
  layerscope specificity smollm2_honesty smollm2_empathy smollm2_helpfulness
"""


def specificity(
    name: Annotated[str, typer.Argument(help="Name of a capture, or path of one of its files.")],
    neighbours: Annotated[
        list[str] | None, typer.Argument(help="More captures to compare with, besides the built-in neighbours.")
    ] = None,
    store: Annotated[Path, typer.Option("--store", "-s", help="Folder of captures.")] = DEFAULT_STORE,
    model: OtherModel = None,
    dtype: OtherDtype = None,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress messages.")] = False,
) -> None:
    """Compare a contrast with its neighbours."""
    narrator, options = Narrator(quiet=quiet), read_load_options(dtype or AUTO, device_map, max_memory)
    record = find_amendable(name, store)
    loaded, tokenizer = load_captured_model(record["provenance"], model, dtype, options, narrator)
    from engine.store.specificity import add_specificity

    others = [capture_path(neighbour, store) for neighbour in neighbours or []]
    with narrator.steps() as steps:
        report = add_specificity(capture_path(name, store), loaded, tokenizer, others, steps=steps)
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(report)))
        return
    print_data(specificity_as_text(report))
    for sentence in describe_neighbours(find_record(name, store)):
        print_data(Text(sentence))


COMMANDS = {
    "specificity": Command("specificity", specificity, HELP, needs_arguments=True),
}
