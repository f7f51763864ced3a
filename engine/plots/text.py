"""Draw a chart as text that fits 80 columns. Knows rich; knows nothing of captures beyond the chart."""

import io

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.plots.chart import HELD_OUT, LayerChart, Score
from engine.records.statistics import LayerRow

WIDTH = 80
_SHOWN_RANKS = 5


def layers_as_text(chart: LayerChart) -> RenderableType:
    """The layer table, with a bar for each layer and the first ranks marked.

    Args:
        chart: What to draw.

    Returns:
        Something a rich console prints.
    """
    heading = [Text(chart.title, style="bold"), Text(chart.subtitle, style="dim")]
    if chart.score is None:
        return Group(*heading, _prompt_table(chart))
    ranking = Text(f"Layers by {chart.score.name}: {_ranks_in_words(chart)}")
    return Group(*heading, _contrast_table(chart, chart.score), ranking, Text(chart.score.caveat, style="dim"))


def render_text(chart: LayerChart, width: int = WIDTH) -> str:
    """The same as plain text without colour.

    Args:
        chart: What to draw.
        width: Columns.
    """
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(layers_as_text(chart))
    return capture.get()


def _contrast_table(chart: LayerChart, score: Score) -> Table:
    numbers = {row["layer"]: _contrast_cells(row, held_out=score is HELD_OUT) for row in chart.rows}
    table = _empty_table("layer", *next(iter(numbers.values())))
    table.add_column(score.name, ratio=1)
    table.add_column("rank", justify="right")
    largest = max(score.of(row) for row in chart.rows)
    ranks = {layer: str(rank) for rank, layer in enumerate(chart.ranked[:_SHOWN_RANKS], start=1)}
    for row in chart.rows:
        rank = ranks.get(row["layer"], "")
        bar = Bar(max(largest, 0.0) or 1.0, 0.0, max(score.of(row), 0.0), color="cyan" if rank else "blue")
        table.add_row(str(row["layer"]), *numbers[row["layer"]].values(), bar, rank)
    return table


def _contrast_cells(row: LayerRow, *, held_out: bool) -> dict[str, str]:
    cells = {
        "diff norm": f"{row['diff_norm']:.3f}",
        "relative": f"{row['relative_norm']:.4f}",
        "cosine": f"{row['cosine_sim']:.5f}",
    }
    separation = row["separation"]
    if not held_out or separation is None:
        return cells
    worst = separation["by_factor"][separation["worst"]]
    return {"d'": f"{worst['d_prime']:.2f}", "AUROC": f"{worst['auroc']:.3f}"} | cells


def _prompt_table(chart: LayerChart) -> Table:
    table = _empty_table("layer", "mean", "std", "norm")
    table.add_column("norm of a token's state", ratio=1)
    largest = max(row["norm"] for row in chart.rows)
    for row in chart.rows:
        table.add_row(*_prompt_cells(row), Bar(largest or 1.0, 0.0, row["norm"], color="blue"))
    return table


def _prompt_cells(row: LayerRow) -> list[str]:
    return [str(row["layer"]), f"{row['mean']:+.4f}", f"{row['std']:.4f}", f"{row['norm']:.2f}"]


def _empty_table(*numbers: str) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="bold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _ranks_in_words(chart: LayerChart) -> str:
    shown = ", ".join(str(layer) for layer in chart.ranked[:_SHOWN_RANKS])
    left = len(chart.ranked) - _SHOWN_RANKS
    return f"{shown} and {left} more" if left > 0 else shown
