"""A token tree holds each distinct prefix once, in depth-first order."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.models.token_tree import TokenRows, TokenTree, distinct_tokens

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


@given(ROWS)
@example([[1, 2, 3], [1], [4], [1, 2, 5]])  # not depth-first as given
@settings(deadline=None)
def test_each_distinct_prefix_has_a_token_that_its_continuations_follow(rows: list[list[int]]) -> None:
    tree = TokenTree.of(rows)
    prefixes = {tuple(row[: stop + 1]) for row in rows for stop in range(len(row))}
    found: dict[int, tuple[int, ...]] = {}
    for row, places in zip(rows, tree.places, strict=True):
        assert tree.ids[places].tolist() == row
        assert tree.depths[places].tolist() == list(range(len(row)))
        found |= {place: tuple(row[: stop + 1]) for stop, place in enumerate(places.tolist())}
    assert sorted(found) == list(range(len(tree.ids)))
    assert set(found.values()) == prefixes
    assert len(prefixes) == len(found) == distinct_tokens(rows)
    for key, prefix in found.items():
        seen_by = {query for query, whole in found.items() if whole[: len(prefix)] == prefix}
        assert seen_by == set(range(key, tree.ends[key]))


def test_prompts_that_are_depth_first_keep_their_order() -> None:
    tree = TokenTree.of([[7, 9], [7, 8], [3]])
    assert tree.ids.tolist() == [7, 9, 8, 3]


@given(ROWS)
@settings(deadline=None)
def test_rows_are_sorted_like_lists_and_compared_with_the_one_before(rows: list[list[int]]) -> None:
    rows = [[token * 300_000 for token in row] for row in rows]
    prompts = TokenRows.of(rows)
    order = prompts.sorted()
    assert order.tolist() == sorted(range(len(rows)), key=rows.__getitem__)
    shared = prompts.shared(order).tolist()
    assert shared[0] == 0
    for place in range(1, len(rows)):
        one, other = rows[order[place - 1]], rows[order[place]]
        assert one[: shared[place]] == other[: shared[place]]
        assert one[shared[place] : shared[place] + 1] != other[shared[place] : shared[place] + 1] or one == other
