"""Compare two captures."""

from typing import Annotated

from mcp.types import CallToolResult

from engine.plots.comparison_text import describe_comparison
from engine.records.results import Comparison
from server.replies.comparison import ComparisonReply, compared_rows
from server.replies.reply import send
from server.tools.arguments import CaptureName
from server.tools.spec import ToolSpec
from server.workbench import Ctx, find_capture, workbench


def compare_captures(ctx: Ctx, one: CaptureName, other: CaptureName) -> Annotated[CallToolResult, ComparisonReply]:
    """Compare two captures: cosine of two concepts' directions on one model, or one concept's layers on two models."""
    comparison = run_comparison(ctx, one, other)
    return send(
        ComparisonReply(
            kind=comparison["kind"],
            captures=(one, other),
            findings=describe_comparison(comparison),
            rows=compared_rows(comparison),
            warnings=comparison["warnings"],
            next_step="a cosine beyond random_within says that the two directions share something",
        )
    )


def run_comparison(ctx: Ctx, one: str, other: str) -> Comparison:
    """The comparison behind the tool and its picture."""
    from engine.stats.comparison import compare_captures as compare
    from engine.store.read import load_contrast

    store = workbench(ctx).settings.store
    records = find_capture(ctx, one), find_capture(ctx, other)
    return compare(*records, lambda record: load_contrast(record["name"], store=store))


TOOLS = (ToolSpec(compare_captures, "Compare two captures"),)
