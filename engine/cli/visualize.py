"""`layerscope visualize`: draw what a capture shows."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from engine.cli.console import Command, Narrator, print_data
from engine.cli.store import capture_path, find_record
from engine.errors import RequestError
from engine.plots.classes_text import pair_label, sides_as_text
from engine.plots.layers_chart import layers_chart
from engine.plots.layers_text import layers_as_text
from engine.records.results import SideProjections
from engine.store.names import DEFAULT_STORE

HELP = """Show ranked layers, difference norm and cosine: as text, and as a figure in a file or a window.

[bold]Examples[/bold]

  layerscope visualize activations/smollm2_honesty.pt
  layerscope visualize activations/smollm2_honesty.pt --output honesty.png
  layerscope visualize activations/smollm2_honesty.pt --no-plot
  layerscope visualize smollm2_honesty --layer 17 --output sides.png
"""


def visualize(
    file: Annotated[str, typer.Argument(help="The .pt or .json file of a capture, or its name.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw into a .png, .svg or .pdf instead of a window.")
    ] = None,
    store: Annotated[Path, typer.Option("--store", "-s", help="The folder that a plain name is in.")] = DEFAULT_STORE,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Only the text.")] = False,
    layer: Annotated[
        int | None, typer.Option("--layer", "-l", help="Where the prompts of both sides lie at this layer.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No narration.")] = False,
) -> None:
    """Show ranked layers, difference norm and cosine: as text, and as a figure in a file or a window."""
    record = find_record(file, store)
    chart = layers_chart(record)
    sides = None if layer is None else _sides(capture_path(file, store), layer)
    print_data(
        layers_as_text(chart) if sides is None else sides_as_text(sides, partial(pair_label, record), chart.title)
    )
    if no_plot:
        return
    from engine.plots.classes_figure import draw_sides
    from engine.plots.layers_figure import draw_layers
    from engine.plots.style import save_figure, show_figure

    narrator = Narrator(quiet=quiet)
    draw = partial(draw_layers, chart) if sides is None else partial(draw_sides, sides, chart.title)
    if output:
        narrator.say(f"saved {save_figure(draw, output, title=f'{chart.title}: {chart.subtitle}')}")
        return
    try:
        show_figure(draw)
    except RequestError as error:
        narrator.say(error.said("command_line"))


def _sides(path: Path, layer: int) -> SideProjections:
    from engine.stats.classes import project_sides
    from engine.store.read import load_contrast

    return project_sides(load_contrast(path), layer)


COMMANDS = {
    "visualize": Command("visualize", visualize, HELP, needs_arguments=True),
}
