"""`layerscope rank`: rank layers by a score, with its uncertainty."""

import csv
import io
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from engine.cli.console import Command, Interrupted, Narrator, print_data, print_json, print_lines
from engine.cli.load_options import (
    DeviceMap,
    MaxMemory,
    OtherDtype,
    OtherModel,
    load_captured_model,
    read_load_options,
)
from engine.cli.store import capture_path, find_amendable, find_record, specificity_command
from engine.concepts.text_files import PromptFile, open_prompts
from engine.errors import RequestError
from engine.models.placement import AUTO
from engine.plots.causal_text import causal_as_text
from engine.plots.findings import norm_in_words, p_in_words, score_in_words
from engine.plots.layers_chart import layers_chart
from engine.plots.specificity_text import specificity_as_text
from engine.records.causal import CausalRanking
from engine.records.files import CaptureRecord, causal_warnings
from engine.records.results import may_be_best
from engine.stats.scores import DEFAULT_SCORE, SCORES, ScoredLayer, find_score, order_layers
from engine.steering.causal_request import CausalRequest
from engine.store.names import DEFAULT_STORE, locate

HELP = """Rank the layers of a contrast, with 95% intervals, ties and permutation p-values.

With --causal, steer at the leading layers and measure whether the model then answers more like the positive persona,
against random directions and directions of permuted labels. This takes minutes. An interrupted measurement is resumed
by the same command. The result is kept in the record, and later calls without --causal show it too.

[bold]Examples[/bold]

  layerscope rank smollm2_honesty
  layerscope rank smollm2_honesty --top 5 --json
  layerscope rank runs/mine.pt --score auroc --csv > mine.csv
  layerscope rank smollm2_formality --causal
  layerscope rank smollm2_formality --causal --layers 8-24 --strength 0.2

[bold]Scores[/bold]

""" + "\n\n".join(f"  {score.key}: {score.meaning}" for score in SCORES)

CAUSAL = "Causal ranking"
_CAUSES = ("effect", "low", "high", "p_value", "random", "wrong_way", "damage", "ablation")  # in CSV
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
    causal: Annotated[
        bool, typer.Option("--causal", help="Measure what steering at the layers does.", rich_help_panel=CAUSAL)
    ] = False,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers to steer at: all, recommended, 10,12 or 10-20 (default: those tied with the best, and next to"
            " them).",
            rich_help_panel=CAUSAL,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Strength, in units of the mean norm of the states (default: 0.1).", rich_help_panel=CAUSAL),
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="Maximum number of neutral prompts (default: 40).", rich_help_panel=CAUSAL)
    ] = None,
    controls: Annotated[
        int | None, typer.Option(help="Number of random directions (default: 10).", rich_help_panel=CAUSAL)
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(help="Maximum length of what a persona says (default: 12).", rich_help_panel=CAUSAL)
    ] = None,
    no_ablation: Annotated[
        bool, typer.Option("--no-ablation", help="Do not project the direction out as well.", rich_help_panel=CAUSAL)
    ] = False,
    neutral: Annotated[
        Path | None,
        typer.Option(
            help="Text file with one neutral prompt per pair and line (default: the topics of a concept).",
            rich_help_panel=CAUSAL,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed for folds, controls and resamples.", rich_help_panel=CAUSAL)
    ] = None,
    model: OtherModel = None,
    dtype: OtherDtype = None,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress messages.")] = False,
) -> None:
    """Rank the layers of a contrast."""
    if as_json and as_csv:
        raise RequestError("JSON and CSV cannot be printed together", expected="one of --json and --csv")
    find_score(score)
    options = read_load_options(dtype or AUTO, device_map, max_memory)
    given = {
        "layers": layers,
        "strength": strength,
        "prompts": prompts,
        "controls": controls,
        "answer_tokens": answer_tokens,
        "ablation": False if no_ablation else None,
        "seed": seed,
    }
    wanted = {key: value for key, value in given.items() if value is not None}
    if not causal and (wanted or neutral or model or dtype or device_map):
        raise RequestError("these options choose how to steer, which needs --causal", next_step="add --causal")
    record = find_amendable(name, store) if causal else find_record(name, store)
    if causal:
        narrator = Narrator(quiet=quiet)
        request = CausalRequest(**wanted)  # type: ignore[arg-type]  # the keys are its fields
        lines = None if neutral is None else _lines(neutral)
        loaded, tokenizer = load_captured_model(record["provenance"], model, dtype, options, narrator)
        from engine.steering.causal_store import add_causal_ranking

        if earlier := record.get("causal"):
            narrator.say(f"replaces the causal ranking of {len(earlier['layers'])} layers in the record")
        with narrator.steps() as steps:
            try:
                add_causal_ranking(capture_path(name, store), loaded, tokenizer, request, neutral=lines, steps=steps)
            except KeyboardInterrupt:
                raise Interrupted(
                    "interrupted: the measured parts are kept; run the same command again to resume"
                ) from None
        record = find_record(name, store)
    ordered = order_layers(record, score)
    shown = ordered[:top]
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(_document(record, score, shown))))
    elif as_csv:
        print_lines(_csv(shown, record.get("causal")))
    else:
        _print_table(record, score, shown, len(ordered), specificity_command(record, locate(capture_path(name, store))))


def _lines(file: Path) -> PromptFile:
    """A file of prompts, one per line; all are read, to find errors before the model is loaded."""
    opened = open_prompts(file)
    for _text in opened.texts():
        pass
    return opened


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
        "causal": record.get("causal"),
    }


def _flat(layer: ScoredLayer) -> dict[str, Any]:
    """All statistics of a layer, with its rank by the requested score."""
    return {**layer.row, **(layer.ranked or {}), "rank": layer.rank}


def _csv(layers: list[ScoredLayer], causal: CausalRanking | None) -> str:
    rows = [{key: value for key, value in _flat(layer).items() if key != "by_factor"} for layer in layers]
    if causal is not None:
        steered = {row["layer"]: row for row in causal["layers"]}
        for row in rows:
            cause = dict(steered.get(row["layer"], {}))
            row |= {f"causal_{key}": cause.get(key, "") for key in _CAUSES}
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=["rank", *(key for key in rows[0] if key != "rank")], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _print_table(record: CaptureRecord, score: str, layers: list[ScoredLayer], total: int, compare: str) -> None:
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
    elif compare:
        Narrator(quiet=False).say(f"not compared with neighbours yet: {compare}")
    if "causal" in record:
        print_data(causal_as_text(record))
    shown = {*(report["warnings"] if report else []), *causal_warnings(record)}  # with their tables
    for warning in chart.warnings:
        if warning not in shown:
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
