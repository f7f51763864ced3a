"""`layerscope visualize`: draw what a capture shows."""

from pathlib import Path
from typing import Annotated

import typer

from engine.cli.console import Narrator, print_data
from engine.errors import RequestError
from engine.plots.chart import layer_chart
from engine.plots.text import layers_as_text
from engine.records.files import CaptureRecord
from engine.store.catalog import show_capture
from engine.store.names import locate

HELP = """Show difference norm, cosine and ranked layers: as text, and as a figure in a file or a window.

[bold]Examples[/bold]

  layerscope visualize activations/smollm2_honesty.pt
  layerscope visualize activations/smollm2_honesty.pt --output honesty.png
  layerscope visualize activations/smollm2_honesty.pt --no-plot
"""


def visualize(
    file: Annotated[Path, typer.Argument(help="The .pt or .json file of a capture.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw into a .png, .svg or .pdf instead of a window.")
    ] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Only the text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No narration.")] = False,
) -> None:
    """Show difference norm, cosine and ranked layers: as text, and as a figure in a file or a window."""
    chart = layer_chart(_record(file))
    print_data(layers_as_text(chart))
    if no_plot:
        return
    from engine.plots.figure import save_figure, show_figure

    narrator = Narrator(quiet=quiet)
    if output:
        narrator.say(f"saved {save_figure(chart, output)}")
        return
    try:
        show_figure(chart)
    except RequestError as error:
        narrator.say(str(error))


def _record(file: Path) -> CaptureRecord:
    paths = locate(file)
    if paths.record.exists() or not paths.tensors.exists():
        return show_capture(file)
    from engine.store.read import describe_tensors

    return describe_tensors(file)
