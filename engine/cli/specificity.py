"""`layerscope specificity`: is it this concept, or a neighbour?"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from engine.cli.console import Command, Narrator, print_data, print_json
from engine.cli.load_options import HOW, DeviceMap, MaxMemory, read_load_options
from engine.cli.store import capture_path, find_record
from engine.errors import RequestError
from engine.models.placement import AUTO, DTYPE_NAMES
from engine.models.registry import find_source
from engine.plots.findings import describe_neighbours
from engine.plots.specificity_text import specificity_as_text
from engine.records.captures import Provenance
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
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model to run (default: that of the capture).")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Dtype of the model (default: that of the capture).", rich_help_panel=HOW)
    ] = None,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress messages.")] = False,
) -> None:
    """Compare a contrast with its neighbours."""
    narrator, options = Narrator(quiet=quiet), read_load_options(dtype or AUTO, device_map, max_memory)
    provenance = find_record(name, store)["provenance"]
    source = model or _model_of(provenance)
    find_source(source)
    if dtype is None and provenance is not None and provenance["dtype"] in DTYPE_NAMES:
        options = replace(options, dtype=provenance["dtype"])
    from engine.models.loading import load_model_and_tokenizer
    from engine.store.specificity import add_specificity

    with narrator.working(f"loading {source}"):
        loaded, tokenizer, _ = load_model_and_tokenizer(source, **options.arguments())
    others = [capture_path(neighbour, store) for neighbour in neighbours or []]
    with narrator.steps() as steps:
        report = add_specificity(capture_path(name, store), loaded, tokenizer, others, steps=steps)
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(report)))
        return
    print_data(specificity_as_text(report))
    for sentence in describe_neighbours(find_record(name, store)):
        print_data(Text(sentence))


def _model_of(provenance: Provenance | None) -> str:
    if provenance is None:
        raise RequestError("the capture does not record its model", next_step="capture it again")
    try:
        find_source(provenance["alias"])
    except RequestError as error:
        raise RequestError(
            f"the model of this capture, {provenance['model']}, has no alias on this machine",
            next_step="name it with --model",
        ) from error
    return provenance["alias"]


COMMANDS = {
    "specificity": Command("specificity", specificity, HELP, needs_arguments=True),
}
