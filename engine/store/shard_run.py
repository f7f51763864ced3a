"""Run the missing shards of a plan, writing each while the next one is run."""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from engine.capture.dialogues import response_progress
from engine.capture.prepare import HeldPrompts, PreparedCapture
from engine.capture.request import AS_CAPTURED
from engine.capture.run import StackedStates, capture_stacked, run_batches, stack_states
from engine.capture.run_settings import Settings
from engine.records.captures import ContrastData
from engine.records.files import CaptureRecord, DataFile, NumberedPair, ShardPlan
from engine.records.results import ClassSummary, LayerRow
from engine.runtime import ALONE, Processes, Progress, Steps, ignore_progress
from engine.stats.summary import StateSums, add_differences
from engine.store.names import CapturePaths, shard_files
from engine.store.plan import shard_starts
from engine.store.record import NO_FINDINGS, SCHEMA, add_responses, find_in
from engine.store.shards import Shard, mapped_contrast, pack_shard, shard_at, write_shard
from engine.store.shares import hold_share, read_shares

if TYPE_CHECKING:
    from engine.capture.prompts import TokenizedPrompt


_DTYPES = {AS_CAPTURED: None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def state_dtype(store_dtype: str) -> torch.dtype | None:
    """The dtype to convert states to for storage; None to keep the captured dtype."""
    return _DTYPES[store_dtype]


class _Part(NamedTuple):
    """The prompts of one shard.

    Attributes:
        start: Number of the first prompt.
        prompts: Gets the tokenized prompts again.
        held: The tokenized prompts; None if this process does not run the shard.
    """

    start: int
    prompts: Callable[[], HeldPrompts]
    held: HeldPrompts | None = None


@dataclass(frozen=True)
class ShardRun:
    """One run of a shard plan; holds the states of at most two shards in memory.

    Attributes:
        prepared: The prepared capture.
        settings: Its settings, with the token budget from the plan.
        plan: What the shards will hold.
        paths: Where to save them.
        progress: Called with the number of finished prompts and their total.
        steps: Called with the number of finished responses, if the model responds first.
        processes: The processes that share the work.
    """

    prepared: PreparedCapture
    settings: Settings
    plan: ShardPlan
    paths: CapturePaths
    progress: Progress
    steps: Steps = ignore_progress
    processes: Processes = ALONE

    def run_missing(self) -> None:
        """Run this process's missing shards; write each while the next one is run.

        One thread reads and tokenizes the prompts of the next shard, another one packs and writes the last.

        Every process runs as many whole shards as every other one. Shards that remain are shared batch by batch, so
        that no process waits long for another; those with responses to write are not. The files do not depend on the
        number of processes.

        Raises:
            CaptureError: States are not finite or all zero, or another process exited.
            RequestError: The prompts changed during the capture.
            StoreError: The disk is full; saved shards are kept.
        """
        total, processes = self.plan["prompts"]["count"], self.processes
        missing = [start for start in shard_starts(self.plan) if not self._shard(start).path.exists()]
        processes.wait()  # before any of them saves a shard, which would no longer be missing
        # Responses to prompts depend on no other prompts, but writing them once in each process would share no work.
        alone = self.prepared.request.respond is not None
        whole = len(missing) - (0 if alone else len(missing) % processes.count)
        own, shared = {*missing[processes.rank : whole : processes.count]}, {*missing[whole:]}
        remaining: dict[int, Callable[[], HeldPrompts]] = {}
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as reader, ExitStack() as shares:
            for part in self._read_parts({*own, *shared}, reader):
                start = part.start
                self.progress(start, total)
                if part.held is None:
                    continue
                if start in shared:
                    remaining[start] = part.prompts
                    shares.enter_context(self._run_share(part.held.prompts, start))
                    continue
                responding = response_progress(self.progress, self.steps, total, start)
                held = self.prepared.with_responses(part.held, self.settings, start, responding)
                states = self._capture(held.prompts, start)
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, start, held, states)
                del part, held, states  # only the writer needs them
            if writing is not None:
                writing.result()
            self._join_shares(remaining)
        self.progress(total, total)

    def _run_share(self, prompts: list[TokenizedPrompt], start: int) -> AbstractContextManager[Path]:
        batches = run_batches(
            self.prepared.model, prompts, self.settings, self._progress(start), processes=self.processes
        )
        return hold_share(self._shard(start), batches, self.processes)

    def _join_shares(self, shards: dict[int, Callable[[], HeldPrompts]]) -> None:
        """Write the shared shards, each in one process, after all have run their shares."""
        self.processes.wait()
        for number, (start, part) in enumerate(shards.items()):
            if self.processes.owns(number):
                held, shard = part(), self._shard(start)
                shares = read_shares(shard, self.processes)
                states = stack_states(shares, held.prompts, self.settings, state_dtype(self.plan["store_dtype"]))
                self._write(start, held, states)
        self.processes.wait()  # before the shares are deleted

    def _write(self, start: int, held: HeldPrompts, states: StackedStates) -> None:
        write_shard(self._shard(start), pack_shard(held.prompts, states, held.factors))

    def _shard(self, start: int) -> Shard:
        return shard_at(self.paths, start, self.settings.layers)

    def _read_parts(self, wanted: Collection[int], reader: ThreadPoolExecutor) -> Iterator[_Part]:
        """Yield the prompts of each shard; the next ones are read and tokenized in the background.

        They are not if the model responds first, because a tokenizer serves one thread at a time, nor if they are in
        memory.

        Args:
            wanted: First prompts of the shards that this process runs; others are not tokenized.
            reader: The background thread.
        """
        read = partial(self._read_part, self._parts(), wanted)
        if self.prepared.held is not None or self.prepared.request.respond is not None:
            yield from iter(read, None)
            return
        following = reader.submit(read)
        while (part := following.result()) is not None:
            following = reader.submit(read)
            yield part
            del part

    def _read_part(self, parts: Iterator[_Part], wanted: Collection[int]) -> _Part | None:
        part = next(parts, None)
        return part._replace(held=part.prompts()) if part is not None and part.start in wanted else part

    def _parts(self) -> Iterator[_Part]:
        size, prepared = self.plan["shard_prompts"], self.prepared
        source, held = prepared.source, prepared.held
        items = source.items() if held is None else iter(())
        for start in range(0, self.plan["prompts"]["count"], size):
            part = [*islice(items, size // source.sides)]
            source.require_unchanged(prepared.stamp)
            again = partial(prepared.tokenized, part, start) if held is None else partial(held.part, start, size)
            yield _Part(start, again)

    def _capture(self, prompts: list[TokenizedPrompt], start: int) -> StackedStates:
        dtype = state_dtype(self.plan["store_dtype"])
        return capture_stacked(self.prepared.model, prompts, self.settings, self._progress(start), dtype=dtype)

    def _progress(self, start: int) -> Progress:
        """Progress of the shard that starts at a prompt, as progress of the capture."""
        return lambda done, _of_shard: self.progress(start + done, self.plan["prompts"]["count"])


log = logging.getLogger(__name__)

_SHOWN = 20  # prompts or pairs in the record, to keep it small


def record_shards(paths: CapturePaths, plan: ShardPlan, steps: Steps | None = None) -> CaptureRecord:
    """Make the JSON record of a capture whose shards are all saved.

    Args:
        paths: Files of the capture.
        plan: Its plan.
        steps: Called with each analysis step of a contrast; an exception it raises stops the work.
    """
    shards = [shard_at(paths, start, plan["layers"]) for start in shard_starts(plan)]
    pairs = plan["prompts"]["pairs"]
    answered = "responses" in plan["provenance"]
    data = mapped_contrast(shards, plan["num_layers"], plan["concept"], responses=answered) if pairs else None
    if data is not None:
        data["provenance"] = plan["provenance"]
        log.info("ranking the layers of %s pairs", f"{data['num_pairs']:,}")
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
    if answered:
        said = list(islice((response for shard in shards for response in shard.responses or ()), len(shown)))
        add_responses(record, said[0::2] if pairs else said, said[1::2] if pairs else [])
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
    """Statistics of each layer, from the sums in the shards, added in prompt order."""
    totals = {layer: StateSums() for layer in layers}
    for shard in shards:
        for layer, part in shard.sums.items():
            totals[layer].merge(part.count, part.tokens, part.total, part.squares, part.norms)
    return add_differences({layer: sums.summary() for layer, sums in totals.items()}, data)


def _wrong_pairs(data: ContrastData, sides: list[ClassSummary]) -> list[NumberedPair]:
    """The misordered pairs of all layers that are not among the first `_SHOWN` pairs."""
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
