"""Look at one layer of a contrast, alone or against another; all of it from the record, without torch."""

from typing import Annotated

from mcp.types import CallToolResult
from pydantic import Field

from engine.errors import RequestError
from engine.plots.classes_text import side_summary
from engine.plots.words import describe_order
from engine.stats.scores import order_layers
from server.replies.layers import LayerReply, describe_layer
from server.replies.reply import send
from server.tools.arguments import CaptureName
from server.tools.spec import ToolSpec
from server.workbench import Ctx, find_capture


def inspect_layer(
    ctx: Ctx,
    name: CaptureName,
    layer: Annotated[int, Field(ge=0, description="Layer number")],
    against: Annotated[
        int | None, Field(ge=0, description="Another layer: say in words why one of the two is ranked above the other")
    ] = None,
) -> Annotated[CallToolResult, LayerReply]:
    """Look at one layer: where the left-out prompts of both sides lie, and which pairs point the wrong way.

    With against it also says why one of two layers is ranked above the other, and whether the data can tell them apart.
    """
    record = find_capture(ctx, name)
    ranked = {entry.row["layer"]: entry.ranked for entry in order_layers(record)}.get(layer)
    if ranked is None:
        raise RequestError(f"layer {layer} was not captured", expected=f"one of {record['captured_layers']}")
    sides = side_summary(record, layer)
    if sides is None:
        raise RequestError(f"the prompts do not differ at layer {layer}", next_step="choose a later layer")
    reply = describe_layer(record, ranked, sides)
    if against is not None:
        reply.against = describe_order(record, layer, against)
    return send(reply)


TOOLS = (ToolSpec(inspect_layer, "Inspect a layer"),)
