"""What the statistics say of a layer."""

from __future__ import annotations

from typing import Literal, TypedDict


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


class RankedLayer(TypedDict):
    """One layer of a ranking.

    Attributes:
        layer: Layer number.
        rank: Place by falling score, from 1.
        d_prime: The score: held-out d' with the groups left out that it is lowest for.
        low: Lower end of its confidence interval.
        high: Upper end.
        rank_low: Best place that the confidence level leaves open.
        rank_high: Worst such place.
        tied: Whether first place is open to it.
        p_value: How often shuffled labels score as high at the best of all layers.
        null_low: Lower end of the middle 95% of what shuffled labels score at this layer.
        null_high: Upper end.
        left_out: What was left out where the score is lowest.
        auroc: AUROC of the same projections.
        wrong_way: Share of left-out pairs whose positive prompt lies on the negative side of its partner.
        by_factor: The same with each factor left out.
    """

    layer: int
    rank: int
    d_prime: float
    low: float
    high: float
    rank_low: int
    rank_high: int
    tied: bool
    p_value: float
    null_low: float
    null_high: float
    left_out: str
    auroc: float
    wrong_way: float
    by_factor: dict[str, Separation]


class Ranking(TypedDict):
    """Layers by held-out separation, with uncertainty.

    Attributes:
        layers: Best first.
        groups: Number of groups of each factor that was left out; of pairs for pairs without factors.
        tested: Factors whose labels were shuffled: those with enough groups, or the one with the most.
        confidence: Level of intervals, of ranks and of ties.
        margins: How far the difference between the scores of two layers reaches to each side of what was found, at 95%:
            for each layer by number, those of the layers after it. For two layers that were chosen beforehand; `tied`
            is for finding the best of all.
        chance: Score that the best of all layers stays below in 95% of shuffles of the labels of what the leading layer
            has left out.
        smallest_p: Least p-value that this many groups can give.
        resamples: Bootstrap resamples.
        permutations: Shuffles of the labels: of the factor with the most, every one where there are few.
        seed: Of both.
        warnings: What the reader must know before believing it.
    """

    layers: list[RankedLayer]
    groups: dict[str, int]
    tested: list[str]
    confidence: float
    margins: list[list[float]]
    chance: float
    smallest_p: float
    resamples: int
    permutations: int
    seed: int
    warnings: list[str]


class Confound(TypedDict):
    """How well something other than the states separates the sides, held out like the states themselves.

    Attributes:
        what: `prompt length`, `token read`, `topic words` or `all words`.
        auroc: Held-out AUROC, with the groups left out that it is lowest for; 0.5 where it tells nothing.
        detail: The plain facts.
    """

    what: str
    auroc: float
    detail: str


class ConfoundReport(TypedDict):
    """What else could tell the two sides apart.

    Attributes:
        checks: One entry for each thing looked at.
        warnings: Those that could explain the contrast, in words; empty if none could.
    """

    checks: list[Confound]
    warnings: list[str]


class ComparedLayer(TypedDict):
    """Two directions at one layer.

    Attributes:
        layer: Layer number.
        cosine: Cosine of the two mean differences.
        chance: What the absolute cosine stays below in 95% of cases for random directions of the same two captures.
        ceiling: What the directions of two halves of one capture reach: the cosine to expect of one and the same
            direction measured twice, from half of the groups.
    """

    layer: int
    cosine: float
    chance: float
    ceiling: float


class DepthRow(TypedDict):
    """One layer of one of two models.

    Attributes:
        capture: Name of the capture.
        layer: Layer number.
        depth: How far through the model its block ends, 0 to 1.
        d_prime: Held-out d'.
        low: Lower end of its interval.
        high: Upper end.
        tied: Whether first place is open to it.
    """

    capture: str
    layer: int
    depth: float
    d_prime: float
    low: float
    high: float
    tied: bool


class Comparison(TypedDict):
    """Two captures side by side.

    Attributes:
        kind: `directions` on one model, `depth` for one concept on two models.
        names: The two captures.
        titles: Their concepts, or their models: what differs.
        directions: Layers that both have, ascending; empty for `depth`.
        depths: Layers of both; empty for `directions`.
        warnings: What must be known before believing it.
    """

    kind: Literal["directions", "depth"]
    names: tuple[str, str]
    titles: tuple[str, str]
    directions: list[ComparedLayer]
    depths: list[DepthRow]
    warnings: list[str]
