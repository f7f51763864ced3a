"""A packed row holds each shared token once, and lets each see its own prompt only."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from engine.models.shortcuts import continued, pack_prompts

CPU = torch.device("cpu")


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=10), st.integers(0, 3))
@settings(deadline=None)
def test_a_token_sees_itself_and_those_before_it_in_its_prompt(rows: list[list[int]], start: int) -> None:
    packed = pack_prompts(rows, CPU, torch.float32, start=start)
    ids, positions, mask = packed.batch.input_ids[0], packed.batch.position_ids[0], packed.batch.attention_mask[0, 0]
    assert len(ids) == len({tuple(row[: stop + 1]) for row in rows for stop in range(len(row))})
    for row, places in zip(rows, packed.places, strict=True):
        assert ids[places].tolist() == row
        assert positions[places].tolist() == list(range(start, start + len(row)))
        for count, place in enumerate(places, 1):
            seen = (mask[place] == 0).nonzero().flatten().tolist()
            assert seen == [*range(start), *sorted(start + other for other in places[:count])]


def test_a_continued_cache_leaves_the_first_as_it_is() -> None:
    first = continued(None)
    states = torch.ones(1, 2, 3, 4)
    first.update(states, states, 0)
    for _ in range(2):
        second = continued(first)
        assert isinstance(second, DynamicCache)
        second.update(states, states, 0)
        assert (first.get_seq_length(), second.get_seq_length()) == (3, 6)
