"""Tools for the results of contrasts: rankings, single layers and comparisons."""

from typing import Annotated, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from engine.errors import RequestError
from engine.plots.causal_text import causal_findings
from engine.plots.classes_text import side_summary
from engine.plots.comparison_text import describe_comparison
from engine.plots.findings import describe_findings
from engine.plots.layer_order import describe_order
from engine.records.files import CaptureRecord, NumberedPair, find_pair, record_warnings
from engine.records.results import ClassSummary, Comparison, RankedLayer, Transfer, may_be_best
from engine.stats.scores import DEFAULT_SCORE, SCORES, ScoredLayer, order_layers, side_quartiles
from server.tools.answer import Reply, rounded, send, shorten
from server.tools.spec import LONGEST_NAME, CaptureName, ToolSpec
from server.workbench import Ctx, find_capture, workbench

_MOST_WRONG = 5
_MOST_ROWS = 60


class _AboutCapture(Reply):
    """An answer about one capture."""

    capture: str

    def rest(self) -> str:
        """The resource of the capture."""
        return f"the resource capture://{self.capture} has the whole record"


class RankedRow(BaseModel):
    """One layer of a ranking."""

    rank: int
    layer: int
    value: float | None = Field(default=None, description="The requested score")
    d_prime: float | None = None
    interval: tuple[float, float] | None = Field(default=None, description="95% confidence interval of d_prime")
    rank_interval: tuple[int, int] | None = Field(default=None, description="95%")
    tied: bool | None = Field(default=None, description="Whether it may be the best layer")
    p_value: float | None = Field(default=None, description="Permutation p-value over the best of all layers")
    auroc: float | None = None
    raw_norm: float | None = Field(default=None, description="Norm of the mean difference; grows with depth")
    d_prime_by_left_out: dict[str, float] | None = Field(
        default=None, description="d_prime by held-out factor, with detail=full"
    )
    wrong_way: float | None = Field(default=None, description="Share of misordered pairs, with detail=full")


class RankingReply(_AboutCapture):
    """Layers ordered by a score."""

    counted: ClassVar[tuple[str, ...]] = ("layers",)
    score: str
    layers: list[RankedRow]
    left_out: int = Field(description="Number of layers not shown; raise top")
    findings: list[str]


class MisorderedPair(BaseModel):
    """A misordered pair: its positive prompt projects below its negative prompt."""

    pair: int
    gap: float = Field(description="Positive minus negative projection, in units of the spread")
    positive_prompt: str
    factors: dict[str, str] | None = None


class LayerReply(_AboutCapture):
    """One layer in detail."""

    layer: int
    d_prime: float
    auroc: float
    worst_left_out: str = Field(description="Held-out factor with the lowest d_prime")
    by_left_out: dict[str, float] = Field(description="d_prime by held-out factor")
    against: list[str] = Field(default_factory=list, description="Why one of the two layers ranks above the other")
    positive_quartiles: list[float] = Field(
        description="Minimum, quartiles and maximum of held-out projections; 0: midway between the classes, 1: the"
        " spread within a class"
    )
    negative_quartiles: list[float]
    wrong_pairs: list[MisorderedPair] = Field(description="Misordered pairs, largest gap first")
    wrong_total: int
    tied_total: int = 0


class ComparedRow(BaseModel):
    """Two captures at one layer, or one capture at one depth."""

    layer: int
    cosine: float | None = None
    random_within: float | None = Field(default=None, description="95% bound of |cosine| for random directions")
    halves_reach: float | None = Field(default=None, description="Cosine between two measurements of one direction")
    one_on_other: tuple[float, float, float] | None = Field(
        default=None, description="AUROC of one's direction on other's pairs, with 95% interval"
    )
    other_on_one: tuple[float, float, float] | None = None
    capture: str | None = None
    depth: float | None = None
    d_prime: float | None = None
    tied: bool | None = None


class ComparisonReply(Reply):
    """Two captures compared."""

    kind: Literal["directions", "depth"]
    captures: tuple[str, str]
    findings: list[str]
    rows: list[ComparedRow]

    def rest(self) -> str:
        """The table as text."""
        return f"plot_capture(name='{self.captures[0]}', compare_with='{self.captures[1]}') draws every layer"


def rank_layers(
    ctx: Ctx,
    name: CaptureName,
    score: Annotated[
        str,
        Field(
            description="; ".join(f"{score.key}: {score.meaning}" for score in SCORES),
            max_length=LONGEST_NAME,
        ),
    ] = DEFAULT_SCORE,
    top: Annotated[int, Field(ge=1, le=100, description="Number of layers to show")] = 10,
    detail: Annotated[Literal["concise", "full"], Field(description="full: d' by held-out factor")] = "concise",
) -> Annotated[CallToolResult, RankingReply]:
    """Rank the layers of a contrast by how well the two classes separate on held-out prompts, with intervals and ties.

    Report the tied layers, not only the first: the data cannot tell them apart. Read the warnings: they name
    confounds that could explain the contrast.
    """
    record = find_capture(ctx, name)
    name, layers = record["name"], order_layers(record, score)
    return send(
        RankingReply(
            capture=name,
            score=score,
            layers=[ranked_row(layer, full=detail == "full") for layer in layers[:top]],
            left_out=max(len(layers) - top, 0),
            findings=[*describe_findings(record), *causal_findings(record)],
            warnings=record_warnings(record),
            next_step=_after_ranking(name, [layer.row["layer"] for layer in layers]),
        )
    )


def inspect_layer(
    ctx: Ctx,
    name: CaptureName,
    layer: Annotated[int, Field(ge=0, description="Layer number")],
    against: Annotated[
        int | None, Field(ge=0, description="Another layer; explains why one of the two ranks above the other")
    ] = None,
) -> Annotated[CallToolResult, LayerReply]:
    """Inspect one layer: the held-out projections of both classes and the misordered pairs.

    With against it also explains why one of two layers ranks above the other, and whether the data can tell them apart.
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


def compare_captures(ctx: Ctx, one: CaptureName, other: CaptureName) -> Annotated[CallToolResult, ComparisonReply]:
    """Compare two captures: the cosine of two concepts' directions on one model, or one concept on two models."""
    comparison = run_comparison(ctx, one, other)
    return send(
        ComparisonReply(
            kind=comparison["kind"],
            captures=(one, other),
            findings=describe_comparison(comparison),
            rows=compared_rows(comparison),
            warnings=comparison["warnings"],
            next_step="a cosine beyond random_within means that the two directions share something",
        )
    )


def run_comparison(ctx: Ctx, one: str, other: str) -> Comparison:
    """Compare two captures, for the tool and for its chart."""
    from engine.stats.comparison import compare_captures as compare
    from engine.store.read import load_contrast

    store = workbench(ctx).settings.store
    records = find_capture(ctx, one), find_capture(ctx, other)
    return compare(*records, lambda record: load_contrast(record["name"], store=store))


def ranked_row(layer: ScoredLayer, *, full: bool) -> RankedRow:
    """Describe one layer of a ranking.

    Args:
        layer: The layer.
        full: Whether to add d' by held-out factor and the share of misordered pairs.
    """
    ranked = layer.ranked
    row = RankedRow(
        rank=layer.rank,
        layer=layer.row["layer"],
        value=None if layer.value is None else rounded(layer.value, 4),
        raw_norm=rounded(layer.row["diff_norm"] or 0.0),
    )
    if ranked:
        row.d_prime, row.auroc = rounded(ranked["d_prime"]), rounded(ranked["auroc"])
        row.interval = rounded(ranked["low"]), rounded(ranked["high"])
        row.rank_interval = ranked["rank_low"], ranked["rank_high"]
        row.tied, row.p_value = may_be_best(ranked), rounded(ranked["p_value"], 4)
    if ranked and full:
        row.d_prime_by_left_out = {key: rounded(value["d_prime"]) for key, value in ranked["by_factor"].items()}
        row.wrong_way = rounded(ranked["wrong_way"])
    return row


def describe_layer(record: CaptureRecord, ranked: RankedLayer, sides: ClassSummary) -> LayerReply:
    """Describe one layer.

    Args:
        record: The capture.
        ranked: The layer's entry in its ranking.
        sides: The projections of its held-out prompts.
    """
    return LayerReply(
        capture=record["name"],
        layer=sides["layer"],
        d_prime=rounded(ranked["d_prime"]),
        auroc=rounded(ranked["auroc"]),
        worst_left_out=sides["left_out"],
        by_left_out={factor: rounded(score["d_prime"]) for factor, score in ranked["by_factor"].items()},
        positive_quartiles=[rounded(value, 2) for value in side_quartiles(sides, "positive")],
        negative_quartiles=[rounded(value, 2) for value in side_quartiles(sides, "negative")],
        wrong_pairs=[
            _misordered_pair(find_pair(record, wrong["pair"]), wrong["gap"]) for wrong in sides["wrong"][:_MOST_WRONG]
        ],
        wrong_total=sides["wrong_total"],
        tied_total=sides.get("tied_total", 0),
        next_step=f"plot_capture(name='{record['name']}', layer={sides['layer']})",
    )


def compared_rows(comparison: Comparison) -> list[ComparedRow]:
    """List the rows of a comparison, thinned evenly to fit one answer."""
    rows = [
        ComparedRow(
            layer=row["layer"],
            cosine=rounded(row["cosine"]),
            random_within=rounded(row["chance"]),
            halves_reach=rounded(row["ceiling"]),
            one_on_other=_auroc(row["transfer"]),
            other_on_one=_auroc(row["back"]),
        )
        for row in comparison["directions"]
    ] + [
        ComparedRow(
            layer=row["layer"],
            capture=row["capture"],
            depth=rounded(row["depth"]),
            d_prime=rounded(row["d_prime"]),
            tied=row["tied"],
        )
        for row in comparison["depths"]
    ]
    step = -(-len(rows) // _MOST_ROWS)
    return rows[:: step or 1]


def _auroc(found: Transfer) -> tuple[float, float, float]:
    return rounded(found["auroc"]), rounded(found["low"]), rounded(found["high"])


def _misordered_pair(pair: NumberedPair, gap: float) -> MisorderedPair:
    return MisorderedPair(
        pair=pair["number"],
        gap=rounded(gap),
        positive_prompt=shorten(pair["positive"]),
        factors={name: str(value) for name, value in pair["factors"].items()} if pair["factors"] else None,
    )


def _after_ranking(name: str, layers: list[int]) -> str:
    against = f", against={layers[1]}" if len(layers) > 1 else ""
    return f"inspect_layer(name='{name}', layer={layers[0]}{against}), plot_capture(name='{name}')"


TOOLS = (
    ToolSpec(rank_layers, "Rank layers"),
    ToolSpec(inspect_layer, "Inspect a layer"),
    ToolSpec(compare_captures, "Compare two captures"),
)
