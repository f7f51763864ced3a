"""Run the shards of a plan that are missing, each by itself; the one before is written meanwhile.

Holds the states of two shards at most. Does not know how the plan was made or whether it is the one that was begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch

from engine.capture.settings import Settings
from engine.capture.stacked import StackedStates, capture_stacked
from engine.errors import RequestError
from engine.processes import ALONE, Processes
from engine.progress import Progress
from engine.records.files import ShardPlan
from engine.store.names import CapturePaths
from engine.store.shards import pack_shard, shard_at, write_shard
from engine.store.survey import Item, PromptSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.capture.prompts import TokenizedPrompt

AS_CAPTURED = "as captured"
_DTYPES = {AS_CAPTURED: None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def state_dtype(store_dtype: str) -> torch.dtype | None:
    """What states are stored in; None for that in which they come.

    Raises:
        RequestError: There is no such choice.
    """
    if store_dtype not in _DTYPES:
        raise RequestError(f"states cannot be stored in {store_dtype!r}", expected=", ".join(_DTYPES))
    return _DTYPES[store_dtype]


@dataclass(frozen=True)
class ShardRun:
    """A plan on its way.

    Attributes:
        model: What prompts are run through.
        tokenizer: Its tokenizer.
        source: The prompts.
        stamp: Theirs, when the plan was made.
        settings: What is kept of each.
        plan: What the shards will hold.
        paths: Where they go.
        progress: Told of the prompts done, and of all.
        processes: Who shares the work.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: PromptSource
    stamp: tuple[int, ...]
    settings: Settings
    plan: ShardPlan
    paths: CapturePaths
    progress: Progress
    processes: Processes = ALONE

    def run_missing(self) -> None:
        """Run every shard that is this process's and not there yet.

        Raises:
            CaptureError: States are unusable.
            RequestError: The prompts were changed.
            StoreError: There is no room; what was written stays.
        """
        total = self.plan["prompts"]["count"]
        writing: Future[None] | None = None
        with ThreadPoolExecutor(max_workers=1) as beside:
            for number, (start, items) in enumerate(self._parts()):
                self.progress(start, total)
                shard = shard_at(self.paths, start, self.settings.layers)
                if not self.processes.owns(number) or shard.path.exists():
                    continue
                first = start // self.source.sides
                prompts = self.source.tokenize(self.model, self.tokenizer, items, first)
                states = self._capture(prompts, start)
                if writing is not None:
                    writing.result()
                factors = [item.factors for item in items if item.factors is not None]
                writing = beside.submit(write_shard, shard, pack_shard(prompts, states, factors))
                del states  # before the next ones come
            if writing is not None:
                writing.result()
        self.progress(total, total)

    def _parts(self) -> Iterator[tuple[int, list[Item]]]:
        """The items of each shard, with the number of its first prompt."""
        items = self.source.items()
        for start in range(0, self.plan["prompts"]["count"], self.plan["shard_prompts"]):
            part = list(islice(items, self.plan["shard_prompts"] // self.source.sides))
            self.source.require_unchanged(self.stamp)
            yield start, part

    def _capture(self, prompts: list[TokenizedPrompt], start: int) -> StackedStates:
        total = self.plan["prompts"]["count"]
        settings = replace(self.settings, progress=lambda done, _of_shard: self.progress(start + done, total))
        return capture_stacked(self.model, prompts, settings, dtype=state_dtype(self.plan["store_dtype"]))
