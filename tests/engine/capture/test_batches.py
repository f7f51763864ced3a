"""Batches hold every prompt once, the longest first."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.capture.batches import sorted_batches


@given(st.lists(st.integers(1, 50)), st.integers(1, 8))
@settings(deadline=None)
def test_every_prompt_is_in_one_batch_and_none_waits_behind_a_shorter_one(lengths: list[int], batch_size: int) -> None:
    batches = sorted_batches(lengths, batch_size)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_prompts_of_one_length_keep_their_order() -> None:
    assert sorted_batches([5, 5, 9, 5], 2) == [[2, 0], [1, 3]]
