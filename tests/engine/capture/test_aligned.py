"""Rows of different lengths in one tensor: what each holds is at its end, zeros are in front."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.capture.aligned import align_rows, aligned_mask


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_every_row_ends_with_its_values_and_begins_with_zeros(lengths: list[int]) -> None:
    rows = [torch.rand(length, 3) + 1 for length in lengths]
    aligned, mask = align_rows(torch.cat(rows), lengths), aligned_mask(lengths)
    assert aligned.shape == (len(lengths), max(lengths), 3)
    for row, out, real in zip(rows, aligned, mask, strict=True):
        assert torch.equal(out[-len(row) :], row)
        assert not out[: -len(row)].any()
        assert real.tolist() == [False] * (max(lengths) - len(row)) + [True] * len(row)


def test_rows_of_one_length_are_not_copied() -> None:
    values = torch.rand(6, 3)
    assert align_rows(values, [2, 2, 2]).data_ptr() == values.data_ptr()
