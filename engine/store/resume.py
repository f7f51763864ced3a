"""Plan a capture in shards, begin it or go on with it, and record it when every shard is there.

Knows prompts and settings. Does not know what the user said, or how shards are run (`engine.store.shard_run`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from engine.capture.provenance import trace_provenance
from engine.capture.settings import Settings
from engine.errors import StoreError
from engine.models.description import describe_model
from engine.records.files import PromptList, ShardPlan
from engine.runtime import Processes, Progress, Steps
from engine.store.names import CapturePaths, require_free
from engine.store.plan import (
    PLAN_SCHEMA,
    clear_unfinished,
    encode_plan,
    read_plan,
    remove_shards,
    require_own_folder,
    require_same_plan,
)
from engine.store.record import encode_record
from engine.store.shard_run import ShardRun, record_shards, state_dtype
from engine.store.sources import PromptSource, survey_prompts
from engine.store.write import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_SHARD_BYTES = 64 * 2**20
_SHARD_PROMPTS = 512
_SHARD_TOKENS = 512  # in one pass, for shards of that size
_LARGEST = 16  # times as large, where more tokens go at once


@dataclass(frozen=True)
class Wanted:
    """What is to become of the states.

    Attributes:
        paths: Where they go.
        store_dtype: In which dtype.
        alias: Short name of the model, if the caller has one.
        force: Whether what is there is replaced.
        progress: Told of each batch.
        processes: Who shares the work.
        steps: Told of what is done before and after the prompts are run.
    """

    paths: CapturePaths
    store_dtype: str
    alias: str | None
    force: bool
    progress: Progress
    processes: Processes
    steps: Steps


def capture_planned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: PromptSource,
    wanted: Wanted,
    settings: Settings,
) -> CapturePaths:
    """Run what is missing of a capture in shards, and record it.

    Args:
        model: A checked model.
        tokenizer: Its tokenizer.
        source: The prompts.
        wanted: What is to become of the states.
        settings: What is kept.

    Returns:
        Where the files lie.

    Raises:
        CaptureError: A prompt is too long, or states are unusable.
        RequestError: A file cannot be read, or a dtype does not exist.
        StoreError: The name is taken, an unfinished capture was begun otherwise, or there is no room.
    """
    paths, processes = wanted.paths, wanted.processes
    require_free(paths, force=wanted.force, resume=True)
    require_own_folder(paths)
    stamp = source.stamp()
    if not wanted.force:
        source = source.at(_time_begun(paths))
    found = survey_prompts(model, tokenizer, source, settings.positions, wanted.steps)
    if processes.is_main:
        settings = settings if wanted.force else _as_begun(settings, paths)
        plan = _plan(model, settings, wanted, source, found)
        _begin(paths, plan, force=wanted.force)
    processes.wait()
    if not processes.is_main:
        settings = _as_begun(settings, paths)
        if (told := source.at(_time_begun(paths))) is not source:  # the main process read the clock at another time
            source, found = told, survey_prompts(model, tokenizer, told, settings.positions, wanted.steps)
        plan = _plan(model, settings, wanted, source, found)
        _require_begun(paths, plan)
    ShardRun(model, tokenizer, source, stamp, settings, plan, paths, wanted.progress, processes).run_missing()
    processes.wait()
    if processes.is_main:
        write_atomically(paths.record, encode_record(record_shards(paths, plan, wanted.steps)))
    processes.wait()
    return paths


def _plan(
    model: PreTrainedModel, settings: Settings, wanted: Wanted, source: PromptSource, found: PromptList
) -> ShardPlan:
    known = describe_model(model)
    dtype = state_dtype(wanted.store_dtype) or (torch.float32 if settings.positions.mean else model.dtype)
    item_bytes = len(settings.layers) * known.hidden_size * dtype.itemsize * found["kept"] * source.sides
    return ShardPlan(
        schema=PLAN_SCHEMA,
        prompts=found,
        concept=source.concept,
        shard_prompts=source.sides * shard_items(item_bytes, source.sides, settings.limits.tokens),
        layers=settings.layers,
        num_layers=known.num_layers,
        hidden_size=known.hidden_size,
        store_dtype=wanted.store_dtype,
        weights=settings.model.weights,
        provenance=trace_provenance(
            model,
            settings,
            alias=None if wanted.alias is None else str(wanted.alias),
            chat_template=source.chat_template,
            template_time=source.moment,
            seed=source.seed,
        ),
    )


def shard_items(item_bytes: int, sides: int = 1, tokens: int = _SHARD_TOKENS) -> int:
    """How many prompts or pairs a shard holds: 512 prompts, or what 64 MiB take, so that memory has a bound.

    Where more tokens than 512 go at once, as on a GPU, shards are as much larger, up to sixteen times: a pass ends with
    its shard, and small ones would leave it half empty.

    Args:
        item_bytes: Most bytes that the states of one take.
        sides: Prompts of each.
        tokens: Most tokens in one forward pass.

    Example:
        >>> shard_items(30 * 576 * 4), shard_items(30 * 576 * 4 * 100), shard_items(30 * 576 * 4 * 2, sides=2)
        (512, 9, 256)
        >>> shard_items(80 * 8192 * 2, tokens=4096)
        409
    """
    times = min(max(tokens // _SHARD_TOKENS, 1), _LARGEST)
    return max(1, min(times * _SHARD_PROMPTS // sides, times * _SHARD_BYTES // item_bytes))


def _begin(paths: CapturePaths, plan: ShardPlan, *, force: bool) -> None:
    """Write the plan, or see that the one that is there is the same."""
    if force:
        try:
            paths.record.unlink(missing_ok=True)  # first: without it there is no capture
            paths.tensors.unlink(missing_ok=True)
            remove_shards(paths)
        except OSError as error:
            raise StoreError(f"{error.filename} cannot be deleted: {error.strerror}") from error
    if paths.plan.exists():
        require_same_plan(paths, plan)
    clear_unfinished(paths)
    if not paths.plan.exists():
        write_atomically(paths.plan, encode_plan(plan))


def _as_begun(settings: Settings, paths: CapturePaths) -> Settings:
    """Settings with the token budget that a capture was begun with: what is free by now does not make it another."""
    if not paths.plan.exists():
        return settings
    tokens = read_plan(paths.plan)["provenance"].get("token_budget", settings.limits.tokens)
    return replace(settings, limits=replace(settings.limits, tokens=tokens))


def _time_begun(paths: CapturePaths) -> str | None:
    """The time that the chat template was told when a capture was begun, if it was begun and that matters."""
    return read_plan(paths.plan)["provenance"].get("template_time") if paths.plan.exists() else None


def _require_begun(paths: CapturePaths, plan: ShardPlan) -> None:
    """See that this process is about to do its share of what the main one began."""
    if not paths.plan.exists():
        raise StoreError(
            f"this process does not see {paths.plan}, which the main one has written",
            expected="a folder that all processes share, on all machines",
            next_step="choose one with the same name for all",
        )
    require_same_plan(paths, plan)
