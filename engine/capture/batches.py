"""In which company prompts go through the model: batches of similar length, under a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_BATCH_SIZE: int | None = None  # as many prompts as the token budget takes
_FEWEST_TOKENS = 2  # of a prompt: those that share nearly all their tokens would else all come at once


@dataclass(frozen=True)
class Limits:
    """How much goes through the model at once.

    Attributes:
        tokens: Most tokens in one forward pass, padding included; a longer prompt goes alone.
        prompts: Most prompts, None for as many as the tokens allow, which is one for two of them at most.
    """

    tokens: int
    prompts: int | None = None

    def allow(self, prompts: int, tokens: int) -> bool:
        """Whether so many prompts, of so many tokens in all, may go together."""
        return prompts == 1 or (tokens <= self.tokens and prompts <= (self.prompts or self.tokens // _FEWEST_TOKENS))


@dataclass(frozen=True)
class Batch:
    """Prompts of one forward pass.

    Attributes:
        prompts: Their places in the list of all prompts.
        start: How many of their first tokens have been run before; the same in all of them.
        packed: Whether they share one row, each common beginning once, or have a padded row each.
    """

    prompts: list[int]
    start: int = 0
    packed: bool = False

    def halves(self) -> list[Batch]:
        """The same prompts in two passes."""
        middle = len(self.prompts) // 2
        return [Batch(part, self.start, self.packed) for part in (self.prompts[:middle], self.prompts[middle:])]


def sorted_batches(lengths: Sequence[int], limits: Limits) -> list[Batch]:
    """Group prompts of similar length, so that little is computed on padding.

    Args:
        lengths: Number of tokens of each prompt.
        limits: What may go together.

    Returns:
        Batches of padded rows, the longest prompts first, so that memory runs out at once or not at all.

    Example:
        >>> [batch.prompts for batch in sorted_batches([3, 9, 4, 8], Limits(18))]
        [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and limits.allow(len(batches[-1]) + 1, (len(batches[-1]) + 1) * lengths[batches[-1][0]]):
            batches[-1].append(index)
        else:
            batches.append([index])
    return [Batch(batch) for batch in batches]
