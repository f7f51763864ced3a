"""The record of a capture in shards, from the shards: of states nothing is held but what one layer takes."""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Iterator
from itertools import islice

from engine.progress import Steps
from engine.records.captures import ContrastData
from engine.records.files import CaptureRecord, DataFile, NumberedPair, ShardPlan
from engine.records.statistics import LayerRow, SideSummary
from engine.stats.summary import StateSums
from engine.stats.table import add_differences
from engine.store.catalog import shard_files
from engine.store.mapped import mapped_contrast
from engine.store.names import CapturePaths
from engine.store.record import NO_FINDINGS, SCHEMA, find_in
from engine.store.shards import Shard, shard_at

log = logging.getLogger(__name__)

_SHOWN = 20  # prompts or pairs in the record, which must stay small


def record_shards(paths: CapturePaths, plan: ShardPlan, steps: Steps | None = None) -> CaptureRecord:
    """Describe a capture of which every shard is there.

    Args:
        paths: Where it lies.
        plan: What it was to hold.
        steps: Told of what is looked for in a contrast; what it raises ends it.
    """
    starts = range(0, plan["prompts"]["count"], plan["shard_prompts"])
    shards = [shard_at(paths, start, plan["layers"]) for start in starts]
    pairs = plan["prompts"]["pairs"]
    data = mapped_contrast(shards, plan["num_layers"], plan["concept"]) if pairs else None
    if data is not None:
        data["provenance"] = plan["provenance"]
        log.info("%s pairs: ranking the layers", f"{data['num_pairs']:,}")
    findings = find_in(data, steps) if data is not None else NO_FINDINGS
    shown = list(islice(_texts(shards), _SHOWN * (2 if pairs else 1)))
    record = CaptureRecord(
        schema=SCHEMA,
        name=paths.name,
        kind="contrast" if pairs else "prompt",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data=_data_file(paths),
        concept=plan["concept"],
        num_pairs=data["num_pairs"] if data is not None else 0,
        num_layers=plan["num_layers"],
        hidden_size=plan["hidden_size"],
        captured_layers=plan["layers"],
        prompts=shown[0::2] if pairs else shown,
        num_prompts=plan["prompts"]["count"],
        negative_prompts=shown[1::2] if pairs else [],
        factors=data.get("factors", [])[:_SHOWN] if data is not None else [],
        statistics=_statistics(shards, plan["layers"], data),
        ranking=findings["ranking"],
        sides=findings["sides"],
        unranked=findings["unranked"],
        confounds=findings["confounds"],
        provenance=plan["provenance"],
    )
    if data is not None:
        record["other_pairs"] = _wrong_pairs(data, findings["sides"])
    return record


def _data_file(paths: CapturePaths) -> DataFile:
    return DataFile(
        name=f"{paths.name}/",
        bytes=sum(path.stat().st_size for path in shard_files(paths)),
        sha256=hashlib.sha256(paths.plan.read_bytes()).hexdigest(),
    )


def _texts(shards: list[Shard]) -> Iterator[str]:
    for shard in shards:
        yield from shard.prompts


def _statistics(shards: list[Shard], layers: list[int], data: ContrastData | None) -> list[LayerRow]:
    """One row a layer, from the sums of the shards, added in the order of the prompts."""
    totals = {layer: StateSums() for layer in layers}
    for shard in shards:
        for layer, part in shard.sums.items():
            totals[layer].merge(part.count, part.tokens, part.total, part.squares, part.norms)
    return add_differences({layer: sums.summary() for layer, sums in totals.items()}, data)


def _wrong_pairs(data: ContrastData, sides: list[SideSummary]) -> list[NumberedPair]:
    """The pairs that some layer names, as far as they are not shown anyway."""
    named = sorted({wrong["pair"] for summary in sides for wrong in summary["wrong"] if wrong["pair"] >= _SHOWN})
    factors = data.get("factors")
    return [
        NumberedPair(
            number=number,
            positive=str(data["positive"][number]["prompt"]),
            negative=str(data["negative"][number]["prompt"]),
            factors=factors[number] if factors else None,
        )
        for number in named
    ]
