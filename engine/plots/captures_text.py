"""Render a list of captures as a text table."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.plots.findings import score_in_words
from engine.store.summaries import CaptureSummary


def captures_as_text(summaries: Sequence[CaptureSummary]) -> RenderableType:
    """Render one line per capture with its best layer, then the damaged captures.

    Args:
        summaries: Summaries of the captures, in display order.

    Returns:
        A rich renderable.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("name", "model", "concept", "pairs", "best", "d' (95%)", "saved (UTC)"):
        folds = name in {"name", "model", "concept"}  # never truncated: people copy names from this table
        table.add_column(name, justify="right" if name in {"pairs", "best"} else "left", no_wrap=not folds)
    for summary in summaries:
        if not summary.problem:
            table.add_row(
                summary.name,
                summary.model,
                summary.concept,
                str(summary.pairs or ""),
                "" if summary.best_layer is None else str(summary.best_layer),
                score_and_interval(summary),
                summary.created[:16].replace("T", " "),
            )
    damaged = [Text(summary.complaint, style="red") for summary in summaries if summary.problem]
    return Group(table, *damaged)


def score_and_interval(summary: CaptureSummary) -> str:
    """Format the best score as `0.78 (0.20 to 1.35)`; empty without a ranking."""
    if summary.score is None or summary.low is None or summary.high is None:
        return ""
    return f"{score_in_words(summary.score)} ({score_in_words(summary.low)} to {score_in_words(summary.high)})"
