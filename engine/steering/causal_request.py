"""What a causal ranking measures, with every default; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from engine.capture.selection import plain_layers
from engine.errors import RequestError, similar
from engine.inputs import require_flag, require_seed, require_strength, require_whole
from engine.records.files import METHODS, Method

if TYPE_CHECKING:
    from engine.capture.selection import LayerSpec

FEWEST_CONTROLS = 10
"""Fewest random directions. Each counts with both signs, and so does the direction, so that p < 0.05 is possible."""

MOST_CANDIDATES = 12
"""Layers that are tested unless the caller chooses."""

_COUNTS = (
    ("prompts", 8, 10_000),
    ("controls", FEWEST_CONTROLS, 1000),
    ("permutations", 1, 1000),
    ("answer_tokens", 1, 1000),
)  # field, least, most
_MOST_STRENGTH = 100  # times the mean norm of the states


@dataclass(frozen=True)
class CausalRequest:
    """What to measure in a causal ranking.

    Attributes:
        layers: Layers to steer at, see `parse_layers`; None for those tied with the best and their neighbours, at most
            twelve of them.
        strength: Strength of steering, in units of the mean norm of the states.
        method: How directions are extracted.
        prompts: Maximum number of held-out neutral prompts.
        controls: Number of random directions.
        permutations: Number of directions of permuted labels.
        answer_tokens: Maximum number of tokens of what a persona says.
        ablation: Whether to project the direction out too, at the three layers where adding it does most.
        seed: Seed for folds, controls and resamples.

    Raises:
        RequestError: A value is invalid; the message names it.

    Example:
        >>> CausalRequest(layers=[12, 16]).controls
        10
    """

    layers: LayerSpec = None
    strength: float = 0.1
    method: Method = "mean_diff"
    prompts: int = 40
    controls: int = FEWEST_CONTROLS
    permutations: int = 2
    answer_tokens: int = 12
    ablation: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate every value."""
        settle = object.__setattr__  # how a frozen dataclass sets its own fields
        settle(self, "layers", plain_layers(self.layers))
        settle(self, "strength", require_strength(self.strength))
        if not 0 < self.strength <= _MOST_STRENGTH:
            raise RequestError(
                f"the strength cannot be {self.strength:g}", expected=f"above 0, at most {_MOST_STRENGTH}, such as 0.1"
            )
        if self.method not in METHODS:
            raise RequestError(
                f"there is no method {self.method!r}",
                expected=f"one of {', '.join(METHODS)}",
                next_step=similar(str(self.method), METHODS),
            )
        settle(self, "method", cast("Method", str(self.method)))
        for name, least, most in _COUNTS:
            said = name.replace("_", " ")
            number = require_whole(getattr(self, name), f"the number of {said}", least)
            if number > most:
                raise RequestError(f"the number of {said} cannot be {number}", expected=f"at most {most}")
            settle(self, name, number)
        settle(self, "ablation", require_flag(self.ablation, "ablation"))
        settle(self, "seed", require_seed(self.seed))
