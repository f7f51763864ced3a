"""Start or resume a capture in shards, and record it when every shard is there."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.capture.prepare import PreparedCapture, prepare_capture
from engine.capture.settings import Settings
from engine.errors import StoreError
from engine.records.files import ShardPlan
from engine.runtime import ALONE, Processes, Progress, Steps, untold
from engine.store.names import CapturePaths
from engine.store.plan import (
    PLAN_SCHEMA,
    clear_unfinished,
    encode_plan,
    read_plan,
    remove_shards,
    require_same_plan,
)
from engine.store.record import encode_record
from engine.store.shard_run import ShardRun, record_shards, state_dtype
from engine.store.write import write_atomically

_SHARD_BYTES = 64 * 2**20
_SHARD_PROMPTS = 512
_SHARD_TOKENS = 512  # in one pass, for shards of that size
_LARGEST = 16  # times as large, where more tokens go at once


def capture_in_shards(
    prepared: PreparedCapture,
    paths: CapturePaths,
    *,
    progress: Progress = untold,
    steps: Steps = untold,
    processes: Processes = ALONE,
) -> None:
    """Run the missing shards of a capture, and record it when all are there.

    Args:
        prepared: The capture.
        paths: Where it is saved.
        progress: Called with the number of finished prompts and their total.
        steps: Told of the steps after the prompts were run.
        processes: Who shares the work.

    Raises:
        CaptureError: States are unusable.
        StoreError: An unfinished capture of that name was started with other settings, or there is no room.
    """
    force = prepared.request.force
    if processes.is_main:
        settings = prepared.settings if force else _as_begun(prepared.settings, paths)
        plan = _plan(prepared, settings)
        _begin(paths, plan, force=force)
    processes.wait()
    if not processes.is_main:
        moment = time_begun(paths)
        if prepared.source.at(moment) is not prepared.source:  # the main process read the clock at another time
            prepared = prepare_capture(prepared.model, prepared.tokenizer, prepared.request, moment=moment, steps=steps)
        settings = _as_begun(prepared.settings, paths)
        plan = _plan(prepared, settings)
        _require_begun(paths, plan)
    ShardRun(prepared, settings, plan, paths, progress, processes).run_missing()
    processes.wait()
    if processes.is_main:
        write_atomically(paths.record, encode_record(record_shards(paths, plan, steps)))
    processes.wait()


def _plan(prepared: PreparedCapture, settings: Settings) -> ShardPlan:
    request, source, known = prepared.request, prepared.source, settings.model
    dtype = state_dtype(request.store_dtype) or (torch.float32 if settings.positions.mean else prepared.model.dtype)
    item_bytes = len(settings.layers) * known.hidden_size * dtype.itemsize * prepared.found["kept"] * source.sides
    return ShardPlan(
        schema=PLAN_SCHEMA,
        prompts=prepared.found,
        concept=source.concept,
        shard_prompts=source.sides * shard_items(item_bytes, source.sides, settings.limits.tokens),
        layers=settings.layers,
        num_layers=known.num_layers,
        hidden_size=known.hidden_size,
        store_dtype=request.store_dtype,
        weights=known.weights,
        provenance=prepared.provenance(settings),
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


def time_begun(paths: CapturePaths) -> str | None:
    """The time that the chat template was given when a capture started; None if it did not, or if time is no matter."""
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
