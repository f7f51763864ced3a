"""Plan a very large capture without running it: speed and memory of the planning itself.

Synthetic chat prompts (a shared header, personas, templates, and an end of their own) are planned shard by shard, as
the store does: the prompts of a shard are arranged into batches, and each batch into a tree of tokens. Time to make up
the prompts is not counted. Memory is the peak of Python and NumPy allocations, measured in a second, shorter run,
because measuring slows the first.

Examples:
    .venv/bin/python benchmarks/plan_scale.py                                             # a million prompts on a CPU
    .venv/bin/python benchmarks/plan_scale.py --tokens 4096 --layers 80 --width 8192      # a large model on a GPU
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

from benchmarks.tasks import positive
from engine.capture.batches import Batch, Limits
from engine.capture.prefixes import Plan, Trunk, planned_tokens
from engine.capture.run_settings import Settings
from engine.capture.selection import parse_positions
from engine.models.token_tree import TokenTree
from engine.store.resume import shard_items

if TYPE_CHECKING:
    from engine.models.alterations import Snapshot
    from engine.records.models import ModelConfig

_VOCABULARY = 49_152
_HEADER, _PERSONA, _TEMPLATE = 12, 14, 9  # tokens
_PERSONAS, _TEMPLATES = 50, 20


@dataclass
class Planned:
    """What a plan holds, over all shards.

    Attributes:
        shards: Number of shards.
        passes: Number of forward passes.
        tokens: Number of tokens of all prompts.
        run: Number of tokens that are run.
        seconds: Processor time of planning.
    """

    shards: int = 0
    passes: int = 0
    tokens: int = 0
    run: int = 0
    seconds: float = 0.0


def chat_prompts(count: int, at_once: int, seed: int = 0) -> Iterator[list[list[int]]]:
    """Token ids of synthetic chat prompts, of 53 tokens on average, in shards.

    Args:
        count: Number of prompts.
        at_once: Number of prompts in a shard.
        seed: Seed of the random tokens.
    """
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> list[list[int]]:
        found: list[list[int]] = generator.integers(_VOCABULARY, size=shape).tolist()
        return found

    (header,), personas, templates = draw(1, _HEADER), draw(_PERSONAS, _PERSONA), draw(_TEMPLATES, _TEMPLATE)
    for start in range(0, count, at_once):
        size = min(at_once, count - start)
        choices = generator.integers((_PERSONAS, _TEMPLATES, 21), size=(size, 3)).tolist()
        yield [
            header + personas[persona] + templates[template] + end[: 8 + more]
            for (persona, template, more), end in zip(choices, draw(size, 28), strict=True)
        ]


def plan_shards(shards: Iterator[list[list[int]]], tokens: int) -> Planned:
    """Plan prompts shard by shard, as a capture does, and forget each plan.

    Args:
        shards: Token ids of the prompts of each shard.
        tokens: Token budget of a forward pass.
    """
    settings = Settings(  # the plan depends on the limits and on prefix sharing only
        model=cast("ModelConfig", None),
        snapshot=cast("Snapshot", None),
        site="resid_post",
        layers=[],
        positions=parse_positions("last"),
        use_hooks=True,
        limits=Limits(tokens),
        prefix_reuse="on",
    )
    total = Planned()
    for rows in shards:
        start = time.process_time()
        plan = settings.plan(rows)
        for step in _steps(plan):
            if isinstance(step, Batch) and step.packed:
                TokenTree.of([rows[index][step.start :] for index in step.prompts])
            total.passes += 1
        total.run += planned_tokens(plan, rows)
        total.seconds += time.process_time() - start
        total.shards += 1
        total.tokens += sum(map(len, rows))
    return total


def _steps(plan: Plan) -> Iterator[Trunk | Batch]:
    for step in plan:
        yield step
        if isinstance(step, Trunk):
            yield from _steps(step.branches)


def peak_bytes(count: int, shard: int, tokens: int) -> int:
    """Peak of the memory allocated while prompts are made up and planned."""
    tracemalloc.start()
    try:
        plan_shards(chat_prompts(count, shard), tokens)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=positive, default=1_000_000, help="Number of prompts")
    parser.add_argument("--tokens", type=positive, default=512, help="Token budget of a forward pass")
    parser.add_argument("--layers", type=positive, default=30, help="Number of captured layers, one token each")
    parser.add_argument("--width", type=positive, default=576, help="Width of the model")
    parser.add_argument("--bytes", type=positive, default=4, help="Bytes of a number")
    arguments = parser.parse_args()
    state = arguments.layers * arguments.width * arguments.bytes
    shard = shard_items(state, tokens=arguments.tokens)
    found = plan_shards(chat_prompts(arguments.prompts, shard), arguments.tokens)
    peak = peak_bytes(min(arguments.prompts, 20 * shard), shard, arguments.tokens)
    print(f"{arguments.prompts:,} prompts of {found.tokens / arguments.prompts:.0f} tokens in {found.shards:,} shards")
    print(f"forward passes                {found.passes:>12,}")
    print(f"tokens that are run           {found.run:>12,}  ({found.run / found.tokens:.0%} of {found.tokens:,})")
    print(f"states on disk                {state * arguments.prompts / 1e9:>12,.1f} GB")
    print(f"states of a shard in memory   {state * shard / 1e6:>12,.0f} MB")
    print(f"memory of planning, at most   {peak / 1e6:>12,.1f} MB")
    print(f"prompts planned per second    {arguments.prompts / found.seconds:>12,.0f}")


if __name__ == "__main__":
    main()
