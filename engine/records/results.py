"""Types of statistical results: summaries, rankings, confounds, comparisons."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A whole number in a JSON file; larger ones are damage, and could hide the text around them."""

Real = Annotated[float, msgspec.Meta(ge=-1e45, le=1e45)]
"""A number in a JSON file, of at most 46 digits before the point."""


SIGNIFICANT = 0.05
"""Level at which a layer is said to separate the classes."""
FEWEST_PAIRS = 4
"""Fewest pairs with which layers can be ranked."""
FOLDS = 5
"""Most folds of pairs without factors."""
ENOUGH_GROUPS = 6
"""Fewest groups that allow p < 0.05: 2^5 distinct permutations."""


class LayerStats(TypedDict):
    """Summary of the states at one layer.

    Attributes:
        mean: Mean of all values.
        std: Population standard deviation of all values.
        norm: Mean L2 norm of a token's state.
    """

    mean: Real
    std: Real
    norm: Real


class LayerDiff(TypedDict):
    """Difference between the classes at one layer, last kept token.

    Attributes:
        diff_norm: L2 norm of the mean difference (raw norm). Grows with depth for every concept.
        relative_norm: `diff_norm` divided by the mean norm of the states.
        cosine_sim: Cosine of the class means. Near 1 is normal.
        pair_cosine: Mean cosine between the differences of two distinct pairs that share no prompt: 1 if all
            differences are parallel, 0 if they have nothing in common. None if no two such pairs differ.
    """

    diff_norm: float
    relative_norm: float
    cosine_sim: float
    pair_cosine: float | None


class Separation(TypedDict):
    """Separation of the classes on held-out pairs.

    Attributes:
        d_prime: Distance between the class means in units of the spread within a class.
        auroc: Share of (positive, negative) prompts in the right order; ties count half.
        wrong_way: Share of misordered pairs, whose positive prompt projects lower than its negative partner. A tied
            pair counts half, as in every share of pairs; counts of pairs (`ClassSummary`) give tied ones separately.
    """

    d_prime: Real
    auroc: Real
    wrong_way: Real


class LayerSeparation(TypedDict):
    """Held-out separation at one layer.

    Attributes:
        worst: Factor with the lowest `d_prime`, which is the score of the layer.
        by_factor: Separation with each of `persona`, `template` and `topic` held out, if it varies enough, or with
            `pairs` for pairs without factors.
    """

    worst: str
    by_factor: dict[str, Separation]


class ClassProjections(Separation):
    """Held-out projections of both classes at one layer.

    Attributes:
        layer: Layer number.
        left_out: Factor that was held out.
        folds: Number of folds of pairs without factors; absent if a factor was held out.
        positive: Projection of each positive prompt, in units of the spread within a class; 0 is halfway between the
            class means.
        negative: Projection of each negative prompt, in the same order of pairs.
    """

    layer: int
    left_out: str
    folds: NotRequired[int]
    positive: list[float]
    negative: list[float]


class WrongPair(TypedDict):
    """A misordered held-out pair: the positive prompt projects lower than its partner.

    Attributes:
        pair: Pair number, from 0.
        gap: Projection of the positive minus the negative prompt, in units of the spread within a class; negative.
    """

    pair: Count
    gap: Real


class ClassSummary(TypedDict):
    """Histogram of held-out projections at one layer, as stored in the JSON.

    Unlike `ClassProjections`, its size does not grow with the number of pairs.

    Attributes:
        layer: Layer number.
        left_out: Factor that was held out.
        low: Lowest projection, in units of the spread within a class; 0 is halfway between the class means.
        high: Highest projection.
        positive: Number of positive prompts in each of the equal bins from `low` to `high`.
        negative: Number of negative prompts in each bin.
        wrong: Up to twenty misordered pairs, largest gap first.
        wrong_total: Number of misordered pairs, without tied ones.
        tied_total: Number of tied pairs, each of which counts half in `wrong_way`; absent if there are none.
    """

    layer: Count
    left_out: str
    low: Real
    high: Real
    positive: list[Count]
    negative: list[Count]
    wrong: list[WrongPair]
    wrong_total: Count
    tied_total: NotRequired[Count]


class LayerRow(LayerStats):
    """Statistics of one layer as stored in the JSON; see `LayerStats` and `LayerDiff`.

    The fields of `LayerDiff` are None for a capture of prompts.
    """

    layer: Count
    diff_norm: Real | None
    relative_norm: Real | None
    cosine_sim: Real | None
    pair_cosine: Real | None


class RankedLayer(TypedDict):
    """One layer of a ranking.

    Attributes:
        layer: Layer number.
        rank: Rank by descending score, from 1.
        d_prime: Score: held-out d' for the factor where it is lowest.
        low: Lower end of the confidence interval of the score.
        high: Upper end of the confidence interval of the score.
        rank_low: Best rank in the rank interval.
        rank_high: Worst rank in the rank interval.
        tied: Whether the layer is tied with the best: its rank interval includes rank 1.
        p_value: p-value for an effect that holds over all tested factors: the largest of `p_by_factor`. Corrected for
            the number of layers.
        p_by_factor: For each tested factor, the share of permutations in which the best of all layers scores as high;
            `crossed` for the test of all of them at once. Absent in older captures.
        null_low: 2.5% quantile of the permutation null at this layer.
        null_high: 97.5% quantile of the permutation null at this layer.
        left_out: Factor that was held out for the score.
        auroc: AUROC of the same held-out projections.
        wrong_way: Share of held-out pairs that are misordered; a tied pair counts half.
        by_factor: Separation with each factor held out.
    """

    layer: Count
    rank: Count
    d_prime: Real
    low: Real
    high: Real
    rank_low: Count
    rank_high: Count
    tied: bool
    p_value: Real
    p_by_factor: NotRequired[dict[str, Real]]
    null_low: Real
    null_high: Real
    left_out: str
    auroc: Real
    wrong_way: Real
    by_factor: dict[str, Separation]


def may_be_best(row: RankedLayer) -> bool:
    """Whether a layer is tied with the best, among those that exceed the null at 5%.

    A layer without significance can have a rank interval that includes rank 1 only because it is wide.
    """
    return row["tied"] and row["p_value"] <= SIGNIFICANT


class Ranking(TypedDict):
    """Layers ranked by held-out d', with uncertainty.

    Attributes:
        layers: Layers, best first.
        groups: Number of resampled groups of each factor that was held out, or of pairs without factors.
        tested: Permuted factors: those with enough groups, or else the one with the most.
        confidence: Confidence level of intervals, rank intervals and ties.
        margins: Half-widths of the 95% intervals of score differences: for each layer in ascending order, one value per
            later layer. They are valid for two layers chosen in advance; `tied` is for finding the best layer.
        chance: 95% quantile of the best score of any layer under permutations of the factor that was held out for the
            leading layer.
        smallest_p: Smallest p-value possible with this many groups.
        resamples: Number of bootstrap resamples.
        permutations: Number of permutations of the factor with the most; all distinct ones if there are few.
        seed: Seed for resamples and permutations.
        limits: What limits the precision of the leading layer's score: shares of its squared standard error that come
            from personas, templates, topics and single pairs (`pair`). Absent in older captures.
        warnings: Limits of the ranking.
    """

    layers: list[RankedLayer]
    groups: dict[str, Count]
    tested: list[str]
    confidence: Real
    margins: list[list[Real]]
    chance: Real
    smallest_p: Real
    resamples: Count
    permutations: Count
    seed: int
    limits: NotRequired[dict[str, Real]]
    warnings: list[str]


class Telltale(TypedDict):
    """A word, pair of words or sign that occurs more often in one class.

    Attributes:
        text: The word, the two neighboring words, or the sign.
        positive: Number of groups with a pair that has it in the positive prompt only.
        negative: Number of groups with a pair that has it in the negative prompt only.
        total: Number of groups.
        counted: What the groups are: `persona`, another factor, or `pair` for pairs without factors.
    """

    text: str
    positive: Count
    negative: Count
    total: Count
    counted: str


class Confound(TypedDict):
    """Baseline without the model: how well one property of the prompts separates them.

    The scores are those of the factor for which the share of pairs in the right order is lowest. Older captures have
    only `what`, `auroc` and `detail`.

    Attributes:
        what: `prompt length`, `token read`, `capitals`, `punctuation`, `topic words`, `all words` or `word order`.
        auroc: Held-out AUROC; 0.5 is chance.
        detail: What differs between the classes.
        within_pairs: Share of held-out pairs in the right order, ties counting half; 0.5 is chance.
        p_value: Permutation p-value, with the labels of whole groups swapped; the largest over the tested factors.
        telltale: What differs most between the classes, most telling first.
    """

    what: str
    auroc: Real
    detail: str
    within_pairs: NotRequired[Real]
    p_value: NotRequired[Real]
    telltale: NotRequired[list[Telltale]]


class ConfoundReport(TypedDict):
    """Baselines without the model, held out like the states.

    Attributes:
        checks: One entry per baseline.
        warnings: One sentence per baseline that separates held-out prompts, or one that says that there are too few
            groups to test the baselines; empty if none does.
    """

    checks: list[Confound]
    warnings: list[str]


class ConceptCheck(TypedDict):
    """What the texts of a concept show before a model runs.

    Attributes:
        concept: Name of the concept.
        pairs: Number of pairs drawn.
        groups: Number of personas, templates and topics in these pairs.
        smallest_p: Smallest p-value possible when each of these factors is permuted, and, if two or more have six
            groups, that of the `crossed` test of them all.
        confounds: Baselines without the model, for these pairs.
        negations: Number of personas with a negation in the text of one class only, by class.
        telltale: Words in the texts of several personas of one class, most telling first.
        advice: What to add to the design, most useful first.
        unchecked: What texts cannot show.
        warnings: Confounds, unbalanced negations, and a design too small to test.
    """

    concept: str
    pairs: Count
    groups: dict[str, Count]
    smallest_p: dict[str, Real]
    confounds: ConfoundReport
    negations: dict[str, Count]
    telltale: list[Telltale]
    advice: list[str]
    unchecked: list[str]
    warnings: list[str]


class Transfer(TypedDict):
    """How well one direction sorts the pairs of a contrast.

    Attributes:
        auroc: Share of (positive, negative) prompts in the right order; ties count half.
        low: Lower end of the 95% interval of `auroc`, with the direction fixed and the groups of every
            factor resampled.
        high: Upper end of that interval.
        in_order: Share of pairs whose positive prompt projects higher than its negative partner; ties count half.
        shared: Number of sorted pairs with a prompt that the direction was fitted to: the numbers are in-sample.
            Absent if there are none.
        d_prime: Held-out d'. Absent unless this is a contrast's own held-out direction.
    """

    auroc: Real
    low: Real
    high: Real
    in_order: Real
    shared: NotRequired[Count]
    d_prime: NotRequired[Real]


class NeighbourAt(TypedDict):
    """A contrast and one neighbour at one layer.

    Attributes:
        name: Name of the neighbour.
        transfer: The neighbour's direction on the pairs of the contrast.
        back: The contrast's direction on the pairs of the neighbour.
        own: The neighbour's own held-out direction on its pairs; None if no group of them can be held out.
        d_prime_left: Held-out d' of the contrast without the neighbour's direction.
    """

    name: str
    transfer: Transfer
    back: Transfer
    own: Transfer | None
    d_prime_left: Real


class SpecificityLayer(TypedDict):
    """A contrast and its neighbours at one layer.

    Attributes:
        layer: Layer number.
        own: The contrast's own held-out direction on its pairs, for the factor with the lowest d'.
        d_prime: Held-out d' of the contrast: its score at this layer.
        d_prime_left: Held-out d' without the directions of these neighbours.
        neighbours: One entry per neighbour that has this layer.
    """

    layer: Count
    own: Transfer
    d_prime: Real
    d_prime_left: Real
    neighbours: list[NeighbourAt]


class SpecificityReport(TypedDict):
    """Is it this concept, or a neighbour? A contrast against other contrasts on the same model.

    Attributes:
        layer: The layer to read first: the top-ranked one. None if nothing was measured.
        layers: One entry per layer, ascending; empty if nothing was measured.
        resampled: What the intervals resample, such as `persona, template, topic`; reports of older versions name the
            first only.
        reason: Why nothing was measured; empty if it was.
        warnings: What limits the comparison.
        postponed: True if only the run of the capture left it out, so that it can be measured later; else absent.
    """

    layer: Count | None
    layers: list[SpecificityLayer]
    resampled: str
    reason: str
    warnings: list[str]
    postponed: NotRequired[bool]


class TransferMatrix(TypedDict):
    """Every direction on the pairs of every contrast, at one layer.

    Attributes:
        names: Names of the captures.
        titles: Their concepts.
        layer: Layer number.
        cells: Row by row, the direction of one contrast on the pairs of each; on the diagonal, the held-out direction.
        off_diagonal: Mean of max(s, 1 - s) off the diagonal, where s is the share of pairs in the right order.
        warnings: Differences between the captures that limit the comparison.
    """

    names: list[str]
    titles: list[str]
    layer: int
    cells: list[list[Transfer]]
    off_diagonal: float
    warnings: list[str]


class ComparedLayer(TypedDict):
    """Two directions at one layer.

    Attributes:
        layer: Layer number.
        cosine: Cosine of the two mean differences.
        chance: 95% quantile of the absolute cosine between random directions within the two captures.
        ceiling: Cosine between the directions of two halves of one capture: the value to expect if one direction is
            measured twice, from half of the groups each time.
        transfer: The first direction on the pairs of the second capture.
        back: The second direction on the pairs of the first capture.
        own: The held-out direction of each capture on its own pairs; None if no group of them can be held out.
    """

    layer: int
    cosine: float
    chance: float
    ceiling: float
    transfer: Transfer
    back: Transfer
    own: tuple[Transfer | None, Transfer | None]


class DepthRow(TypedDict):
    """One layer of one of two compared models.

    Attributes:
        capture: Name of the capture.
        layer: Layer number.
        depth: Relative depth, (layer + 1) / number of layers.
        d_prime: Held-out d'.
        low: Lower end of the confidence interval.
        high: Upper end of the confidence interval.
        tied: Whether the layer is tied with the best layer of its model.
    """

    capture: str
    layer: int
    depth: float
    d_prime: float
    low: float
    high: float
    tied: bool


class Comparison(TypedDict):
    """Comparison of two captures.

    Attributes:
        kind: `directions` for two captures of one model, `depth` for one concept on two models.
        names: Names of the two captures.
        titles: Concepts of the two captures for `directions`, their models for `depth`.
        directions: Layers that both captures have, ascending; empty for `depth`.
        depths: Layers of both captures; empty for `directions`.
        warnings: Differences between the captures that limit the comparison.
    """

    kind: Literal["directions", "depth"]
    names: tuple[str, str]
    titles: tuple[str, str]
    directions: list[ComparedLayer]
    depths: list[DepthRow]
    warnings: list[str]
