"""The tool that draws a ranking, one layer or a comparison, as text and picture."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

from mcp.server.mcpserver import Image
from mcp.types import CallToolResult, ImageContent
from pydantic import Field

from engine.errors import RequestError
from engine.plots.classes_text import pair_label, sides_as_text
from engine.plots.comparison_text import comparison_as_text
from engine.plots.layers_chart import layers_chart
from engine.plots.layers_text import layers_as_text, render_text
from server.tools.answer import send_chart
from server.tools.ranking import run_comparison
from server.tools.spec import LONGEST_NAME, CaptureName, ToolSpec
from server.workbench import Ctx, find_capture, workbench

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_capture(
    ctx: Ctx,
    name: CaptureName,
    layer: Annotated[int | None, Field(ge=0, description="Draw both classes at this layer instead")] = None,
    compare_with: Annotated[
        str | None, Field(description="Draw a comparison with this capture instead", max_length=LONGEST_NAME)
    ] = None,
    picture: Annotated[bool, Field(description="Add a PNG to the text; false if you cannot see pictures")] = True,
) -> CallToolResult:
    """Draw a capture as text and PNG: its layers with confidence intervals and the permutation null.

    With layer, the projections of both classes at one layer; with compare_with, two captures compared.
    """
    if layer is not None and compare_with is not None:
        raise RequestError("layer and compare_with are two different charts", next_step="pass one of them")
    store = workbench(ctx).settings.store
    record = find_capture(ctx, name)
    chart = layers_chart(record)
    draw: Callable[[], Figure]
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
    rest = f"the resource capture://{record['name']} has every layer"
    return send_chart(text, _picture(draw) if picture else None, rest)


def _picture(draw: Callable[[], "Figure"]) -> ImageContent:
    from engine.plots.style import render_png

    return Image(data=render_png(draw), format="png").to_image_content()


TOOLS = (ToolSpec(plot_capture, "Plot a capture"),)
