"""In which order and in which company prompts go through the model."""

from collections.abc import Sequence

DEFAULT_BATCH_SIZE = 16


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group prompts of similar length, so that little is computed on padding.

    Args:
        lengths: Number of tokens of each prompt.
        batch_size: Most prompts in one batch.

    Returns:
        Batches of indices into `lengths`, the longest prompts first, so that memory runs out at once or not at all.

    Example:
        >>> sorted_batches([3, 9, 4, 8], 2)
        [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
