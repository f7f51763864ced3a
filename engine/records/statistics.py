"""What the statistics say of a layer."""

from __future__ import annotations

from typing import TypedDict


class LayerStats(TypedDict):
    """Summary of one layer: mean and standard deviation of all values, mean L2 norm of a token's state."""

    mean: float
    std: float
    norm: float


class LayerDiff(TypedDict):
    """Contrast at one layer, last token.

    Attributes:
        diff_norm: L2 norm of the difference of the two means. Grows with depth whatever the concept.
        relative_norm: `diff_norm` over the mean norm of the states it is the difference of.
        cosine_sim: Cosine of the two means. Near 1 is normal.
        pair_cosine: Mean cosine between the differences of two distinct pairs: 1 where all point one way, 0 where they
            have nothing in common. None where no two pairs differ.
    """

    diff_norm: float
    relative_norm: float
    cosine_sim: float
    pair_cosine: float | None


class Separation(TypedDict):
    """How well left-out pairs separate.

    Attributes:
        d_prime: Distance of the two sides over their spread.
        auroc: Share of (positive, negative) prompts in the right order.
        wrong_way: Share of pairs whose positive prompt lies on the negative side of its partner.
    """

    d_prime: float
    auroc: float
    wrong_way: float


class LayerSeparation(TypedDict):
    """Held-out separation at one layer.

    Attributes:
        worst: What was left out where `d_prime` is lowest: the score of the layer.
        by_factor: `persona`, `template` and `topic` as far as they vary, or `pairs` for pairs without factors.
    """

    worst: str
    by_factor: dict[str, Separation]


class SideProjections(Separation):
    """Where left-out prompts lie along the direction of the others, at one layer.

    Attributes:
        layer: Layer number.
        left_out: What was left out.
        positive: One projection a pair, in units of the spread within a side; 0 is half-way between the sides.
        negative: The same for the other side, in the same order.
    """

    layer: int
    left_out: str
    positive: list[float]
    negative: list[float]


class WrongPair(TypedDict):
    """A left-out pair whose positive prompt lies on the negative side of its partner.

    Attributes:
        pair: Its number.
        gap: How far, in units of the spread within a side; negative.
    """

    pair: int
    gap: float


class SideSummary(TypedDict):
    """`SideProjections` in a size that does not grow with the number of pairs: what the JSON holds of a layer.

    Attributes:
        layer: Layer number.
        left_out: What was left out.
        low: Lowest projection of a prompt, in units of the spread within a side; 0 is half-way between the sides.
        high: Highest projection.
        positive: How many positive prompts lie in each of equal steps from `low` to `high`.
        negative: The same for the other side.
        wrong: Pairs that point the wrong way, the furthest first; the first twenty.
        wrong_total: How many there are.
    """

    layer: int
    left_out: str
    low: float
    high: float
    positive: list[int]
    negative: list[int]
    wrong: list[WrongPair]
    wrong_total: int


class LayerRow(LayerStats):
    """What the JSON holds of one layer; what only a contrast has is None for prompts."""

    layer: int
    diff_norm: float | None
    relative_norm: float | None
    cosine_sim: float | None
    pair_cosine: float | None
