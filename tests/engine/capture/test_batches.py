"""Batches hold every prompt once, longest first, within the limits."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.capture.batches import Limits, sorted_batches


@given(st.lists(st.integers(1, 50)), st.integers(1, 200), st.one_of(st.none(), st.integers(1, 8)))
@settings(deadline=None)
def test_every_prompt_is_in_one_batch_longest_first(lengths: list[int], tokens: int, prompts: int | None) -> None:
    batches = [batch.prompts for batch in sorted_batches(lengths, Limits(tokens, prompts))]
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    for batch, after in zip(batches, [*batches, None][1:], strict=True):
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= tokens
        assert prompts is None or len(batch) <= prompts
        full = (len(batch) + 1) * lengths[batch[0]] > tokens or len(batch) == (prompts or tokens // 2)
        assert full or after is None


def test_prompts_of_equal_length_keep_their_order() -> None:
    assert [batch.prompts for batch in sorted_batches([5, 5, 9, 5], Limits(1000, 2))] == [[2, 0], [1, 3]]
