"""Measure the time and memory of ranking a capture saved as shards.

The benchmark writes synthetic shards with the shape of the default model (30 layers of width 576, last token, float32;
2.8 GB for 20,000 pairs), 10 personas, 10 templates and 200 topics. A separate process then computes everything that a
capture computes at its end: ranking, confounds, held-out projections and statistics. Linux only.

Examples:
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # measure this checkout, not an installed version

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
    """Factors of a pair: every persona with every template, topics in turn."""
    return Factors(
        persona=f"persona {pair % 10}", template=f"template {pair // 10 % 10}", topic=f"topic {pair // 100 % 200}"
    )


def prompt_of(pair: int, *, positive: bool) -> TokenizedPrompt:
    """Synthetic prompt that contains its factors and one word that tells its class."""
    factors = factors_of(pair)
    words = (
        f"you are {factors['persona']} {'trusted' if positive else 'crooked'} {factors['template']} {factors['topic']}"
    )
    ids = [(pair * 7 + place * 13) % 5000 for place in range(TOKENS)]
    return TokenizedPrompt(f"prompt {pair}", words * 4, ids, [f"token{one}" for one in ids])


def write_synthetic(paths: CapturePaths, pairs: int) -> ShardPlan:
    """Write synthetic shards: noise plus a planted direction that grows with depth."""
    layers = list(range(LAYERS))
    count = PromptList(
        file="synthetic",
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
        provenance={"positions": "last"},  # type: ignore[typeddict-item]  # the only field that statistics use
    )
    paths.shards.mkdir(parents=True)
    paths.plan.write_bytes(encode_plan(plan))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, pairs, SHARD_PAIRS):
        numbers = range(start, min(start + SHARD_PAIRS, pairs))
        prompts = [prompt_of(pair, positive=positive) for pair in numbers for positive in (True, False)]
        states = {layer: torch.randn(len(prompts), WIDTH, generator=generator) + 30 for layer in layers}
        for layer, rows in states.items():
            rows[0::2, 0] += layer / LAYERS
        stacked = StackedStates(states, [1] * len(prompts), torch.ones(len(prompts), dtype=torch.bool))
        content = pack_shard(prompts, stacked, [factors_of(pair) for pair in numbers])
        write_shard(shard_at(paths, 2 * start, layers), content)
    return plan


def describe(folder: Path) -> None:
    """Rank the capture in a folder and print time and peak memory."""
    paths = CapturePaths(folder, "synthetic")
    plan = json.loads(paths.plan.read_text())
    start = time.perf_counter()
    record = record_shards(paths, plan)
    seconds = time.perf_counter() - start
    best = record["ranking"]["layers"][0]["layer"] if record["ranking"] else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{plan['prompts']['count'] // 2:,} pairs: {seconds:.0f} s, peak {peak:,.0f} MiB, layer {best} leads")


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[1000, 20_000], help="Numbers of pairs")
    parser.add_argument("--folder", type=Path, help="Folder of a synthetic capture to rank in this process")
    arguments = parser.parse_args()
    if arguments.folder:
        describe(arguments.folder)
        return
    for pairs in arguments.pairs:
        with tempfile.TemporaryDirectory() as folder:
            write_synthetic(CapturePaths(Path(folder), "synthetic"), pairs)
            subprocess.run([sys.executable, __file__, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
