"""How long it takes to rank the layers of a capture in shards, and how much memory, however many pairs there are.

Makes up the shards of a contrast of the default model's shape (30 layers of width 576, last token, float32; 2.8 GB for
20,000 pairs), 10 personas, 10 templates and 200 topics; then, in a process of its own, describes it as the end of a
capture does: ranking, confounds, sides and statistics.

Usage:
    .venv/bin/python benchmarks/ranking_shards.py                  # 1,000 and 20,000 pairs
    .venv/bin/python benchmarks/ranking_shards.py --pairs 5000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it measures this checkout

from engine.capture.prompts import TokenizedPrompt
from engine.capture.run import StackedStates
from engine.records.captures import Factors
from engine.records.files import PromptList, ShardPlan
from engine.store.names import CapturePaths
from engine.store.plan import PLAN_SCHEMA, encode_plan
from engine.store.shard_run import record_shards
from engine.store.shards import pack_shard, shard_at, write_shard

LAYERS, WIDTH, SHARD_PAIRS, TOKENS = 30, 576, 256, 50


def factors_of(pair: int) -> Factors:
    """Every persona with every template, and topics in turn."""
    return Factors(
        persona=f"persona {pair % 10}", template=f"template {pair // 10 % 10}", topic=f"topic {pair // 100 % 200}"
    )


def prompt_of(pair: int, side: int) -> TokenizedPrompt:
    """A text that names its factors, half of its words those of its side's persona."""
    factors = factors_of(pair)
    words = f"you are {factors['persona']} {'trusted' if side else 'crooked'} {factors['template']} {factors['topic']}"
    ids = [(pair * 7 + place * 13) % 5000 for place in range(TOKENS)]
    return TokenizedPrompt(f"prompt {pair}", words * 4, ids, [f"token{one}" for one in ids])


def make_up(paths: CapturePaths, pairs: int) -> ShardPlan:
    """Shards of noise with a direction planted, stronger with depth."""
    layers = list(range(LAYERS))
    count = PromptList(
        file="made up",
        pairs=True,
        count=2 * pairs,
        tokens=0,
        kept=1,
        kept_in_all=2 * pairs,
        texts="",
        ids="",
        factors="",
    )
    plan = ShardPlan(
        schema=PLAN_SCHEMA,
        prompts=count,
        concept=None,
        shard_prompts=2 * SHARD_PAIRS,
        layers=layers,
        num_layers=LAYERS,
        hidden_size=WIDTH,
        store_dtype="as captured",
        weights="",
        provenance={"positions": "last"},  # type: ignore[typeddict-item]  # all that statistics look at
    )
    paths.shards.mkdir(parents=True)
    paths.plan.write_bytes(encode_plan(plan))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, pairs, SHARD_PAIRS):
        numbers = range(start, min(start + SHARD_PAIRS, pairs))
        prompts = [prompt_of(pair, side) for pair in numbers for side in (1, 0)]
        states = {layer: torch.randn(len(prompts), WIDTH, generator=generator) + 30 for layer in layers}
        for layer, rows in states.items():
            rows[0::2, 0] += layer / LAYERS
        stacked = StackedStates(states, [1] * len(prompts), torch.ones(len(prompts), dtype=torch.bool))
        content = pack_shard(prompts, stacked, [factors_of(pair) for pair in numbers])
        write_shard(shard_at(paths, 2 * start, layers), content)
    return plan


def describe(folder: Path) -> None:
    """Rank what lies in a folder, and print seconds and peak."""
    paths = CapturePaths(folder, "made-up")
    plan = json.loads(paths.plan.read_text())
    begun = time.perf_counter()
    record = record_shards(paths, plan)
    seconds = time.perf_counter() - begun
    best = record["ranking"]["layers"][0]["layer"] if record["ranking"] else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{plan['prompts']['count'] // 2:,} pairs: {seconds:.0f} s, peak {peak:,.0f} MiB, layer {best} leads")


def main() -> None:
    """Measure and print; Linux."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[1000, 20_000])
    parser.add_argument("--folder", type=Path, help="rank what was made up there, in this process")
    asked = parser.parse_args()
    if asked.folder:
        describe(asked.folder)
        return
    for pairs in asked.pairs:
        with tempfile.TemporaryDirectory() as folder:
            make_up(CapturePaths(Path(folder), "made-up"), pairs)
            subprocess.run([sys.executable, __file__, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
