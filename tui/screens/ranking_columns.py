"""The columns of the ranking screen's table: a layer's scores, and what they are sorted by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich.text import Text

from engine.plots.layers_chart import Looks, Scale, whiskers
from engine.plots.words import norm_in_words, p_in_words, score_in_words
from engine.records.files import CaptureRecord
from engine.records.results import LayerRow, RankedLayer
from tui.widgets.rows import Column

Line = tuple[LayerRow, RankedLayer | None]
"""A layer's statistics, and its place in the ranking if there is one."""

MARK = "■"

SORTED_BY: dict[str, Callable[[Line], float]] = {
    "layer": lambda line: line[0]["layer"],
    "rank": lambda line: line[1]["rank"] if line[1] else 0.0,
    "d_prime": lambda line: line[1]["d_prime"] if line[1] else 0.0,
    "rank_high": lambda line: line[1]["rank_high"] if line[1] else 0.0,
    "p_value": lambda line: line[1]["p_value"] if line[1] else 0.0,
    "auroc": lambda line: line[1]["auroc"] if line[1] else 0.0,
    "wrong_way": lambda line: line[1]["wrong_way"] if line[1] else 0.0,
    "pair_cosine": lambda line: line[0]["pair_cosine"] or 0.0,
    "relative_norm": lambda line: line[0]["relative_norm"] or 0.0,
    "cosine_sim": lambda line: line[0]["cosine_sim"] or 0.0,
    "diff_norm": lambda line: line[0]["diff_norm"] or 0.0,
    "mean": lambda line: line[0]["mean"],
    "std": lambda line: line[0]["std"],
    "norm": lambda line: line[0]["norm"],
}
LARGEST_FIRST = frozenset({"d_prime", "auroc", "pair_cosine", "relative_norm", "diff_norm", "norm", "std"})


def layer_columns(
    record: CaptureRecord, marked: Callable[[int], bool], looks: Callable[[], Looks]
) -> Iterator[Column[Line]]:
    """The columns that a capture's layers have.

    Args:
        record: The JSON of the capture.
        marked: Whether a layer is marked.
        looks: Colours, asked for at every draw, since the theme may change.
    """
    yield Column("", "", 1, lambda line, _width: MARK if marked(line[0]["layer"]) else "")
    yield Column("layer", "layer", 6, lambda line, _width: str(line[0]["layer"]), right=True)
    if record["kind"] != "contrast":
        for key in ("mean", "std", "norm"):
            yield Column(key, key, 12, partial(_number, key), right=True)
        return
    if record["ranking"]:
        yield from _ranked_columns(record["ranking"]["layers"], looks)
    for key, title, width, order in (
        ("pair_cosine", "same way", 9, 6),
        ("relative_norm", "relative", 9, 7),
        ("cosine_sim", "cosine", 8, 8),
        ("diff_norm", "raw norm", 9, 5),
    ):
        yield Column(key, title, width, partial(_number, key), right=True, order=order)


def _ranked_columns(layers: Sequence[RankedLayer], looks: Callable[[], Looks]) -> Iterator[Column[Line]]:
    def cell(write: Callable[[RankedLayer], str]) -> Callable[[Line, int], str]:
        return lambda line, _width: write(line[1]) if line[1] else ""

    def bar(line: Line, width: int) -> Text:
        return whiskers(line[1], Scale.of(layers, width), looks()) if line[1] else Text()

    yield Column("rank", "rank", 5, cell(lambda row: f"{row['rank']}{'=' if row['tied'] else ' '}"), right=True)
    yield Column("rank_high", "open", 5, cell(lambda row: f"{row['rank_low']}-{row['rank_high']}"), right=True, order=3)
    yield Column("d_prime", "d'", 6, cell(lambda row: score_in_words(row["d_prime"])), right=True)
    yield Column("", "95% interval", 14, cell(_interval), right=True, order=2)
    yield Column("", "●━ 95%  ░ shuffled", 18, bar, grows=True, order=1)
    yield Column("p_value", "p", 6, cell(lambda row: p_in_words(row["p_value"])), right=True, order=1)
    yield Column("auroc", "AUROC", 6, cell(lambda row: f"{row['auroc']:.3f}"), right=True, order=2)
    yield Column("wrong_way", "wrong", 6, cell(lambda row: f"{row['wrong_way']:.0%}"), right=True, order=4)


def _interval(row: RankedLayer) -> str:
    return f"{score_in_words(row['low'])} to {score_in_words(row['high'])}"


def _number(key: str, line: Line, _width: int) -> str:
    value = dict(line[0])[key]
    if not isinstance(value, int | float):
        return ""
    return norm_in_words(value) if key in {"diff_norm", "norm", "std"} else f"{value:.4f}"
