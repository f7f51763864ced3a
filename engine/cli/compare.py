"""`layerscope compare`: compare two captures, or several by transfer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import RenderableType

from engine.cli.console import Command, Narrator, figure_file, print_data, print_json
from engine.cli.store import capture_path, find_record
from engine.errors import RequestError
from engine.plots.comparison_text import comparison_as_text
from engine.plots.specificity_text import transfer_as_text
from engine.records.files import CaptureRecord
from engine.store.names import DEFAULT_STORE, output_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from engine.records.captures import ContrastData

    Load = Callable[[CaptureRecord], ContrastData]

HELP = """Compare captures: two concepts on one model, one concept on two models, or several concepts.

On one model: the cosine between their directions at each layer, next to that of random directions, and how well the
direction of one sorts the pairs of the other. On two models: held-out d' by relative depth. Three captures or more: the
transfer matrix, every direction on the pairs of every capture.

[bold]Examples[/bold]

  layerscope compare smollm2_honesty smollm2_empathy
  layerscope compare runs/a.pt runs/b.pt --json
  layerscope compare smollm2_honesty smollm2_empathy --output cosines.png
  layerscope compare smollm2_honesty smollm2_empathy smollm2_formality
"""

_FEWEST = 2


def compare(
    names: Annotated[list[str], typer.Argument(help="Names of captures, or paths of their files; two or more.")],
    store: Annotated[Path, typer.Option("--store", "-s", help="Folder of captures.")] = DEFAULT_STORE,
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer", "-l", help="Layer of the matrix (default: where they separate best by their own directions)."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", callback=figure_file, help="File for a figure: .png, .svg or .pdf."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare captures."""
    if len(names) < _FEWEST:
        raise RequestError("there is nothing to compare it with", expected="the names of two or more captures")
    if layer is not None and len(names) == _FEWEST:
        raise RequestError("--layer applies to the matrix of three captures or more", next_step="omit --layer")
    records = [find_record(name, store) for name in names]
    places = {id(record): capture_path(name, store) for record, name in zip(records, names, strict=True)}

    def load(record: CaptureRecord) -> "ContrastData":
        from engine.store.read import load_contrast

        return load_contrast(places[id(record)])

    if len(names) == _FEWEST:
        _pair(records, load, output, as_json=as_json)
    else:
        _matrix(records, load, layer, output, as_json=as_json)


def _pair(records: list[CaptureRecord], load: "Load", output: str | None, *, as_json: bool) -> None:
    from engine.stats.comparison import compare_captures

    comparison = compare_captures(records[0], records[1], load)
    _show(comparison_as_text(comparison), comparison, as_json=as_json)
    if output:
        from engine.plots.comparison_figure import draw_comparison

        _save(partial(draw_comparison, comparison), output, records, " and ".join(comparison["titles"]))


def _matrix(
    records: list[CaptureRecord], load: "Load", layer: int | None, output: str | None, *, as_json: bool
) -> None:
    from engine.stats.transfer import compare_transfer

    matrix = compare_transfer(records, load, layer=layer)
    _show(transfer_as_text(matrix), matrix, as_json=as_json)
    if output:
        from engine.plots.transfer_figure import draw_transfer

        _save(partial(draw_transfer, matrix), output, records, ", ".join(matrix["titles"]))


def _show(text: RenderableType, document: object, *, as_json: bool) -> None:
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(document)))
    else:
        print_data(text)


def _save(draw: "Callable[[], Figure]", output: str, records: list[CaptureRecord], title: str) -> None:
    from engine.plots.style import save_figure

    file = output_path(output, f"{'_and_'.join(record['name'] for record in records[:_FEWEST])}.png")
    Narrator(quiet=False).say(f"saved {save_figure(draw, file, title=title)}")


COMMANDS = {
    "compare": Command("compare", compare, HELP, needs_arguments=True),
}
