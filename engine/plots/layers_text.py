"""Render the layers of a capture as a text table that fits 80 columns."""

import io

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.plots.findings import norm_in_words, p_in_words, score_in_words
from engine.plots.layers_chart import LayersChart, Whiskers
from engine.plots.visible_text import VisibleConsole
from engine.records.results import LayerRow, RankedLayer, may_be_best

WIDTH = 80
_LEGEND = (
    "● d'  ━ 95% interval  ░ permutation null, 95%  p: permutation p-value\n"
    "ranks: 95% rank interval  =: tied with the best"
)


def layers_as_text(chart: LayersChart) -> RenderableType:
    """Render the layer table with its findings and warnings.

    Args:
        chart: Chart of a capture.

    Returns:
        A rich renderable.
    """
    table = _ranked_table(chart) if chart.ranked else _contrast_table(chart) if chart.contrast else _prompt_table(chart)
    parts: list[RenderableType] = [Text(chart.title, style="bold"), Text(chart.subtitle, style="dim"), table]
    if chart.ranked:
        parts.append(Text(_LEGEND, style="dim"))
    parts += [Text(sentence) for sentence in chart.findings]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in chart.warnings]
    return Group(*parts)


def render_text(drawn: RenderableType, width: int = WIDTH) -> str:
    """Render to plain text without color.

    Args:
        drawn: Renderable from `layers_as_text` or a similar function.
        width: Width in columns.
    """
    console = VisibleConsole(file=io.StringIO(), width=width, color_system=None, force_terminal=False, markup=False)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


def _ranked_table(chart: LayersChart) -> Table:
    ranked = {row["layer"]: row for row in chart.ranked}
    cells = {row["layer"]: _ranked_cells(row, ranked[row["layer"]]) for row in chart.rows}
    table = _empty_table("layer", *next(iter(cells.values())))
    table.add_column("d' (95%)", ratio=1, no_wrap=True)
    for layer, numbers in cells.items():
        style = "bold" if may_be_best(ranked[layer]) else ""
        table.add_row(str(layer), *numbers.values(), Whiskers(ranked[layer], chart.ranked), style=style)
    return table


def _ranked_cells(row: LayerRow, ranked: RankedLayer) -> dict[str, str]:
    return {
        "rank": f"{ranked['rank']}{'=' if may_be_best(ranked) else ' '}",
        "ranks": f"{ranked['rank_low']}-{ranked['rank_high']}",
        "d'": score_in_words(ranked["d_prime"]),
        "95% interval": f"{score_in_words(ranked['low'])} to {score_in_words(ranked['high'])}",
        "p": p_in_words(ranked["p_value"]),
        "AUROC": f"{ranked['auroc']:.3f}",
        "raw norm": norm_in_words(row["diff_norm"] or 0.0),
        "cosine": f"{row['cosine_sim']:.4f}",
    }


def _contrast_table(chart: LayersChart) -> Table:
    table = _empty_table("layer", "raw norm", "relative", "cosine")
    table.add_column("relative norm", ratio=1)
    largest = max(row["relative_norm"] or 0.0 for row in chart.rows)
    for row in chart.rows:
        numbers = (f"{row['diff_norm']:.3f}", f"{row['relative_norm']:.4f}", f"{row['cosine_sim']:.5f}")
        bar = Bar(largest or 1.0, 0.0, row["relative_norm"] or 0.0, color="blue")
        table.add_row(str(row["layer"]), *numbers, bar)
    return table


def _prompt_table(chart: LayersChart) -> Table:
    table = _empty_table("layer", "mean", "std", "norm")
    table.add_column("mean norm of a state", ratio=1)
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
