"""A plan runs every token of every prompt in order, and almost every shared prefix once."""

from itertools import combinations, pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.capture.batches import Batch, Limits
from engine.capture.prefixes import Plan, Trunk, batch_tokens, planned_tokens, share_of, shared_batches
from engine.models.token_tree import distinct_tokens

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=30)


def walk(plan: Plan, rows: list[list[int]], start: int = 0) -> list[int]:
    """Prompts in the order they finish; checks every step against the trunk that it continues."""
    ended: list[int] = []
    for step in plan:
        assert step.start == start
        if isinstance(step, Trunk):
            beginnings = {tuple(rows[index][: step.stop]) for index in step.prompts}
            assert len(beginnings) == 1
            assert step.start < step.stop < min(len(rows[index]) for index in step.prompts)
            below = walk(step.branches, rows, step.stop)
            assert sorted(below) == sorted(step.prompts)
            ended += below
        else:
            assert len({tuple(rows[index][:start]) for index in step.prompts}) == 1
            assert step.tokens == distinct_tokens([rows[index] for index in step.prompts]) - start
            ended += step.prompts
    return ended


def batches_of(plan: Plan) -> list[Batch]:
    found = [batches_of(step.branches) if isinstance(step, Trunk) else [step] for step in plan]
    return [batch for group in found for batch in group]


@given(ROWS, st.integers(1, 40), st.one_of(st.none(), st.integers(1, 5)))
@settings(deadline=None)
def test_every_prompt_finishes_once_and_passes_stay_within_the_limits(
    rows: list[list[int]], tokens: int, prompts: int | None
) -> None:
    plan = shared_batches(rows, Limits(tokens, prompts))
    assert sorted(walk(plan, rows)) == list(range(len(rows)))
    for batch in batches_of(plan):
        assert len(batch.prompts) == 1 or batch_tokens(batch, rows) <= tokens
        assert prompts is None or len(batch.prompts) <= prompts


@given(ROWS, st.integers(1, 40), st.one_of(st.none(), st.integers(1, 5)))
@example([[0], [1], [0, 0], [0, 0, 0, 0]], 3, None)  # two prompts that share a token leave room for a third
@settings(deadline=None)
def test_no_two_batches_could_be_merged(rows: list[list[int]], tokens: int, prompts: int | None) -> None:
    limits = Limits(tokens, prompts)

    def check(plan: Plan) -> None:
        batches = [step for step in plan if isinstance(step, Batch)]
        for one, other in combinations(batches, 2):
            together = batch_tokens(one, rows) + batch_tokens(other, rows)
            assert not limits.allow(len(one.prompts) + len(other.prompts), together)
        for step in plan:
            if isinstance(step, Trunk):
                check(step.branches)

    check(shared_batches(rows, limits))


@given(ROWS)
@settings(deadline=None)
def test_without_limits_each_distinct_prefix_is_run_once(rows: list[list[int]]) -> None:
    plan = shared_batches(rows, Limits(10_000))
    distinct = {tuple(row[: stop + 1]) for row in rows for stop in range(len(row))}
    assert planned_tokens(plan, rows) == len(distinct)


@given(ROWS, st.integers(1, 40), st.integers(1, 5))
@settings(deadline=None)
def test_processes_share_a_plan_evenly_in_whole_batches(rows: list[list[int]], tokens: int, count: int) -> None:
    plan = shared_batches(rows, Limits(tokens))
    shares = [share_of(plan, rows, rank, count) for rank in range(count)]
    assert [batch for share in shares for batch in batches_of(share)] == batches_of(plan)
    sizes = [batch_tokens(batch, rows) for batch in batches_of(plan)]
    for share in shares:
        own = sum(batch_tokens(batch, rows) for batch in batches_of(share))
        assert abs(own - sum(sizes) / count) <= max(sizes)


def test_a_share_keeps_the_trunks_of_its_batches() -> None:
    rows = [[*range(150), 1000 + i, *range(30)] for i in range(100)]
    (trunk,) = shared_batches(rows, Limits(310))
    assert isinstance(trunk, Trunk)
    for rank in range(4):
        (own,) = share_of([trunk], rows, rank, 4)
        assert isinstance(own, Trunk)
        assert (own.prompts, own.start, own.stop) == (trunk.prompts, trunk.start, trunk.stop)
        assert 2 <= len(own.branches) <= 3


def test_a_long_shared_prefix_is_run_once_for_any_number_of_batches() -> None:
    rows = [[*range(150), 1000 + i, *range(30)] for i in range(100)]
    plan = shared_batches(rows, Limits(310))
    assert planned_tokens(plan, rows) == 150 + 100 * 31
    assert len(batches_of(plan)) == 10


def test_nested_shared_prefixes() -> None:
    """Two personas under one system prompt, each too large for one batch."""
    rows = [[*range(200), 500 + side, *range(100), 600 + i, 7, 8, 9] for side in range(2) for i in range(60)]
    plan = shared_batches(rows, Limits(100))
    assert planned_tokens(plan, rows) == 200 + 2 * 101 + 120 * 4
    assert sorted(walk(plan, rows)) == list(range(120))


def test_a_text_and_all_its_prefixes() -> None:
    rows = [list(range(1, length)) for length in range(2, 3000)]
    plan = shared_batches(rows, Limits(500))
    assert sorted(walk(plan, rows)) == list(range(len(rows)))


def test_prompts_without_a_shared_prefix_are_batched_up_to_the_limit() -> None:
    rows = [[i] * 10 for i in range(10)]
    sizes = [len(batch.prompts) for batch in batches_of(shared_batches(rows, Limits(45)))]
    assert sum(sizes) == 10
    assert all(one + other > 4 for one, other in pairwise(sizes))
