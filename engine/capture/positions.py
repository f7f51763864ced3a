"""Which tokens of a prompt are kept, and whether each or their mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

PositionSpec = str | int | tuple[int, int]

DEFAULT_POSITIONS = "last"
"""What is kept of contrasts, and of lists and files of prompts, unless told: all tokens of many prompts are large."""
SINGLE_PROMPT_POSITIONS = "all"
"""What is kept of one prompt unless told."""

_SPAN = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?")


@dataclass(frozen=True)
class Positions:
    """A choice of tokens, the same for every prompt: a span of the prompt, kept whole or averaged.

    Attributes:
        start: First token of the span; negative counts from the end.
        stop: Token after the last; None for the end of the prompt.
        mean: Whether the states of the span are averaged into one.
        text: How the user wrote it; saved with a capture.
    """

    start: int
    stop: int | None
    mean: bool
    text: str

    def span(self, length: int, prompt: str = "a prompt") -> tuple[int, int]:
        """First token and the one after the last, for a prompt of `length` tokens, called `prompt` in an error.

        Raises:
            RequestError: The prompt has no such tokens.
        """
        start = self.start + length if self.start < 0 else self.start
        stop = length if self.stop is None else self.stop + length if self.stop < 0 else self.stop
        if not 0 <= start < stop <= length:
            raise RequestError(
                f"{prompt} has {length} tokens and so no positions {self.text!r}",
                expected=f"tokens 0 to {length - 1}, or -{length} to -1 counted from the end",
            )
        return start, stop

    def kept(self, length: int, prompt: str = "a prompt") -> int:
        """How many states a layer keeps of a prompt of `length` tokens.

        Raises:
            RequestError: See `span`.
        """
        start, stop = self.span(length, prompt)
        return 1 if self.mean else stop - start

    def finish(self, layers: dict[int, Tensor], lengths: Sequence[int]) -> dict[int, Tensor]:
        """Make of the states of spans what is kept.

        Args:
            layers: Layer to states of the spans of some prompts, one after the other, `(tokens of all, hidden)`.
            lengths: Number of tokens of each.

        Returns:
            They themselves, or the mean of each span, `(prompts, hidden)` in float32, summed in float64.
        """
        if not self.mean:
            return layers
        import torch

        counts = torch.tensor(lengths)
        owners = torch.arange(len(lengths)).repeat_interleave(counts)

        def means(states: Tensor) -> Tensor:
            sums = torch.zeros(len(lengths), states.shape[-1], dtype=torch.float64)
            return (sums.index_add_(0, owners, states.double()) / counts[:, None]).float()

        return {layer: means(states) for layer, states in layers.items()}


def parse_positions(positions: PositionSpec) -> Positions:
    """Turn what a user writes into positions.

    Args:
        positions: "all"; "last"; an index such as 3 or "-2"; a span such as "2:10", "-5:" or (2, 10), end not included;
            "mean" for the mean of all tokens but the first, whose state is hundreds of times larger than the others in
            many models; "mean:2:10" for the mean of a span ("mean:0:" for that of all tokens).

    Raises:
        RequestError: The text cannot be read.

    Example:
        >>> parse_positions("last").span(7)
        (6, 7)
    """
    if isinstance(positions, tuple):
        positions = f"{positions[0]}:{positions[1]}"
    text = str(positions).strip()
    named = {"all": (0, None, False), "last": (-1, None, False), "mean": (1, None, True)}
    if text in named:
        return Positions(*named[text], text)
    body = text.removeprefix("mean:")
    if match := _SPAN.fullmatch(body):
        return Positions(int(match[1] or 0), int(match[2]) if match[2] else None, body != text, text)
    if re.fullmatch(r"-?\d{1,9}", text):
        index = int(text)
        return Positions(index, index + 1 if index != -1 else None, False, text)
    raise RequestError(
        f"the positions {text!r} cannot be read",
        expected="all, last, mean, an index such as -2, a span such as 2:10, or mean:2:10",
    )
