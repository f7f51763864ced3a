"""Specificity: is it this concept, or a neighbour?

Two questions to the same held-out pairs. Do the directions of other concepts, captured from other prompts, sort them as
well as their own direction does? And what is left of d' when those directions are projected out of the states?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from engine.capture.selection import captured_layer
from engine.errors import RequestError
from engine.records.captures import ContrastData
from engine.records.results import NeighbourAt, SpecificityLayer, SpecificityReport
from engine.remedies import Remedy
from engine.runtime import Progress, ignore_progress
from engine.stats.contrast import require_contrast
from engine.stats.designs import cannot_hold_out
from engine.stats.groups import PAIRS, Pairs, Sides, group_pairs, pairs_at, resampled_factors
from engine.stats.held_out import HeldOutLayer, hold_out
from engine.stats.separation import RESOLUTION, require_usable, separate
from engine.stats.shared_pairs import NewPairs, describe_shared, new_pairs
from engine.stats.transfer import mean_direction, no_shared_layer, own_transfer, sort_new
from engine.stats.wordings import wordings

if TYPE_CHECKING:
    from torch import Tensor

_DEPENDENT = 1e-6  # singular value below which a direction is a combination of the others


def measure_specificity(
    data: ContrastData,
    neighbours: Mapping[str, ContrastData],
    *,
    layer: int | None = None,
    progress: Progress | None = None,
) -> SpecificityReport:
    """Measure how specific a contrast is, against neighbours captured on the same model.

    - Transfer: the AUROC of each neighbour's mean difference on the pairs of the contrast, and of the contrast's mean
      difference on the pairs of the neighbour, next to the contrast's own held-out AUROC. The 95% intervals resample
      personas, templates and topics with the Bayesian bootstrap and take the directions as given. Pairs that share a
      prompt with those of the direction do not count, see `new_pairs`.
    - What is left: held-out d' (see `compute_separation`) after the mean differences of the neighbours, made
      orthonormal, are projected out of both classes; for each neighbour alone, and for all together.

    Args:
        data: A contrast.
        neighbours: Name to another contrast, with the same site and positions.
        layer: The layer to read first; by default the one with the highest held-out d'.
        progress: Called before each layer and after the last with the number of finished layers and the total.

    Returns:
        The report, for every layer that the contrast and a neighbour have; each layer has the neighbours that have it,
        and a warning names those that lack some.

    Raises:
        RequestError: There are no neighbours, no group of pairs can be held out, no neighbour has the layer or any,
            the captures differ in width, or states are not finite; the message names the capture.

    Example:
        >>> honest, formal = (
        ...     capture_from_concept(model, tokenizer, name, layers=[16], max_samples=24, positions="last")
        ...     for name in ("honesty", "formality")
        ... )
        >>> report = measure_specificity(honest, {"formality": formal})
        >>> report["layer"], report["layers"][0]["neighbours"][0]["name"]
        (16, 'formality')
    """
    require_contrast(data)
    for neighbour in neighbours.values():
        require_contrast(neighbour)
    if not neighbours:
        raise RequestError("there are no neighbours to compare with", expected="at least one other contrast")
    groupings = group_pairs(data)
    if not groupings:
        raise cannot_hold_out(data)
    layer = None if layer is None else captured_layer(layer, data["layers"])
    layers = _measured_layers(data, neighbours, layer)
    sorted_pairs = {name: _sorted_pairs(data, neighbour) for name, neighbour in neighbours.items()}
    report, rows = progress or ignore_progress, []
    for done, number in enumerate(layers):
        report(done, len(layers))
        rows.append(_measure(data, neighbours, sorted_pairs, number, groupings))
    report(len(layers), len(layers))
    return SpecificityReport(
        layer=max(rows, key=lambda row: row["d_prime"])["layer"] if layer is None else layer,
        layers=rows,
        resampled=", ".join(resampled_factors(data)),
        reason="",
        warnings=[*_warnings(neighbours, layers), *_shared(sorted_pairs)],
    )


def _measured_layers(data: ContrastData, neighbours: Mapping[str, ContrastData], layer: int | None) -> list[int]:
    """The layers of the contrast that any neighbour has, ascending; with `layer` among them, if it is given."""
    layers = sorted({*data["layers"]} & {number for other in neighbours.values() for number in other["layers"]})
    if not layers:
        raise no_shared_layer({"the contrast": data, **neighbours})
    if layer is not None and layer not in layers:
        held = "; ".join(f"{name}: {other['layers']}" for name, other in neighbours.items())
        raise RequestError(f"no neighbour has layer {layer} ({held})", expected=f"one of {layers}")
    return layers


def _sorted_pairs(data: ContrastData, neighbour: ContrastData) -> tuple[NewPairs, NewPairs]:
    """The pairs for the neighbour's direction to sort, and those of the neighbour for the contrast's direction."""
    return new_pairs(data, wordings(neighbour)), new_pairs(neighbour, wordings(data))


def _measure(
    data: ContrastData,
    captures: Mapping[str, ContrastData],
    sorted_pairs: Mapping[str, tuple[NewPairs, NewPairs]],
    layer: int,
    groupings: Mapping[str, Tensor],
) -> SpecificityLayer:
    pairs = pairs_at(data, layer)
    held_out = hold_out(pairs, groupings)
    require_usable(layer, held_out.extent)
    own = own_transfer(data, layer, held_out)
    if own is None:
        raise cannot_hold_out(data)
    direction = mean_direction(pairs)
    neighbours = {name: neighbour for name, neighbour in captures.items() if layer in neighbour["layers"]}
    directions = [_direction(name, neighbour, layer) for name, neighbour in neighbours.items()]
    rows = [
        NeighbourAt(
            name=name,
            transfer=sort_new(towards, sorted_pairs[name][0], layer),
            back=sort_new(direction, sorted_pairs[name][1], layer),
            own=own_transfer(neighbour, layer),
            d_prime_left=_left(pairs, [towards], groupings, held_out),
        )
        for (name, neighbour), towards in zip(neighbours.items(), directions, strict=True)
    ]
    return SpecificityLayer(
        layer=layer,
        own=own,
        d_prime=_worst(held_out),
        d_prime_left=_left(pairs, directions, groupings, held_out),
        neighbours=rows,
    )


def _direction(name: str, neighbour: ContrastData, layer: int) -> Tensor:
    """Mean difference of a neighbour; one value that is not finite would make it so."""
    direction = mean_direction(pairs_at(neighbour, layer))
    if not direction.isfinite().all():
        raise RequestError(
            f"layer {layer} of the neighbour {name} has non-finite values", next_step=Remedy.CAPTURE_IN_FLOAT32
        )
    return direction


def _worst(held_out: HeldOutLayer) -> float:
    separation = separate(held_out)
    return separation["by_factor"][separation["worst"]]["d_prime"]


def _left(pairs: Pairs, directions: Sequence[Tensor], groupings: Mapping[str, Tensor], whole: HeldOutLayer) -> float:
    """Held-out d' without some directions; 0 if only rounding errors are left of the differences."""
    left = hold_out(project_out(pairs, directions), groupings)
    return _worst(left) if left.extent.longest > RESOLUTION * whole.extent.size else 0.0


def project_out(pairs: Pairs, directions: Sequence[Tensor]) -> Pairs:
    """Remove directions from the states of both classes.

    Args:
        pairs: Pairs at one layer.
        directions: Vectors of unit length or zeros, `(hidden,)` each.
    """
    left, sizes, _ = torch.linalg.svd(torch.stack([*directions], dim=1), full_matrices=False)
    basis = left[:, sizes > _DEPENDENT]  # (hidden, directions), orthonormal

    def chunks() -> Iterator[Sides]:
        for positive, negative in pairs():
            yield positive - positive @ basis @ basis.T, negative - negative @ basis @ basis.T

    return chunks


def not_measured(reason: str, *, postponed: bool = False) -> SpecificityReport:
    """The report of a contrast whose specificity was not measured.

    Args:
        reason: Why, as a clause.
        postponed: Whether it can be measured later.
    """
    report = SpecificityReport(layer=None, layers=[], resampled="", reason=reason, warnings=[])
    if postponed:
        report["postponed"] = True
    return report


def _shared(sorted_pairs: Mapping[str, tuple[NewPairs, NewPairs]]) -> list[str]:
    there = describe_shared("the contrast", {name: pairs for name, (pairs, _) in sorted_pairs.items()})
    back = [
        said for name, (_, pairs) in sorted_pairs.items() for said in describe_shared(name, {"the contrast": pairs})
    ]
    names = [name for name, (pairs, _) in sorted_pairs.items() if pairs.shared]
    left = [f"d' left without {', '.join(names)} is too low: directions fitted to a pair take away its noise"]
    return [*there, *back, *(left if names else [])]


def _warnings(neighbours: Mapping[str, ContrastData], layers: Sequence[int]) -> list[str]:
    without = [name for name, data in neighbours.items() if PAIRS in resampled_factors(data)]
    missing = {name: [layer for layer in layers if layer not in data["layers"]] for name, data in neighbours.items()}
    return [
        *([f"the pairs of {', '.join(without)} carry no factors: intervals resample pairs"] if without else []),
        *(
            f"{name} lacks layer{'' if len(lacking) == 1 else 's'} {', '.join(map(str, lacking))}"
            " and is not compared there"
            for name, lacking in missing.items()
            if lacking
        ),
    ]
