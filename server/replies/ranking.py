"""What is answered about a ranking of layers."""

from pydantic import BaseModel, Field

from engine.stats.scores import ScoredLayer
from server.replies.reply import Reply, rounded


class RankedRow(BaseModel):
    """One layer of a ranking."""

    rank: int
    layer: int
    value: float | None = Field(description="The score that the layers are ordered by")
    d_prime: float | None
    interval: tuple[float, float] | None
    places: tuple[int, int] | None = Field(description="Best and worst place that 95% confidence leaves open")
    tied: bool | None = Field(description="Whether it may be the best layer")
    p_value: float | None
    auroc: float | None
    raw_norm: float | None = Field(description="Norm of the mean difference: grows with depth, says little")
    d_prime_by_left_out: dict[str, float] | None = Field(default=None, description="With detail=full")
    wrong_way: float | None = Field(default=None, description="Share of pairs pointing the wrong way; with detail=full")


class RankingReply(Reply):
    """Layers in the order of a score."""

    capture: str
    score: str
    layers: list[RankedRow]
    left_out: int = Field(description="Layers not shown; ask for more with top")
    findings: list[str]


def ranked_row(layer: ScoredLayer, *, full: bool) -> RankedRow:
    """One layer as clients see it; with what it scores for each thing left out if that is wanted."""
    ranked = layer.ranked
    row = RankedRow(
        rank=layer.rank,
        layer=layer.row["layer"],
        value=None if layer.value is None else rounded(layer.value, 4),
        d_prime=rounded(ranked["d_prime"]) if ranked else None,
        interval=(rounded(ranked["low"]), rounded(ranked["high"])) if ranked else None,
        places=(ranked["rank_low"], ranked["rank_high"]) if ranked else None,
        tied=ranked["tied"] if ranked else None,
        p_value=rounded(ranked["p_value"], 4) if ranked else None,
        auroc=rounded(ranked["auroc"]) if ranked else None,
        raw_norm=rounded(layer.row["diff_norm"] or 0.0),
    )
    if full and ranked:
        row.d_prime_by_left_out = {key: rounded(value["d_prime"]) for key, value in ranked["by_factor"].items()}
        row.wrong_way = rounded(ranked["wrong_way"])
    return row
