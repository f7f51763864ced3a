"""Two contrasts side by side: the directions of two concepts on one model, or one concept on two models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.errors import RequestError
from engine.records.captures import ContrastData, Provenance, model_differences
from engine.records.files import CaptureRecord
from engine.records.results import ComparedLayer, Comparison, DepthRow
from engine.stats.groups import MOST_UNITS, group_pairs, pairs_at, resampled_units
from engine.stats.held_out import sum_units

if TYPE_CHECKING:
    from torch import Generator, Tensor

_HALVINGS = 1000
_FEWEST_UNITS = 6
_SHOULD_AGREE = ("attention", "chat_template")


def compare_captures(
    one: CaptureRecord, other: CaptureRecord, load: Callable[[CaptureRecord], ContrastData]
) -> Comparison:
    """Compare two captures in the way that makes sense for them.

    On one model: the cosine between their mean differences, layer by layer (`compare_directions`). One concept on two
    models: held-out d' by relative depth, from their rankings.

    Args:
        one: Record of a contrast.
        other: Record of another.
        load: Reads the tensors of a record; called only where directions are compared.

    Returns:
        The comparison, and what makes it less than clean.

    Raises:
        RequestError: They cannot be compared; the message says what differs.

    Example:
        >>> from engine.store.catalog import show_capture
        >>> record = show_capture("activations/smollm2_honesty")
        >>> whole = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=12, positions="last")
        >>> compare_captures(record, record, lambda record: whole)["kind"]
        'directions'
    """
    _require_contrasts(one, other)
    names = _two_names(one["name"], other["name"])
    first, second = _provenance(one), _provenance(other)
    if first["site"] != second["site"] or first["positions"] != second["positions"]:
        raise RequestError(
            f"{one['name']} and {other['name']} were read at different places:"
            f" {first['site']}, positions {first['positions']}, and {second['site']}, positions {second['positions']}",
            expected="the same site and positions",
            next_step="capture one of them again like the other",
        )
    warnings = []
    if first["model"] == second["model"]:
        fields = [(field, str(dict(first)[field]), str(dict(second)[field])) for field in _SHOULD_AGREE]
        differing = [entry for entry in fields if entry[1] != entry[2]] + model_differences(first, second)
        warnings = [f"they differ in {field}: {mine} and {theirs}" for field, mine, theirs in differing]
    if first["model"] == second["model"]:
        return Comparison(
            kind="directions",
            names=names,
            titles=(one["concept"] or one["name"], other["concept"] or other["name"]),
            directions=compare_directions(load(one), load(other)),
            depths=[],
            warnings=warnings,
        )
    if one["concept"] is None or one["concept"] != other["concept"]:
        raise RequestError(
            f"{one['name']} and {other['name']} differ in model ({first['model']} and {second['model']}) and in concept"
            f" ({one['concept'] or 'pairs of your own'} and {other['concept'] or 'pairs of your own'})",
            expected="two concepts on one model, or one concept on two models",
            next_step="capture one of the concepts on the other's model",
        )
    return Comparison(
        kind="depth",
        names=names,
        titles=(first["model"], second["model"]),
        directions=[],
        depths=[*_depths(one, names[0]), *_depths(other, names[1])],
        warnings=[]
        if _same_pairs(one, other)
        else ["they were not made from the same pairs: capture with the same number and seed"],
    )


def compare_directions(one: ContrastData, other: ContrastData, *, seed: int = 0) -> list[ComparedLayer]:
    """Cosine between the mean differences of two contrasts on one model, with what to hold it against.

    Both come from random halves of each capture's groups (personas, if there are enough). Below: one half's pairs minus
    the other half's, a random direction in which these pairs do differ, but not by the concept; random directions in
    the full width, most of which states never use, would make any cosine look large. Above: the cosine between the
    directions of the two halves, geometric mean over the captures.

    Args:
        one: A contrast.
        other: A contrast of the same width.
        seed: Of the halvings.

    Returns:
        Layers that both have, ascending.

    Raises:
        RequestError: They share no layer, differ in width, or have too few pairs.

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
    generator = torch.Generator().manual_seed(seed)
    halvings = _halvings(one, generator), _halvings(other, generator)
    return [_compare(layer, _sums(one, layer, halvings[0]), _sums(other, layer, halvings[1])) for layer in layers]


@dataclass(frozen=True)
class _Halves:
    """Random halves of a capture: units that are one half and those that are the other.

    Attributes:
        units: Number of the unit of each pair, `(pairs,)`.
        first: 1 for the units of one half, 0 for the others, `(units, halvings)`.
    """

    units: Tensor
    first: Tensor


@dataclass(frozen=True)
class _Halved:
    """Summed differences of random halves at one layer.

    Attributes:
        mean: Mean difference, `(hidden,)`.
        apart: One half's sum minus the other's, each pair taken from the mean of all: what they have in common is not
            in it; `(hidden, halvings)`.
        agreement: Mean cosine between the sums of the two halves; not below 0.
    """

    mean: Tensor
    apart: Tensor
    agreement: float


def _sums(data: ContrastData, layer: int, halves: _Halves) -> _Halved:
    sums = sum_units(pairs_at(data, layer), [halves.units])
    (units,) = sums.units
    centred = units.differences - units.pairs[:, None] * sums.difference
    cosines = torch.cosine_similarity(
        units.differences.T @ halves.first, units.differences.T @ (1 - halves.first), dim=0
    )
    return _Halved(
        sums.difference, centred.T @ (2 * halves.first - 1), max(float(torch.nan_to_num(cosines).mean()), 0.0)
    )


def _compare(layer: int, one: _Halved, other: _Halved) -> ComparedLayer:
    widths = len(one.mean), len(other.mean)
    if widths[0] != widths[1]:
        raise RequestError(f"the captures have states of different widths: {widths[0]} and {widths[1]}")
    by_chance = torch.nan_to_num(torch.cosine_similarity(one.apart, other.apart, dim=0))  # (halvings,)
    return ComparedLayer(
        layer=layer,
        cosine=float(torch.cosine_similarity(one.mean, other.mean, dim=0)),
        chance=float(by_chance.abs().quantile(0.95)),
        ceiling=(one.agreement * other.agreement) ** 0.5,
    )


def _halvings(data: ContrastData, generator: Generator) -> _Halves:
    """Random halves of the pairs; groups stay whole.

    The groups are those of the factor that varies most in kind: personas, or else whatever has enough of them.
    """
    if data["num_pairs"] < _FEWEST_UNITS:
        raise RequestError(
            f"{data['num_pairs']} pairs are too few to compare directions",
            expected=f"at least {_FEWEST_UNITS} pairs in each capture",
            next_step="capture more",
        )
    groupings = group_pairs(data.get("factors"), data["num_pairs"])
    candidates = [resampled_units(factor, groups) for factor, groups in groupings.items()]
    enough = [units for units in candidates if int(units.max()) + 1 >= _FEWEST_UNITS]
    units = enough[0] if enough else torch.arange(data["num_pairs"]) % MOST_UNITS
    count = int(units.max()) + 1
    order = torch.rand((count, _HALVINGS), generator=generator, dtype=torch.float64).argsort(dim=0)
    return _Halves(units, (order < count // 2).double())


def _depths(record: CaptureRecord, name: str) -> list[DepthRow]:
    if record["ranking"] is None:
        raise RequestError(
            f"{record['name']} has no ranking: {record['unranked']}", next_step="capture it again with more pairs"
        )
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
    """Whether both were made from the same pairs, as far as records tell: of a capture in shards it holds the first."""
    first, second = one["factors"], other["factors"]
    shorter = min(len(first), len(second))
    alike = bool(first) == bool(second)  # known of both, or of neither
    return alike and one["num_pairs"] == other["num_pairs"] and first[:shorter] == second[:shorter]


def _two_names(one: str, other: str) -> tuple[str, str]:
    """Names that tell two captures apart, though they lie in two stores under one."""
    return (one, other) if one != other else (f"{one} (1)", f"{other} (2)")


def _require_contrasts(one: CaptureRecord, other: CaptureRecord) -> None:
    for record in (one, other):
        if record["kind"] != "contrast":
            raise RequestError(
                f"{record['name']} is a capture of prompts: it has no direction", expected="two captures of pairs"
            )


def _provenance(record: CaptureRecord) -> Provenance:
    if record["provenance"] is None:
        raise RequestError(
            f"how {record['name']} was made is unknown: it cannot be compared", next_step="capture it again"
        )
    return record["provenance"]
