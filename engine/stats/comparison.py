"""Comparison of two contrasts, by direction or by depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.errors import RequestError
from engine.inputs import require_seed
from engine.records.captures import ContrastData
from engine.records.files import CaptureRecord, not_found_warnings
from engine.records.results import ComparedLayer, Comparison, DepthRow
from engine.stats.comparison_rules import (
    differences_between,
    groups_in_common,
    provenance_of,
    require_contrasts,
    require_same_reading,
)
from engine.stats.groups import MOST_UNITS, group_pairs, pairs_at
from engine.stats.held_out import sum_units
from engine.stats.scores import mend_unranked, more_pairs
from engine.stats.shared_pairs import NewPairs, describe_shared, new_pairs
from engine.stats.transfer import own_transfer, sort_new
from engine.stats.wordings import number_pairs, wordings

if TYPE_CHECKING:
    from torch import Generator, Tensor

_HALVINGS = 1000
_FEWEST_UNITS = 6


def compare_captures(
    one: CaptureRecord, other: CaptureRecord, load: Callable[[CaptureRecord], ContrastData]
) -> Comparison:
    """Compare two concepts on one model, or one concept on two models.

    Captures of one model are compared at each layer by the cosine between their mean differences, and by how well the
    direction of one sorts the pairs of the other (`compare_directions`). Captures of one concept on two models are
    compared by the held-out d' in their rankings, as a function of relative depth.

    Args:
        one: Record of a contrast.
        other: Record of another contrast.
        load: Loads the tensors of a record; called only to compare directions.

    Returns:
        The comparison, with warnings about differences between the captures.

    Raises:
        RequestError: The captures cannot be compared; the message says why.

    Example:
        >>> from engine.store.catalog import show_capture
        >>> record = show_capture("activations/smollm2_honesty")
        >>> whole = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=12, positions="last")
        >>> compare_captures(record, record, lambda record: whole)["kind"]
        'directions'
    """
    require_contrasts(one, other)
    names = _two_names(one["name"], other["name"])
    require_same_reading(one, other)
    first, second = provenance_of(one), provenance_of(other)
    cautions = [warning for record in (one, other) for warning in not_found_warnings(record)]
    if first["model"] == second["model"]:
        captures = load(one), load(other)
        return Comparison(
            kind="directions",
            names=names,
            titles=(one["concept"] or one["name"], other["concept"] or other["name"]),
            directions=compare_directions(*captures),
            depths=[],
            warnings=[
                *cautions,
                *_shared(names, captures),
                *groups_in_common(one, other),
                *differences_between(one, other),
            ],
        )
    if one["concept"] is None or one["concept"] != other["concept"]:
        raise RequestError(
            f"{one['name']} and {other['name']} differ in model ({first['model']} and {second['model']}) and in concept"
            f" ({one['concept'] or 'your own pairs'} and {other['concept'] or 'your own pairs'})",
            expected="two concepts on one model, or one concept on two models",
            next_step="capture one of the concepts on the other capture's model",
        )
    return Comparison(
        kind="depth",
        names=names,
        titles=(first["model"], second["model"]),
        directions=[],
        depths=[*_depths(one, names[0]), *_depths(other, names[1])],
        warnings=[
            *cautions,
            *(
                []
                if _same_pairs(one, other)
                else ["they were not made from the same pairs: use the same number of pairs and the same seed"]
            ),
        ],
    )


def _shared(names: tuple[str, str], captures: tuple[ContrastData, ContrastData]) -> list[str]:
    there, back = _sorted_pairs(captures)
    warnings = describe_shared(names[1], {names[0]: there}) + describe_shared(names[0], {names[1]: back})
    return [*warnings, "shared prompts move the cosine away from 0, but not the random range"] if warnings else []


def _sorted_pairs(captures: tuple[ContrastData, ContrastData]) -> tuple[NewPairs, NewPairs]:
    """The pairs of the second capture for the direction of the first to sort, and the other way round."""
    one, other = captures
    return new_pairs(other, wordings(one)), new_pairs(one, wordings(other))


def compare_directions(one: ContrastData, other: ContrastData, *, seed: int = 0) -> list[ComparedLayer]:
    """Compare the directions of two contrasts, with a chance level and a ceiling, and their transfer.

    Transfer is the AUROC of one capture's direction on the pairs of the other, with a 95% interval over the groups of
    every factor; pairs that share a prompt with those of the direction do not count, see `new_pairs`. The cosine is
    that of the mean differences. Both references come from random halves of each capture's groups (personas, if there
    are enough). The chance level uses the difference between the sums of the two halves, of every factor: a random
    direction along which these pairs vary, but not by the concept. Halves of personas alone have the same templates and
    topics, whose own effects are in the mean difference nevertheless. Random directions in the full width would set the
    level too low, since states barely use most dimensions. The ceiling is the cosine between the directions of the two
    halves, as the geometric mean over the captures.

    Args:
        one: A contrast.
        other: A contrast of the same width.
        seed: Seed for the random halves.

    Returns:
        One row per layer that both captures have, ascending.

    Raises:
        RequestError: The captures share no layer, differ in width, or have too few pairs, or the seed is invalid.

    Example:
        >>> honest = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24, positions="last")
        >>> formal = capture_from_concept(model, tokenizer, "formality", layers=[16], max_samples=24, positions="last")
        >>> [row["layer"] for row in compare_directions(honest, formal)]
        [16]
    """
    layers = sorted(set(one["layers"]) & set(other["layers"]))
    if not layers:
        raise RequestError(
            f"the captures share no layer: one has {one['layers']}, the other {other['layers']}",
            next_step="capture the same layers",
        )
    seed = require_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    halvings = _halvings(one, generator), _halvings(other, generator)
    sorted_pairs = _sorted_pairs((one, other))
    return [_compare(layer, (one, other), halvings, sorted_pairs, seed) for layer in layers]


@dataclass(frozen=True)
class _Halves:
    """Random splits of a capture's units into two halves.

    Attributes:
        units: Unit index of each pair, `(pairs,)`.
        first: 1 for units in the first half, 0 for the others, `(units, halvings)`.
        others: The same for every other factor: the group index of each pair, and the halves.
    """

    units: Tensor
    first: Tensor
    others: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Halved:
    """Directions of random halves at one layer.

    Attributes:
        mean: Mean difference, `(hidden,)`.
        apart: Sum of the first half minus sum of the second, `(hidden, halvings)`, added up over factors. Differences
            are centered on the mean of all pairs, which removes what the pairs have in common.
        agreement: Mean cosine between the sums of the two halves, clamped at 0.
    """

    mean: Tensor
    apart: Tensor
    agreement: float


def _sums(data: ContrastData, layer: int, halves: _Halves) -> _Halved:
    sums = sum_units(pairs_at(data, layer), [halves.units, *(units for units, _ in halves.others)])
    firsts = [halves.first, *(first for _, first in halves.others)]
    apart = sum(
        (units.differences - units.pairs[:, None] * sums.difference).T @ (2 * first - 1)
        for units, first in zip(sums.units, firsts, strict=True)
    )
    units = sums.units[0]
    cosines = torch.cosine_similarity(
        units.differences.T @ halves.first, units.differences.T @ (1 - halves.first), dim=0
    )
    return _Halved(sums.difference, torch.as_tensor(apart), max(float(torch.nan_to_num(cosines).mean()), 0.0))


def _compare(
    layer: int,
    captures: tuple[ContrastData, ContrastData],
    halvings: tuple[_Halves, _Halves],
    sorted_pairs: tuple[NewPairs, NewPairs],
    seed: int,
) -> ComparedLayer:
    one, other = (_sums(data, layer, halves) for data, halves in zip(captures, halvings, strict=True))
    widths = len(one.mean), len(other.mean)
    if widths[0] != widths[1]:
        raise RequestError(f"the captures have states of different widths: {widths[0]} and {widths[1]}")
    by_chance = torch.nan_to_num(torch.cosine_similarity(one.apart, other.apart, dim=0))  # (halvings,)
    first, second = (torch.nn.functional.normalize(halved.mean, dim=0) for halved in (one, other))
    return ComparedLayer(
        layer=layer,
        cosine=float(torch.cosine_similarity(one.mean, other.mean, dim=0)),
        chance=float(by_chance.abs().quantile(0.95)),
        ceiling=(one.agreement * other.agreement) ** 0.5,
        transfer=sort_new(first, sorted_pairs[0], layer, seed=seed),
        back=sort_new(second, sorted_pairs[1], layer, seed=seed),
        own=(own_transfer(captures[0], layer), own_transfer(captures[1], layer)),
    )


def _halvings(data: ContrastData, generator: Generator) -> _Halves:
    """Split the pairs into random halves without splitting a group.

    The groups are those of the first factor with enough values (persona, template, topic), or else single pairs.
    """
    groupings = group_pairs(data)
    enough = [groups for groups in groupings.values() if int(groups.max()) + 1 >= _FEWEST_UNITS]
    units = enough[0] if enough else number_pairs(data) % MOST_UNITS
    count = int(units.max()) + 1
    if count < _FEWEST_UNITS:
        pairs = data["num_pairs"]
        if count < pairs:
            raise RequestError(
                f"the {pairs} pairs share prompts, so that they count as {count}: too few to compare directions",
                expected=f"at least {_FEWEST_UNITS} pairs without a prompt in common in each capture",
                next_step="use each prompt in one pair only",
            )
        raise RequestError(
            f"{pairs} pairs are too few to compare directions",
            expected=f"at least {_FEWEST_UNITS} pairs in each capture",
            next_step=more_pairs(data.get("concept")),
        )
    others = [groups for groups in groupings.values() if groups is not units]
    return _Halves(units, _first_half(units, generator), [(each, _first_half(each, generator)) for each in others])


def _first_half(units: Tensor, generator: Generator) -> Tensor:
    """Draw random halves: 1 for units in the first half, 0 for the others, `(units, halvings)`."""
    count = int(units.max()) + 1
    order = torch.rand((count, _HALVINGS), generator=generator, dtype=torch.float64).argsort(dim=0)
    return (order < count // 2).double()


def _depths(record: CaptureRecord, name: str) -> list[DepthRow]:
    if record["ranking"] is None:
        raise RequestError(f"{record['name']} has no ranking: {record['unranked']}", next_step=mend_unranked(record))
    rows = sorted(record["ranking"]["layers"], key=lambda row: row["layer"])
    return [
        DepthRow(
            capture=name,
            layer=row["layer"],
            depth=(row["layer"] + 1) / record["num_layers"],
            d_prime=row["d_prime"],
            low=row["low"],
            high=row["high"],
            tied=row["tied"],
        )
        for row in rows
    ]


def _same_pairs(one: CaptureRecord, other: CaptureRecord) -> bool:
    """Whether both captures use the same pairs, as far as their records show.

    The record of a capture saved as shards holds the factors of its first pairs only.
    """
    first, second = one["factors"], other["factors"]
    shorter = min(len(first), len(second))
    alike = bool(first) == bool(second)  # both have factors, or neither
    return alike and one["num_pairs"] == other["num_pairs"] and first[:shorter] == second[:shorter]


def _two_names(one: str, other: str) -> tuple[str, str]:
    """Distinct names for two captures, which may share a name across stores."""
    return (one, other) if one != other else (f"{one} (1)", f"{other} (2)")
