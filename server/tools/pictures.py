"""Tools that draw: a capture's ranking, one layer, or two captures, as a picture and as text."""

from functools import partial
from typing import Annotated, Any

from mcp.server.mcpserver import Image
from pydantic import Field

from engine.plots.classes_text import pair_label, sides_as_text
from engine.plots.comparison_text import comparison_as_text
from engine.plots.layers_chart import layers_chart
from engine.plots.layers_text import layers_as_text, render_text
from server.tools.arguments import LONGEST_NAME, CaptureName
from server.tools.comparison import run_comparison
from server.tools.spec import ToolSpec
from server.workbench import Ctx, find_capture, workbench


def plot_capture(
    ctx: Ctx,
    name: CaptureName,
    layer: Annotated[int | None, Field(ge=0, description="Draw where both sides lie at this layer instead")] = None,
    compare_with: Annotated[
        str | None, Field(description="Draw this capture beside another instead", max_length=LONGEST_NAME)
    ] = None,
    picture: Annotated[bool, Field(description="Send a PNG beside the text; false if you cannot see pictures")] = True,
) -> list[str | Image]:
    """Draw a capture: layers with intervals and shuffled labels, or both sides at one layer, or two captures compared.

    Answers with the chart as text and as a PNG.
    """
    store = workbench(ctx).settings.store
    record = find_capture(ctx, name)
    chart = layers_chart(record)
    draw: Any
    if compare_with is not None:
        comparison = run_comparison(ctx, name, compare_with)
        text = render_text(comparison_as_text(comparison))
        from engine.plots.comparison_figure import draw_comparison

        draw = partial(draw_comparison, comparison)
    elif layer is not None:
        from engine.plots.classes_figure import draw_sides
        from engine.stats.classes import project_sides
        from engine.store.read import load_contrast

        sides = project_sides(load_contrast(name, store=store), layer)
        text = render_text(sides_as_text(sides, partial(pair_label, record), chart.title))
        draw = partial(draw_sides, sides, chart.title)
    else:
        from engine.plots.layers_figure import draw_layers

        text = render_text(layers_as_text(chart))
        draw = partial(draw_layers, chart)
    if not picture:
        return [text]
    from engine.plots.style import render_png

    return [text, Image(data=render_png(draw), format="png")]


TOOLS = (ToolSpec(plot_capture, "Plot a capture"),)
