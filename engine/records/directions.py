"""Directions, and what a text shows along them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

from engine.records.captures import Provenance

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["mean_diff", "pca", "logistic"]


class Direction(TypedDict):
    """A unit vector at one layer, positive minus negative.

    Attributes:
        layer: Layer number.
        vector: `(hidden,)`, float32, of length 1; the positive side projects higher.
        negative_mean: Mean projection of the negative prompts' states, in the units of the states.
        positive_mean: Mean projection of the positive prompts' states.
        method: How it was found.
        concept: Name of the concept, None for pairs of the user's own.
        num_pairs: Number of pairs it was found from.
        provenance: How these were captured; None if that is unknown.
    """

    layer: int
    vector: Tensor
    negative_mean: float
    positive_mean: float
    method: Method
    concept: str | None
    num_pairs: int
    provenance: Provenance | None


class DirectionSummary(TypedDict):
    """What the file of saved directions says of one layer's."""

    layer: int
    negative_mean: float
    positive_mean: float


class DirectionsHeader(TypedDict):
    """What a file of directions holds beside the vectors.

    Attributes:
        schema: Version of this layout.
        layers: One entry per direction, ascending.
        leading: Layer that ranked first in the capture; None if it had no ranking.
        capture: Name of the capture they come from.
        method: How they were found.
        concept: Name of the concept.
        num_pairs: Number of pairs.
        provenance: How these were captured.
    """

    schema: int
    layers: list[DirectionSummary]
    leading: int | None
    capture: str
    method: Method
    concept: str | None
    num_pairs: int
    provenance: Provenance | None


class TokenReading(TypedDict):
    """Every token of a text, read along directions.

    Attributes:
        prompt: The text.
        tokens: Its tokens, as the vocabulary spells them.
        layers: Layers that were read, ascending.
        leading: The layer to look at first.
        values: Layer to one value a token: 0 is the mean of the negative prompts, 1 that of the positive ones.
        concept: Name of the concept.
        method: How the directions were found.
        warnings: What must be known before believing it.
    """

    prompt: str
    tokens: list[str]
    layers: list[int]
    leading: int
    values: dict[int, list[float]]
    concept: str | None
    method: Method
    warnings: list[str]
