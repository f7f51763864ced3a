"""What is answered about one layer: knows what a record says of it, and needs no tensors."""

from pydantic import BaseModel, Field

from engine.records.files import CaptureRecord, NumberedPair, find_pair
from engine.records.results import RankedLayer, SideSummary
from engine.stats.scores import side_quartiles
from server.replies.reply import Reply, rounded, shorten

_MOST_WRONG = 5


class WrongPair(BaseModel):
    """A pair whose positive prompt lies on the negative side of its partner."""

    pair: int
    gap: float = Field(description="How far, in units of the spread within a side; negative")
    positive_prompt: str
    factors: dict[str, str] | None


class LayerReply(Reply):
    """One layer in detail."""

    capture: str
    layer: int
    d_prime: float
    auroc: float
    worst_left_out: str = Field(description="What was left out where the separation is lowest")
    by_left_out: dict[str, float] = Field(description="d' with each factor left out")
    against: list[str] = Field(
        default_factory=list, description="Why one of the two layers is ranked above the other, with against"
    )
    positive_quartiles: list[float] = Field(
        description="Minimum, quartiles and maximum of where the left-out positive prompts lie; 0 is half-way between"
        " the sides, 1 the spread within a side; read off a histogram of 48 steps"
    )
    negative_quartiles: list[float]
    wrong_pairs: list[WrongPair] = Field(description="Pairs that point the wrong way, the furthest first")
    wrong_total: int


def describe_layer(record: CaptureRecord, ranked: RankedLayer, sides: SideSummary) -> LayerReply:
    """A layer as clients see it.

    Args:
        record: The capture.
        ranked: The layer's place in its ranking.
        sides: Where its prompts lie.
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
            _wrong_pair(find_pair(record, wrong["pair"]), wrong["gap"]) for wrong in sides["wrong"][:_MOST_WRONG]
        ],
        wrong_total=sides["wrong_total"],
        next_step=f"plot_capture(name='{record['name']}', layer={sides['layer']}) for the picture",
    )


def _wrong_pair(pair: NumberedPair, gap: float) -> WrongPair:
    return WrongPair(
        pair=pair["number"],
        gap=rounded(gap),
        positive_prompt=shorten(pair["positive"]),
        factors={name: str(value) for name, value in pair["factors"].items()} if pair["factors"] else None,
    )
