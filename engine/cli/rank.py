"""`layerscope rank`: rank layers by a score, with its uncertainty."""

import csv
import io
import shlex
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from engine.cli.console import Command, Narrator, print_data, print_json, print_lines
from engine.cli.store import find_record
from engine.errors import RequestError
from engine.plots.findings import may_be_best, norm_in_words, p_in_words, score_in_words
from engine.plots.layers_chart import layers_chart
from engine.plots.specificity_text import specificity_as_text
from engine.records.files import CaptureRecord
from engine.stats.scores import DEFAULT_SCORE, SCORES, ScoredLayer, find_score, order_layers
from engine.store.names import DEFAULT_STORE

HELP = """Rank the layers of a contrast, with 95% intervals, ties and permutation p-values.

[bold]Examples[/bold]

  layerscope rank smollm2_honesty
  layerscope rank smollm2_honesty --top 5 --json
  layerscope rank runs/mine.pt --score auroc --csv > mine.csv

[bold]Scores[/bold]

""" + "\n\n".join(f"  {score.key}: {score.meaning}" for score in SCORES)

_LEGEND = "ranks: 95% rank interval  =: tied with the best"


def rank(
    name: Annotated[str, typer.Argument(help="Name of a capture, or path of one of its files.")],
    store: Annotated[Path, typer.Option("--store", "-s", help="Folder of captures.")] = DEFAULT_STORE,
    score: Annotated[str, typer.Option(help="Score to order by, from the list above.")] = DEFAULT_SCORE,
    top: Annotated[
        int | None, typer.Option("--top", "-t", min=1, help="Number of layers to print (default: all).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Rank the layers of a contrast."""
    if as_json and as_csv:
        raise RequestError("JSON and CSV cannot be printed together", expected="one of --json and --csv")
    find_score(score)
    record = find_record(name, store)
    layers = order_layers(record, score)
    shown = layers[:top]
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(_document(record, score, shown))))
    elif as_csv:
        print_lines(_csv(shown))
    else:
        _print_table(record, score, shown, len(layers))


def _document(record: CaptureRecord, score: str, layers: list[ScoredLayer]) -> dict[str, Any]:
    ranking = dict(record["ranking"]) if record["ranking"] else None
    if ranking:
        del ranking["layers"]
    return {
        "capture": record["name"],
        "score": score,
        "layers": [_flat(layer) for layer in layers],
        "ranking": ranking,
        "confounds": record["confounds"],
        "specificity": record.get("specificity"),
    }


def _flat(layer: ScoredLayer) -> dict[str, Any]:
    """All statistics of a layer, with its rank by the requested score."""
    return {**layer.row, **(layer.ranked or {}), "rank": layer.rank}


def _csv(layers: list[ScoredLayer]) -> str:
    rows = [{key: value for key, value in _flat(layer).items() if key != "by_factor"} for layer in layers]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=["rank", *(key for key in rows[0] if key != "rank")], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _print_table(record: CaptureRecord, score: str, layers: list[ScoredLayer], total: int) -> None:
    chart = layers_chart(record)
    print_data(Text(chart.title, style="bold"))
    print_data(Text(chart.subtitle, style="dim"))
    print_data(_table(layers, score))
    if len(layers) < total:
        print_data(Text(f"and {total - len(layers)} more", style="dim"))
    if record["ranking"]:
        print_data(Text(_LEGEND, style="dim"))
    if score != DEFAULT_SCORE and record["ranking"]:
        Narrator(quiet=False).say(f"ordered by {score}; 95% interval, ranks and p are those of held-out d'")
    for sentence in chart.findings:
        print_data(Text(sentence))
    report = record.get("specificity")
    if report and report["layers"]:  # shows its own warnings
        print_data(specificity_as_text(report))
    elif report is None and record["concept"] and record["ranking"]:
        name = shlex.quote(record["name"])
        Narrator(quiet=False).say(f"not compared with neighbours yet: layerscope specificity {name}")
    for warning in chart.warnings:
        if report is None or warning not in report["warnings"]:
            print_data(Text(f"warning: {warning}", style="yellow"))


def _table(layers: list[ScoredLayer], score: str) -> Table:
    cells = [_cells(layer, score) for layer in layers]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in cells[0]:
        table.add_column(name, justify="right", no_wrap=True)
    for layer, row in zip(layers, cells, strict=True):
        table.add_row(*row.values(), style="bold" if layer.ranked and may_be_best(layer.ranked) else "")
    return table


def _cells(layer: ScoredLayer, score: str) -> dict[str, str]:
    row, ranked = layer.row, layer.ranked
    size = {
        "relative_norm": {"relative": f"{row['relative_norm']:.4f}"},
        "cosine_sim": {"cosine": f"{row['cosine_sim']:.5f}"},
    }.get(score, {"raw norm": norm_in_words(row["diff_norm"] or 0.0)})
    described = {"pair cos": "" if row["pair_cosine"] is None else f"{row['pair_cosine']:.3f}"} | size
    if ranked is None:
        return {"rank": str(layer.rank), "layer": str(row["layer"])} | described
    return {
        "rank": f"{layer.rank}{'=' if may_be_best(ranked) else ' '}",
        "layer": str(row["layer"]),
        "d'": score_in_words(ranked["d_prime"]),
        "95% interval": f"{score_in_words(ranked['low'])} to {score_in_words(ranked['high'])}",
        "ranks": f"{ranked['rank_low']}-{ranked['rank_high']}",
        "p": p_in_words(ranked["p_value"]),
        "AUROC": f"{ranked['auroc']:.3f}",
        "misordered": f"{ranked['wrong_way']:.0%}",
    } | described


COMMANDS = {
    "rank": Command("rank", rank, HELP, needs_arguments=True),
}
