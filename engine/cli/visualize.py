"""`layerscope visualize`: plot layers, or the classes at one layer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli.console import Command, Narrator, figure_file, print_data
from engine.cli.load_options import model_option
from engine.cli.store import capture_path, find_record
from engine.errors import RequestError
from engine.plots.causal_text import causal_as_text
from engine.plots.classes_text import pair_label, sides_as_text
from engine.plots.layers_chart import layers_chart
from engine.plots.layers_text import layers_as_text
from engine.records.captures import has_neutral_prompts
from engine.records.files import CaptureRecord
from engine.records.results import ClassProjections
from engine.remedies import Remedy
from engine.store.names import DEFAULT_STORE, CapturePaths, locate, output_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = """Plot ranked layers, difference norm and cosine, as text and as a figure.

[bold]Examples[/bold]

  layerscope visualize activations/smollm2_honesty.pt
  layerscope visualize activations/smollm2_honesty.pt --output honesty.png
  layerscope visualize activations/smollm2_honesty.pt --no-plot
  layerscope visualize smollm2_honesty --layer 17 --output classes.png
  layerscope visualize smollm2_formality --causal --output causal.png
"""


def visualize(
    file: Annotated[str, typer.Argument(help="Path of a .pt or .json file, or name of a capture.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            callback=figure_file,
            help="File for the figure, instead of a window: .png, .svg or .pdf.",
        ),
    ] = None,
    store: Annotated[Path, typer.Option("--store", "-s", help="Folder of captures.")] = DEFAULT_STORE,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Print the text only.")] = False,
    layer: Annotated[
        int | None, typer.Option("--layer", "-l", help="Layer at which to show the projections of both classes.")
    ] = None,
    causal: Annotated[
        bool, typer.Option("--causal", help="Plot what steering does against how well the layers read.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress messages.")] = False,
) -> None:
    """Plot ranked layers, difference norm and cosine, as text and as a figure."""
    if no_plot and output:
        raise RequestError("--no-plot draws no figure for --output", next_step="omit one or the other")
    record = find_record(file, store)
    if causal:
        _visualize_causal(
            record, locate(capture_path(file, store)), layer, output, no_plot=no_plot, narrator=Narrator(quiet=quiet)
        )
        return
    chart = layers_chart(record)
    sides = None if layer is None else _sides(capture_path(file, store), layer)
    print_data(
        layers_as_text(chart) if sides is None else sides_as_text(sides, partial(pair_label, record), chart.title)
    )
    if no_plot:
        return
    from engine.plots.classes_figure import draw_sides
    from engine.plots.layers_figure import draw_layers

    draw = partial(draw_layers, chart) if sides is None else partial(draw_sides, sides, chart.title)
    default = f"{record['name']}.png" if layer is None else f"{record['name']}_layer{layer}.png"
    target = output_path(output, default) if output else None
    _draw(draw, target, f"{chart.title}: {chart.subtitle}", Narrator(quiet=quiet))


def _visualize_causal(
    record: CaptureRecord,
    paths: CapturePaths,
    layer: int | None,
    output: str | None,
    *,
    no_plot: bool,
    narrator: Narrator,
) -> None:
    found = record.get("causal")
    if layer is not None:
        raise RequestError("--layer does not apply to --causal", next_step="omit one or the other")
    if record["kind"] != "contrast":
        raise RequestError(
            f"{record['name']!r} is a capture of prompts: it has no layers to rank",
            expected="a contrast",
            next_step=Remedy.CAPTURE_CONTRAST,
        )
    if found is None:
        neutral = "" if has_neutral_prompts(record["concept"], record["factors"]) else " --neutral FILE"
        raise RequestError(
            f"the causal ranking of {record['name']} was not measured",
            expected="a file with one neutral prompt per pair and line, to steer on" if neutral else "",
            next_step=f"layerscope rank {paths.arguments} --causal{neutral}{model_option(record['provenance'])}",
        )
    print_data(causal_as_text(record))
    if not no_plot:
        from engine.plots.causal_figure import draw_causal

        file = output_path(output, f"{record['name']}_causal.png") if output else None
        _draw(partial(draw_causal, record, found), file, f"{record['name']}: reading and cause", narrator)


def _draw(draw: Callable[..., "Figure"], output: Path | None, title: str, narrator: Narrator) -> None:
    from engine.plots.style import save_figure, show_figure

    if output:
        narrator.say(f"saved {save_figure(draw, output, title=title)}")
        return
    try:
        show_figure(draw)
    except RequestError as error:
        narrator.say(error.said("command_line"))


def _sides(path: Path, layer: int) -> ClassProjections:
    from engine.stats.classes import project_sides
    from engine.store.read import load_contrast

    return project_sides(load_contrast(path), layer)


COMMANDS = {
    "visualize": Command("visualize", visualize, HELP, needs_arguments=True),
}
