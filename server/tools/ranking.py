"""Rank the layers of a contrast."""

from typing import Annotated, Literal

from mcp.types import CallToolResult
from pydantic import Field

from engine.plots.words import describe_findings
from engine.records.files import record_warnings
from engine.stats.scores import DEFAULT_SCORE, order_layers
from server.replies.ranking import RankingReply, ranked_row
from server.replies.reply import send
from server.tools.arguments import LONGEST_NAME, CaptureName
from server.tools.spec import ToolSpec
from server.workbench import Ctx, find_capture


def rank_layers(
    ctx: Ctx,
    name: CaptureName,
    score: Annotated[
        str,
        Field(
            description="d_prime (held-out, default), auroc, wrong_way, pair_cosine, relative_norm or diff_norm",
            max_length=LONGEST_NAME,
        ),
    ] = DEFAULT_SCORE,
    top: Annotated[int, Field(ge=1, le=100, description="Layers to show")] = 10,
    detail: Annotated[Literal["concise", "full"], Field(description="full: d' by what was left out")] = "concise",
) -> Annotated[CallToolResult, RankingReply]:
    """Rank the layers of a contrast by how well its two sides separate on prompts left out, with intervals and ties.

    Report the tied layers, not only the first: a tie means that the data cannot tell them apart. Read the warnings:
    they name what else could explain the contrast. The raw norm grows with depth whatever the concept.
    """
    record = find_capture(ctx, name)
    name, layers = record["name"], order_layers(record, score)
    return send(
        RankingReply(
            capture=name,
            score=score,
            layers=[ranked_row(layer, full=detail == "full") for layer in layers[:top]],
            left_out=max(len(layers) - top, 0),
            findings=describe_findings(record),
            warnings=record_warnings(record),
            next_step=_next_step(name, [layer.row["layer"] for layer in layers]),
        )
    )


def _next_step(name: str, layers: list[int]) -> str:
    against = f", against={layers[1]}" if len(layers) > 1 else ""
    return f"inspect_layer(name='{name}', layer={layers[0]}{against}), plot_capture(name='{name}')"


TOOLS = (ToolSpec(rank_layers, "Rank layers"),)
