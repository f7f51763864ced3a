"""`layerscope compare`: two captures side by side."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from engine.cli.console import Command, Narrator, print_data, print_json
from engine.cli.store import capture_path, find_record
from engine.plots.comparison_text import comparison_as_text
from engine.records.files import CaptureRecord
from engine.store.names import DEFAULT_STORE

if TYPE_CHECKING:
    from engine.records.captures import ContrastData

HELP = """Compare two captures: two concepts on one model, or one concept on two models.

On one model: the cosine between their directions at each layer, beside what random directions give.
On two models: held-out d' by relative depth.

[bold]Examples[/bold]

  layerscope compare smollm2_honesty smollm2_empathy
  layerscope compare runs/a.pt runs/b.pt --json
  layerscope compare smollm2_honesty smollm2_empathy --output cosines.png
"""


def compare(
    one: Annotated[str, typer.Argument(help="A capture's name, or the path of one of its files.")],
    other: Annotated[str, typer.Argument(help="Another.")],
    store: Annotated[Path, typer.Option("--store", "-s", help="The folder of captures.")] = DEFAULT_STORE,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Draw a .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two captures."""
    records = find_record(one, store), find_record(other, store)

    def load(record: CaptureRecord) -> "ContrastData":
        from engine.store.read import load_contrast

        return load_contrast(capture_path(one if record is records[0] else other, store))

    from engine.stats.comparison import compare_captures

    comparison = compare_captures(*records, load)
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(comparison)))
    else:
        print_data(comparison_as_text(comparison))
    if output:
        from engine.plots.comparison_figure import draw_comparison
        from engine.plots.style import save_figure

        saved = save_figure(partial(draw_comparison, comparison), output, title=" and ".join(comparison["titles"]))
        Narrator(quiet=False).say(f"saved {saved}")


COMMANDS = {
    "compare": Command("compare", compare, HELP, needs_arguments=True),
}
