"""Transfer: how well the direction of one contrast sorts the pairs of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from engine.capture.selection import captured_layer
from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.files import CaptureRecord
from engine.records.results import Transfer, TransferMatrix
from engine.remedies import Remedy
from engine.stats.comparison_rules import differences_between, groups_in_common, require_contrasts, require_same_reading
from engine.stats.components import combine, variance_components
from engine.stats.crossed import MOST_PAIRS
from engine.stats.designs import cannot_hold_out
from engine.stats.groups import (
    FEWEST_GROUPS,
    Pairs,
    effective_groups,
    group_pairs,
    pairs_at,
    resampled_factors,
    sample_pairs,
)
from engine.stats.held_out import HeldOutLayer, hold_out
from engine.stats.resampling import CONFIDENCE, RESAMPLES, half_width
from engine.stats.scores import own_scores
from engine.stats.separation import count_below, separate, share_above, tie_between
from engine.stats.shared_pairs import NewPairs, describe_shared, new_pairs
from engine.stats.wordings import wordings

if TYPE_CHECKING:
    from torch import Tensor

_FEWEST_CAPTURES = 2
_FEW_WRONG = 0.35  # independent pairs in the less frequent order; fewer are in no or hardly any resample
_GRID = 10_001  # values of AUROC among which the ends of a score interval are sought


def compare_transfer(
    records: Sequence[CaptureRecord], load: Callable[[CaptureRecord], ContrastData], *, layer: int | None = None
) -> TransferMatrix:
    """Sort the pairs of several contrasts by the direction of each, at one layer.

    Args:
        records: Records of two or more contrasts on one model, with the same site and positions.
        load: Loads the tensors of a record.
        layer: A layer that all have; by default the one where the mean of their own held-out AUROC is highest, and of
            several the one with the highest mean of d'.

    Returns:
        One row per direction and one column per contrast, with 95% intervals. The diagonal holds each contrast's own
        direction, held out. Off it, pairs that share a prompt with the direction's own do not count, see `new_pairs`.

    Raises:
        RequestError: There are fewer than two captures, one is given twice, one has no group of pairs to hold out, or
            they cannot be compared; the message says which and why.

    Example:
        >>> from engine.store.catalog import show_capture
        >>> for name in ("honesty", "formality"):
        ...     data = capture_from_concept(model, tokenizer, name, layers=[16], max_samples=12, positions="last")
        ...     paths = save_activations(data, f"runs/sorted_{name}", force=True)
        >>> records = [show_capture(f"runs/sorted_{name}") for name in ("honesty", "formality")]
        >>> matrix = compare_transfer(records, lambda record: load_activations(f"runs/{record['name']}"))
        >>> matrix["layer"], len(matrix["cells"])
        (16, 2)
    """
    if len(records) < _FEWEST_CAPTURES:
        raise RequestError("there is nothing to compare it with", expected="two or more captures")
    require_contrasts(*records)
    warnings: list[str] = []
    for record in records[1:]:
        require_same_reading(records[0], record, same_model=True)
        warnings += differences_between(records[0], record)
    _require_distinct(records)
    captures = [load(record) for record in records]
    for record, data in zip(records, captures, strict=True):
        _require_groups(record, data)
    chosen = _common_layer(records, captures, layer)
    fitted = [wordings(data) for data in captures]
    sorted_pairs = [[new_pairs(data, texts) for data in captures] for texts in fitted]
    cells = [
        [
            _own(data, chosen) if row == column else sort_new(direction, sorted_pairs[row][column], chosen)
            for column, data in enumerate(captures)
        ]
        for row, direction in enumerate(mean_direction(pairs_at(data, chosen)) for data in captures)
    ]
    names = [record["name"] for record in records]
    for column, name in enumerate(names):
        others = {names[row]: line[column] for row, line in enumerate(sorted_pairs) if row != column}
        warnings += describe_shared(name, others)
    warnings += [said for pair in combinations(records, 2) for said in groups_in_common(*pair)]
    shares = [cell["in_order"] for row, line in enumerate(cells) for column, cell in enumerate(line) if row != column]
    return TransferMatrix(
        names=names,
        titles=[record["concept"] or record["name"] for record in records],
        layer=chosen,
        cells=cells,
        off_diagonal=sum(max(share, 1 - share) for share in shares) / len(shares),
        warnings=warnings,
    )


def _require_distinct(records: Sequence[CaptureRecord]) -> None:
    """Refuse a capture given twice, also under another name: off the diagonal it would not be held out."""
    seen: dict[str, str] = {}
    for record in records:
        name, content = record["name"], record["data"]["sha256"]
        if content in seen:
            raise RequestError(
                f"{name} is given twice"
                if seen[content] == name
                else f"{seen[content]} and {name} are the same capture",
                expected="different captures",
                next_step="omit one of them",
            )
        seen[content] = name


def _require_groups(record: CaptureRecord, data: ContrastData) -> None:
    """Require groups of pairs to hold out: without them, the diagonal would be in-sample."""
    if not group_pairs(data):
        refused = cannot_hold_out(data)
        raise RequestError(
            f"no group of pairs of {record['name']} can be held out: {refused.problem}",
            expected=refused.expected,
            next_step=refused.next_step,
        )


def transfer(direction: Tensor, data: ContrastData, layer: int, *, seed: int = 0) -> Transfer:
    """Sort the pairs of a contrast by a direction from other prompts.

    Args:
        direction: `(hidden,)`, float64; it is taken as given.
        data: The contrast.
        layer: A captured layer.
        seed: Seed for resampling.

    Raises:
        RequestError: The direction has another width than the states, or one of them is not finite.
    """
    positive, negative = project(pairs_at(data, layer), direction)
    _require_finite(layer, positive - negative)
    return sort_pairs(positive, negative, resampled_factors(data), seed=seed)


def sort_new(direction: Tensor, pairs: NewPairs, layer: int, *, seed: int = 0) -> Transfer:
    """Sort the pairs of a contrast that a direction was not fitted to; see `transfer` and `new_pairs`."""
    found = transfer(direction, pairs.data, layer, seed=seed)
    if pairs.in_sample:
        found["shared"] = pairs.shared
    return found


def own_transfer(data: ContrastData, layer: int, held_out: HeldOutLayer | None = None) -> Transfer | None:
    """Sort the pairs of a contrast by their own held-out directions.

    Args:
        data: The contrast.
        layer: A captured layer.
        held_out: Its held-out projections, if they are known.

    Returns:
        The transfer for the factor with the lowest d'; None if no group can be held out.

    Raises:
        RequestError: States are not finite.
    """
    groupings = group_pairs(data)
    if not groupings:
        return None
    held = held_out or hold_out(pairs_at(data, layer), groupings)
    worst = held.by_factor[separate(held)["worst"]]
    _require_finite(layer, worst.differences)
    return Transfer(**sort_pairs(*worst.sides, groupings), d_prime=worst.d_prime)


def _require_finite(layer: int, projected: Tensor) -> None:
    if not projected.isfinite().all():
        raise RequestError(f"layer {layer} has non-finite values", next_step=Remedy.CAPTURE_IN_FLOAT32)


def mean_direction(pairs: Pairs) -> Tensor:
    """Mean difference of all pairs, `(hidden,)`, of unit length; zeros if the classes have the same mean."""
    total: Tensor | float = 0.0
    for positive, negative in pairs():
        total = total + (positive - negative).sum(dim=0)
    return torch.nn.functional.normalize(torch.as_tensor(total), dim=0)


def project(pairs: Pairs, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Project positive and negative prompts on a direction, `(pairs,)` each.

    Raises:
        RequestError: The direction has another width than the states.
    """
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for chunk in pairs():
        for projections, states in zip(found, chunk, strict=True):
            if states.shape[1] != len(direction):
                raise RequestError(
                    f"the captures have states of different widths: {len(direction)} and {states.shape[1]}"
                )
            projections.append(states @ direction)
    return torch.cat(found[0]), torch.cat(found[1])


def sort_pairs(positive: Tensor, negative: Tensor, groupings: Mapping[str, Tensor], *, seed: int = 0) -> Transfer:
    """Compute AUROC, its 95% interval, and the share of pairs in the right order.

    The interval is the Bayesian bootstrap over the groups of every factor (Rubin 1981, "The Bayesian Bootstrap"),
    corrected, combined and widened for few groups as in `rank_layers`. It is symmetric in the log-odds of AUROC, which
    keeps its coverage near 0 and 1. If so few prompts are in the wrong order that resampling them says little, the
    score interval for that many independent pairs counts too, see `_close_to_the_edge`.

    Args:
        positive: Projection of each positive prompt, `(pairs,)`, float64.
        negative: Projection of its negative partner, `(pairs,)`.
        groupings: Factor to the group index of each pair, `(pairs,)`; a group is resampled as a whole.
        seed: Seed for resampling.

    Example:
        >>> import torch
        >>> found = sort_pairs(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 3.0]), {"persona": torch.arange(2)})
        >>> found["auroc"], found["in_order"]
        (0.75, 1.0)
    """
    tie = tie_between(positive, negative)
    ordered = {factor: _ordered(positive, negative, groups, tie) for factor, groups in groupings.items()}
    gaps = positive - negative
    auroc = float(next(iter(ordered.values())).sum()) / len(positive) ** 2
    ends = _interval(auroc, ordered, groupings, gaps, seed)
    wrong = min(auroc, 1 - auroc)
    # The number of independent pairs takes longer to estimate, and is at least that of groups.
    if wrong * min(map(effective_groups, groupings.values())) < _FEW_WRONG:
        pairs = _independent(positive, negative, groupings)
        if wrong * pairs < _FEW_WRONG:
            close = _close_to_the_edge(auroc, pairs)
            ends = min(ends[0], close[0]), max(ends[1], close[1])
    in_order = share_above(gaps, tie)
    return Transfer(auroc=auroc, low=min(ends[0], auroc), high=max(ends[1], auroc), in_order=in_order)


def _ordered(positive: Tensor, negative: Tensor, units: Tensor, tie: float) -> Tensor:
    """Number of (positive, negative) in the right order, by the unit of each, `(units, units)`; ties count half."""
    count = int(units.max()) + 1
    ordered = torch.zeros((count, count), dtype=torch.float64)
    for unit in range(count):
        ordered[:, unit].index_add_(0, units, count_below(positive, negative[units == unit], tie))
    return ordered


def _interval(
    auroc: float, ordered: Mapping[str, Tensor], groupings: Mapping[str, Tensor], gaps: Tensor, seed: int
) -> tuple[float, float]:
    """95% interval of AUROC, symmetric in its log-odds; everything from 0 to 1 with too few groups to tell."""
    counts = {factor: len(found) for factor, found in ordered.items()}
    if min(counts.values()) < FEWEST_GROUPS:
        return 0.0, 1.0
    resolution = 0.5 / len(gaps) ** 2  # half of one prompt in the wrong order: log-odds of 0 and 1 are infinite
    deviations = {}
    for number, (factor, found) in enumerate(ordered.items()):
        generator = torch.Generator().manual_seed(seed * len(ordered) + number)
        weights = torch.empty((len(found), RESAMPLES), dtype=torch.float64).exponential_(generator=generator)
        pairs = torch.bincount(groupings[factor]).double()
        scores = (weights * (found @ weights)).sum(dim=0) / (pairs @ weights).square()  # (resamples,)
        odds = scores.logit(resolution)
        deviations[factor] = (odds - odds.mean()) * math.sqrt((counts[factor] + 1) / (counts[factor] - 1))
    chosen = sample_pairs(groupings, MOST_PAIRS, seed)
    components = variance_components(gaps[chosen], {factor: groups[chosen] for factor, groups in groupings.items()})
    effective = {factor: effective_groups(groups) for factor, groups in groupings.items()}
    combined, freedom = combine(deviations, components, effective, len(gaps))
    half = half_width(freedom, CONFIDENCE) * float(combined.std())
    middle = torch.tensor(auroc, dtype=torch.float64).logit(resolution)
    return float((middle - half).sigmoid()), float((middle + half).sigmoid())


def _independent(positive: Tensor, negative: Tensor, groupings: Mapping[str, Tensor]) -> float:
    """Number of independent pairs that would average the projections of a class as well; of the class with fewer."""
    chosen = sample_pairs(groupings, MOST_PAIRS)
    of_chosen = {factor: groups[chosen] for factor, groups in groupings.items()}
    effective = {factor: effective_groups(groups) for factor, groups in groupings.items()}
    found = []
    for side in (positive, negative):
        components = variance_components(side[chosen], of_chosen)
        error = sum(value / effective.get(name, len(side)) for name, value in components.items())
        found.append(sum(components.values()) / error if error > 0 else min(effective.values()))
    return min(found)


def _close_to_the_edge(auroc: float, pairs: float) -> tuple[float, float]:
    """Score interval of an AUROC: all values whose own standard error reaches the observed one.

    It has a width where no prompt is in the wrong order, which no resample can show (Newcombe 2006, "Confidence
    intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", method 5).

    Args:
        auroc: The observed AUROC.
        pairs: Number of independent pairs.
    """
    values = torch.linspace(0, 1, _GRID, dtype=torch.float64)
    within = (1 - values) / (2 - values) + values / (1 + values)
    variance = values * (1 - values) * (1 + (pairs - 1) * within) / pairs**2
    reached = values[(values - auroc).abs() <= half_width(max(pairs - 1, 1), CONFIDENCE) * variance.sqrt()]
    return (float(reached.min()), float(reached.max())) if len(reached) else (auroc, auroc)


def no_shared_layer(captures: Mapping[str, ContrastData]) -> RequestError:
    """Build the error for captures that share no layer; it names the layers of each."""
    held = "; ".join(f"{name}: {data['layers']}" for name, data in captures.items())
    return RequestError(f"the captures share no layer ({held})", next_step="capture the same layers")


def _common_layer(records: Sequence[CaptureRecord], captures: Sequence[ContrastData], layer: int | None) -> int:
    layers = sorted(set.intersection(*({*data["layers"]} for data in captures)))
    if not layers:
        raise no_shared_layer({record["name"]: data for record, data in zip(records, captures, strict=True)})
    if layer is not None:
        return captured_layer(layer, layers)
    return max(layers, key=lambda number: own_scores([_own(data, number) for data in captures]))


def _own(data: ContrastData, layer: int) -> Transfer:
    found = own_transfer(data, layer)
    if found is None:
        raise cannot_hold_out(data)
    return found
