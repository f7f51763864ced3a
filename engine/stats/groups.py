"""Groups of pairs to hold out and resample, and access to their states in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import torch

from engine.records.captures import ActivationData, ContrastData, Factors, factor_columns
from engine.records.results import ENOUGH_GROUPS, FEWEST_PAIRS, FOLDS
from engine.stats.wordings import link, number_pairs

if TYPE_CHECKING:
    from torch import Tensor


MOST_UNITS = 65  # more are merged: a bootstrap over 65 units estimates a standard error to within 9%; 13 in each fold
FEWEST_GROUPS = 3  # with two, each is projected on the other alone: one number without an estimate of its variance
PAIRS = "pairs"
"""Name of the grouping of pairs without factors."""


def group_pairs(data: ContrastData) -> dict[str, Tensor]:
    """Assign each pair to a group, for every factor whose groups can be held out.

    Groups are resampled as a whole, and held out as `held_out_groups` says.

    Args:
        data: A contrast.

    Returns:
        Factor to the group index of each pair, `(pairs,)`, counted from 0: `persona`, `template` and `topic`, each if
        it has three or more values. Without factors it is `pairs`: a group is a pair, or all pairs that share a prompt.
        More than 65 groups are merged into 65. Empty if no group can be held out: fewer than four pairs, or fewer than
        three groups of every factor. Groups that share a prompt count once in this.

    Example:
        >>> data = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=12, positions="last")
        >>> [*group_pairs(data)]
        ['persona', 'template', 'topic']
    """
    numbers = number_pairs(data)
    if factors := data.get("factors"):
        groupings = group_by_factors(factors)
        apart = (_count_apart(groups, numbers) for groups in groupings.values())
        return groupings if any(count >= FEWEST_GROUPS for count in apart) else {}
    return {PAIRS: numbers % MOST_UNITS} if len(set(numbers.tolist())) >= FEWEST_PAIRS else {}


def group_by_factors(factors: Sequence[Factors]) -> dict[str, Tensor]:
    """Assign each pair to a group by its factors alone; see `group_pairs`.

    A factor that some pairs lack has no groups: those pairs may belong to any of them.

    Example:
        >>> group_by_factors([Factors(persona=name, template="plain", topic="tea") for name in "abab"])
        {}
    """
    if len(factors) < FEWEST_PAIRS:
        return {}
    columns = factor_columns(factors).items()
    varied = {name: values for name, values in columns if all(values) and len(set(values)) >= FEWEST_GROUPS}
    return {name: _numbered(values) for name, values in varied.items()}


def held_out_groups(factor: str, groups: Tensor) -> Tensor:
    """Assign each pair to what is held out with it: its group, or one of at most five folds of pairs without factors.

    Args:
        factor: Name of the grouping.
        groups: Group index of each pair, `(pairs,)`.

    Returns:
        Index of what is held out, `(pairs,)`.

    Example:
        >>> held_out_groups("pairs", torch.arange(7)).tolist()
        [0, 1, 2, 3, 4, 0, 1]
    """
    return groups % FOLDS if factor == PAIRS else groups


def tested_factors(groupings: Mapping[str, Tensor]) -> list[str]:
    """Factors whose labels are permuted: those with six groups or more, or else the one with the most.

    Args:
        groupings: Factor to the group index of each pair, `(pairs,)`; at least one factor.

    Example:
        >>> tested_factors({"persona": torch.arange(12), "template": torch.arange(12) % 3})
        ['persona']
    """
    counts = {factor: int(groups.max()) + 1 for factor, groups in groupings.items()}
    enough = [factor for factor, count in counts.items() if count >= ENOUGH_GROUPS]
    return enough or [max(counts, key=lambda factor: counts[factor])]


def resampled_factors(data: ContrastData) -> dict[str, Tensor]:
    """Choose the groups to resample: those that a ranking holds out, or else single pairs.

    Returns:
        Factor to the group index of each pair, `(pairs,)`.
    """
    return group_pairs(data) or {PAIRS: number_pairs(data) % MOST_UNITS}


def sample_pairs(groupings: Mapping[str, Tensor], most: int, seed: int = 0) -> Tensor:
    """Choose pairs for work whose cost grows with their square: all of them, or a random sample with every group in it.

    Args:
        groupings: Factor to the group index of each pair, `(pairs,)`; at least one factor.
        most: Number of pairs to choose; more if there are more groups than that.
        seed: Seed for the sample.

    Returns:
        Numbers of the chosen pairs, ascending.

    Example:
        >>> groups = torch.tensor([0] * 50 + [1])
        >>> sample_pairs({"persona": groups}, 100).tolist() == [*range(51)], 50 in sample_pairs({"persona": groups}, 9)
        (True, True)
    """
    count = len(next(iter(groupings.values())))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if count <= most:
        return torch.arange(count)
    needed: set[int] = set()
    for groups in groupings.values():
        for group in range(int(groups.max()) + 1):
            needed.update(order[groups[order] == group][:1].tolist())
    others = (pair for pair in order.tolist() if pair not in needed)
    return torch.tensor(sorted([*needed, *islice(others, max(most - len(needed), 0))]))


def effective_groups(groups: Tensor) -> float:
    """Number of equally large groups that would average an effect as well: 1 over the sum of squared shares.

    Args:
        groups: Group index of each pair, `(pairs,)`.

    Example:
        >>> effective_groups(torch.tensor([0, 0, 1, 1])), effective_groups(torch.tensor([0, 0, 0, 1]))
        (2.0, 1.6)
    """
    shares = torch.bincount(groups).double() / len(groups)
    return float(1 / shares.square().sum())


def _count_apart(groups: Tensor, numbers: Tensor) -> int:
    """Number of groups, those with pairs of the same number counted once."""
    return len(set(link(groups.tolist(), (-1 - numbers).tolist())))


def _numbered(values: Sequence[str]) -> Tensor:
    number = {value: index for index, value in enumerate(sorted(set(values)))}
    return torch.tensor([number[value] % MOST_UNITS for value in values])


_CHUNK_VALUES = 2**20  # per class: 8 MiB in float64

Sides = tuple["Tensor", "Tensor"]
"""States of some positive prompts and of their negative partners, `(pairs, hidden)` each, float64."""

Pairs = Callable[[], Iterator[Sides]]
"""Returns a fresh iterator over all pairs, in order and in chunks."""


def pairs_at(data: ContrastData, layer: int) -> Pairs:
    """Read the pairs of a contrast at one layer in chunks, at the last kept token.

    Args:
        data: A contrast.
        layer: A captured layer.

    Returns:
        A function that yields chunks of (positive, negative) states, `(pairs, hidden)` each, float64.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=8)
        >>> [positive.shape for positive, negative in pairs_at(contrast, 16)()]
        [torch.Size([8, 576])]
    """
    return partial(_chunks, data, layer)


def pairs_of(positive: Tensor, negative: Tensor) -> Pairs:
    """Wrap states that are in memory, `(pairs, hidden)` each, as `Pairs` of one chunk."""
    return lambda: iter([(positive.double(), negative.double())])


def last_states(prompts: list[ActivationData], layer: int) -> Tensor:
    """Stack the last kept state of every prompt: `(prompts, hidden)`, float64."""
    rows = [data["activations"][layer][:, -1, :] for data in prompts]
    count = sum(map(len, rows))
    return torch.cat(rows, out=torch.empty(count, rows[0].shape[-1], dtype=torch.float64))  # no copy but that


def chunked(prompts: list[ActivationData], layer: int) -> Iterator[Tensor]:
    """Yield `last_states` in chunks of prompts."""
    width = prompts[0]["activations"][layer].shape[-1]
    size = max(1, _CHUNK_VALUES // width)
    for start, stop in pairwise([*range(0, len(prompts), size), len(prompts)]):
        yield last_states(prompts[start:stop], layer)


def _chunks(data: ContrastData, layer: int) -> Iterator[Sides]:
    yield from zip(chunked(data["positive"], layer), chunked(data["negative"], layer), strict=True)
