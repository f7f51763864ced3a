"""Group prompts into batches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_FEWEST_TOKENS = 2  # per prompt; bounds batches of prompts that share nearly all their tokens


@dataclass(frozen=True)
class Limits:
    """Maximum size of a batch.

    Attributes:
        tokens: Token budget of a forward pass, padding included; a longer prompt gets its own batch.
        prompts: Maximum number of prompts; None for half the token budget.
    """

    tokens: int
    prompts: int | None = None

    @property
    def most_prompts(self) -> int:
        """Maximum number of prompts, at least one."""
        return self.prompts or max(1, self.tokens // _FEWEST_TOKENS)

    def allow(self, prompts: int, tokens: int) -> bool:
        """Whether a batch may have this many prompts and this many tokens in total."""
        return prompts == 1 or (tokens <= self.tokens and prompts <= self.most_prompts)


@dataclass(frozen=True)
class Batch:
    """Prompts of one forward pass.

    Attributes:
        prompts: Their indices in the list of all prompts.
        start: Number of leading tokens already run; the same for all prompts.
        packed: Whether the prompts are packed into one row with each shared prefix once, in lexicographic order, or
            padded to one row each.
        tokens: Number of tokens of a packed row, if it is known.
    """

    prompts: list[int]
    start: int = 0
    packed: bool = False
    tokens: int | None = field(default=None, compare=False)

    def halves(self) -> list[Batch]:
        """Split the batch in two."""
        middle = len(self.prompts) // 2
        return [Batch(part, self.start, self.packed) for part in (self.prompts[:middle], self.prompts[middle:])]


def sorted_batches(lengths: Sequence[int], limits: Limits) -> list[Batch]:
    """Group prompts of similar length into batches with little padding.

    Args:
        lengths: Number of tokens of each prompt.
        limits: Maximum size of a batch.

    Returns:
        Padded batches, longest prompts first, so that memory runs out in the first batch or not at all.

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
