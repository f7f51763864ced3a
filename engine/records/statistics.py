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
    """

    diff_norm: float
    relative_norm: float
    cosine_sim: float


class Separation(TypedDict):
    """How well two sets of projections separate: distance over spread, and share of prompts in the right order."""

    d_prime: float
    auroc: float


class LayerSeparation(TypedDict):
    """Held-out separation at one layer.

    Attributes:
        worst: What was left out where `d_prime` is lowest: the score of the layer.
        by_factor: `persona`, `template` and `topic` as far as they vary, or `pairs` for pairs without factors.
    """

    worst: str
    by_factor: dict[str, Separation]


class LayerRow(LayerStats):
    """What the JSON holds of one layer; what only a contrast has is None for prompts.

    `separation` is None also for a contrast with too few pairs to leave any out.
    """

    layer: int
    diff_norm: float | None
    relative_norm: float | None
    cosine_sim: float | None
    separation: LayerSeparation | None
