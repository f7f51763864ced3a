"""Rows of different lengths as one tensor whose rows end together, so that `[:, -1]` is the last of each.

Knows tensors. Does not know what a row is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def align_rows(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Lay out rows that lie one after the other.

    Args:
        values: The values of all rows, `(values of all, ...)`.
        lengths: How many each row has; at least one row.

    Returns:
        `(rows, longest, ...)`, zeros in front of the shorter ones; where all are of one length the same memory.

    Example:
        >>> align_rows(torch.tensor([1, 2, 3]), [1, 2]).tolist()
        [[0, 1], [2, 3]]
    """
    mask = aligned_mask(lengths)
    if len(values) == mask.numel():
        return values.view(*mask.shape, *values.shape[1:])
    aligned = values.new_zeros(*mask.shape, *values.shape[1:])
    aligned[mask] = values
    return aligned


def aligned_mask(lengths: Sequence[int]) -> Tensor:
    """Where `align_rows` puts values, `(rows, longest)`, booleans.

    Example:
        >>> aligned_mask([1, 2]).int().tolist()
        [[0, 1], [1, 1]]
    """
    longest = max(lengths)
    return torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
