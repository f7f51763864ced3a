"""The record of a capture in shards, from what the shards say of themselves: no state is read again."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator
from itertools import islice

from engine.concepts.prompt_file import PromptFile
from engine.records.files import CaptureRecord, DataFile, ShardPlan
from engine.records.statistics import LayerRow
from engine.stats.summary import StateSums
from engine.store.catalog import shard_files
from engine.store.names import CapturePaths
from engine.store.record import SCHEMA
from engine.store.shards import Shard, shard_at

_SHOWN_PROMPTS = 20  # in the record, which must stay small


def record_shards(paths: CapturePaths, plan: ShardPlan, prompts: PromptFile) -> CaptureRecord:
    """Describe a capture of which every shard is there.

    Args:
        paths: Where it lies.
        plan: What it was to hold.
        prompts: Where its prompts came from.
    """
    files = shard_files(paths)
    return CaptureRecord(
        schema=SCHEMA,
        name=paths.name,
        kind="prompt",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data=DataFile(
            name=f"{paths.name}/",
            bytes=sum(path.stat().st_size for path in files),
            sha256=hashlib.sha256(paths.plan.read_bytes()).hexdigest(),
        ),
        concept=None,
        num_pairs=0,
        num_layers=plan["num_layers"],
        hidden_size=plan["hidden_size"],
        captured_layers=plan["layers"],
        prompts=list(islice(prompts.texts(), _SHOWN_PROMPTS)),
        num_prompts=plan["prompts"]["count"],
        negative_prompts=[],
        factors=[],
        statistics=_statistics(paths, plan),
        ranking=None,
        sides=[],
        unranked="",
        confounds=None,
        provenance=plan["provenance"],
    )


def _statistics(paths: CapturePaths, plan: ShardPlan) -> list[LayerRow]:
    """One row a layer from the sums of the shards, added in the order of the prompts."""
    totals = {layer: StateSums() for layer in plan["layers"]}
    for shard in _shards(paths, plan):
        for layer, part in shard.sums.items():
            totals[layer].merge(part.count, part.tokens, part.total, part.squares, part.norms)
    return [
        LayerRow(layer=layer, **sums.summary(), diff_norm=None, relative_norm=None, cosine_sim=None, pair_cosine=None)
        for layer, sums in totals.items()
    ]


def _shards(paths: CapturePaths, plan: ShardPlan) -> Iterator[Shard]:
    for start in range(0, plan["prompts"]["count"], plan["shard_prompts"]):
        yield shard_at(paths, start, plan["layers"])
