"""A large capture is planned shard by shard, in memory that does not grow with it."""

from benchmarks.plan_scale import chat_prompts, peak_bytes, plan_shards
from engine.capture.batches import Limits
from engine.capture.prefixes import planned_tokens, shared_batches


def test_the_plan_of_one_shard_is_that_of_its_prompts() -> None:
    (rows,) = chat_prompts(300, 300)
    found = plan_shards(iter([rows]), 512)
    assert (found.shards, found.tokens) == (1, sum(map(len, rows)))
    assert found.run == planned_tokens(shared_batches(rows, Limits(512)), rows)


def test_shards_are_planned_independently() -> None:
    shards = [*chat_prompts(700, 256)]
    assert [len(rows) for rows in shards] == [256, 256, 188]
    alone = [plan_shards(iter([rows]), 512) for rows in shards]
    found = plan_shards(iter(shards), 512)
    assert (found.shards, found.run) == (3, sum(one.run for one in alone))
    assert found.passes == sum(one.passes for one in alone)
    whole = plan_shards(iter([[row for rows in shards for row in rows]]), 512)
    assert whole.run < found.run  # prefixes are shared within a shard only


def test_memory_is_bounded_by_the_shard() -> None:
    few, many = peak_bytes(1024, 128, 512), peak_bytes(6144, 128, 512)
    assert many < 1.3 * few
    assert many < peak_bytes(6144, 6144, 512) / 3
