"""A ranking of layers, and what could explain it away."""

from __future__ import annotations

from typing import TypedDict

from engine.records.statistics import Separation


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
