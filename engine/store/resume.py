"""Start or resume a capture in shards, and write its record at the end."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace

import torch

from engine.capture.dialogues import tell_unusual
from engine.capture.prepare import PreparedCapture, prepare_capture
from engine.capture.run_settings import Settings
from engine.errors import StoreError
from engine.records.files import ShardPlan
from engine.remedies import Remedy
from engine.runtime import ALONE, Processes, Progress, Steps, ignore_progress
from engine.store.locks import folder_lock
from engine.store.names import CapturePaths, shard_files
from engine.store.ownership import drop_directions, require_free
from engine.store.plan import (
    PLAN_SCHEMA,
    ChangedPlanError,
    clear_unfinished,
    encode_plan,
    hold_plan,
    read_plan,
    require_not_held,
    shard_starts,
)
from engine.store.plan_changes import plan_changes, resume_advice
from engine.store.record import encode_record
from engine.store.replace import delete_unfinished, place_of_shards, put_in_place, telling_loss
from engine.store.shard_run import ShardRun, record_shards, state_dtype
from engine.store.shards import shard_at
from engine.store.tensor_files import verify_file
from engine.store.unfinished import TakenError, clear_leftovers
from engine.store.write import write_atomically

log = logging.getLogger(__name__)

_SHARD_BYTES = 64 * 2**20
_SHARD_PROMPTS = 512
_SHARD_TOKENS = 512  # token budget that these sizes are for
_RESPONDING = 8  # fewer prompts in a shard by this factor if the model responds first: an interruption loses one shard
_LARGEST = 16  # upper limit of the factor for larger token budgets


def capture_in_shards(
    prepared: PreparedCapture,
    paths: CapturePaths,
    *,
    progress: Progress = ignore_progress,
    steps: Steps = ignore_progress,
    processes: Processes = ALONE,
) -> None:
    """Run the missing shards of a capture, then write its record.

    A complete capture of that name stays until the new one is complete; then its place is taken.

    Args:
        prepared: The prepared capture.
        paths: Where to save it.
        progress: Called with the number of finished prompts and their total.
        steps: Called with each step after the forward passes.
        processes: The processes that share the work.

    Raises:
        CaptureError: States are not finite or all zero.
        StoreError: An unfinished capture of that name was started with other settings, or the disk is full.
    """
    with contextlib.ExitStack() as held:
        settings = _agreed_settings(prepared, paths, processes)
        if processes.is_main:
            plan = _plan(prepared, settings)
            place = _start(paths, plan, held, force=prepared.request.force)
        processes.wait()
        if not processes.is_main:
            place = _visible(paths)
            moment = saved_template_time(paths)
            if prepared.source.at(moment) is not prepared.source:  # the main process read the clock at another time
                prepared = prepare_capture(
                    prepared.model, prepared.tokenizer, prepared.request, moment=moment, steps=steps
                )
            plan = _plan(prepared, settings)
            require_same_plan(place, plan)
        ShardRun(prepared, settings, plan, place, progress, steps, processes).run_missing()
        processes.wait()
        if processes.is_main:
            _tell_unusual(place, plan)
            write_atomically(place.record, encode_record(record_shards(place, plan, steps)))
            clear_leftovers(place.record)
            if os.name == "nt":  # pragma: no cover - Windows cannot rename a folder with an open file
                held.close()
            with folder_lock(paths.store):
                put_in_place(paths)
        processes.wait()


def _tell_unusual(paths: CapturePaths, plan: ShardPlan) -> None:
    """Log how many responses are empty or were cut, in all shards, also those of earlier runs."""
    source = plan["provenance"].get("responses")
    if source is not None and source["max_new_tokens"] is not None:
        shards = (shard_at(paths, start, plan["layers"]) for start in shard_starts(plan))
        tell_unusual((one for shard in shards for one in shard.responses or ()), source["max_new_tokens"])


def _plan(prepared: PreparedCapture, settings: Settings) -> ShardPlan:
    request, source, known = prepared.request, prepared.source, settings.model
    dtype = state_dtype(request.store_dtype) or (torch.float32 if settings.positions.mean else prepared.model.dtype)
    item_bytes = len(settings.layers) * known.hidden_size * dtype.itemsize * prepared.found["kept"] * source.sides
    return ShardPlan(
        schema=PLAN_SCHEMA,
        prompts=prepared.found,
        concept=source.concept,
        shard_prompts=source.sides
        * shard_items(item_bytes, source.sides, settings.limits.tokens, responding=request.respond is not None),
        layers=settings.layers,
        num_layers=known.num_layers,
        hidden_size=known.hidden_size,
        store_dtype=request.store_dtype,
        weights=known.weights,
        provenance=prepared.provenance(settings),
    )


def shard_items(item_bytes: int, sides: int = 1, tokens: int = _SHARD_TOKENS, *, responding: bool = False) -> int:
    """Number of prompts or pairs in a shard: at most 512 prompts, or 64 with responses, and 64 MiB of states.

    For token budgets above 512, as on a GPU, both limits grow in proportion, up to 16 times: a batch never spans two
    shards, so small shards would leave batches half empty.

    Args:
        item_bytes: Maximum bytes of the states of one prompt or pair.
        sides: Prompts per item: 1, or 2 for pairs.
        tokens: Token budget of a forward pass.
        responding: Whether the model responds to each prompt first.

    Example:
        >>> shard_items(30 * 576 * 4), shard_items(30 * 576 * 4 * 100), shard_items(30 * 576 * 4 * 2, sides=2)
        (512, 9, 256)
        >>> shard_items(80 * 8192 * 2, tokens=4096)
        409
    """
    times = min(max(tokens // _SHARD_TOKENS, 1), _LARGEST)
    prompts = _SHARD_PROMPTS // (_RESPONDING if responding else 1)
    return max(1, min(times * prompts // sides, times * _SHARD_BYTES // item_bytes))


def _start(paths: CapturePaths, plan: ShardPlan, held: contextlib.ExitStack, *, force: bool) -> CapturePaths:
    """Write the plan, or check it against the saved one, and hold it until `held` is closed.

    Returns:
        Where the shards are saved.
    """
    own = False
    with folder_lock(paths.store):
        put_in_place(paths)
        require_free(paths, force=force, resume=True)
        place = place_of_shards(paths)
        if force:
            delete_unfinished(place)
            if not paths.exist:
                with telling_loss(paths):
                    drop_directions(paths)  # of an earlier capture of that name
        if not place.plan.exists():
            with contextlib.suppress(TakenError):  # another process is starting the same capture: one holds the plan
                write_atomically(place.plan, encode_plan(plan), replace=False)
                own = True
        held.enter_context(hold_plan(place))
    require_free(place, force=False, resume=True)  # without locks, another process may have finished it meanwhile
    if not own:
        require_same_plan(place, plan)
    clear_unfinished(place)
    if saved := len(shard_files(place)):
        log.info("resuming: %d of %d shards are saved", saved, len(shard_starts(plan)))
    if place != paths:
        log.info("%s stays until its replacement is complete; until then the disk holds both", paths.name)
    return place


def _agreed_settings(prepared: PreparedCapture, paths: CapturePaths, processes: Processes) -> Settings:
    """Settings of the capture: all processes use the token budget of the main one, and all or none run compiled.

    The main process decides whether to compile; the others only try whether they can.
    """
    request, saved = prepared.request, None if prepared.request.force else paths.started
    settings = prepared.settings
    processes.wait()  # joins them, so that the others notice if one is refused
    if processes.is_main:
        with folder_lock(paths.store):  # under which others hold a plan for a moment only
            require_not_held(paths.started or paths)  # refuse before anything is compiled or deleted
        settings = _settings(prepared, saved)
    compiled, tokens = processes.gather((settings.compiled, settings.limits.tokens))[0]
    plain = replace(prepared.settings, limits=replace(prepared.settings.limits, tokens=tokens))
    if compiled != "on":
        return replace(plain, compiled=compiled)
    if not processes.is_main:  # PyTorch has the code in files now
        settings = _settings(replace(prepared, request=replace(request, compiled=True), settings=plain), saved)
    for rank, how in enumerate(processes.gather(settings.compiled)):
        if how != "on":
            why = f"process {rank} of {processes.count} cannot compile them: {how.removeprefix('no: ')}"
            log.info("blocks are not compiled: %s", why)
            return replace(plain, compiled=f"no: {why}" if request.compiled else "off")
    return settings


def _settings(prepared: PreparedCapture, paths: CapturePaths | None) -> Settings:
    """Settings of the capture, with the saved token budget: free memory and the speed of a GPU vary between runs.

    A capture that cannot resume is refused before its blocks are compiled, which may take a minute.
    """
    if paths is None:
        return prepared.compile(prepared.settings)
    settings = _require_resumable(prepared, paths)
    return prepared.compile(settings, read_plan(paths.plan)["provenance"].get("compiled", "off"))


def _require_resumable(prepared: PreparedCapture, paths: CapturePaths) -> Settings:
    """Settings with the saved token budget.

    Raises:
        StoreError: The saved plan is another one or is damaged.
    """
    settings, saved = prepared.settings, read_plan(paths.plan)["provenance"]
    limits, compiled = replace(settings.limits, tokens=saved.get("token_budget", settings.limits.tokens)), "off"
    if prepared.request.compiled is not False:
        compiled = saved.get("compiled", "off")
    require_same_plan(paths, _plan(prepared, replace(settings, limits=limits, compiled=compiled)))
    return replace(settings, limits=limits)


def is_resumable(prepared: PreparedCapture, paths: CapturePaths, steps: Steps = ignore_progress) -> bool:
    """Whether a capture is unfinished, has the requested settings, and its saved shards are intact.

    Args:
        prepared: The prepared capture.
        paths: Where to save it.
        steps: Called with the number of shards checked and their total.
    """
    place = paths.started
    if place is None:
        return False
    try:
        _require_resumable(prepared, place)
        shards = shard_files(place)
        for number, shard in enumerate(shards):
            steps("checking the saved shards", number, len(shards))
            verify_file(shard, store=place.store, remedy=Remedy.DELETE_SHARD)
    except StoreError:
        return False
    return True


def saved_template_time(paths: CapturePaths) -> str | None:
    """The time passed to the chat template when the capture started.

    None if the capture has not started or the template reads no clock.
    """
    return read_plan(paths.started.plan)["provenance"].get("template_time") if paths.started else None


def _visible(paths: CapturePaths) -> CapturePaths:
    """The place where the main process saves the shards, which this one must share."""
    place = paths.started
    if place is None:
        raise StoreError(
            f"this process cannot see {place_of_shards(paths).plan}, which the main process wrote",
            expected="a folder shared by all processes on all machines",
            next_step="choose a shared folder with the same path on every machine",
        )
    return place


def require_same_plan(paths: CapturePaths, wanted: ShardPlan) -> None:
    """Refuse to resume a capture with different settings.

    Raises:
        ChangedPlanError: The requested settings differ from the saved plan; the message lists the differences.
    """
    saved = read_plan(paths.plan)
    changed = plan_changes(saved, wanted)
    if "added_code" in saved["provenance"] or "added_code" in wanted["provenance"]:
        changed.append("code was added to the model, and layerscope cannot check that it is still the same")
    if changed:
        what = "replacement of" if paths.is_replacement else "capture"
        raise ChangedPlanError(
            f"the unfinished {what} {paths.name!r} was started with different settings: {'; '.join(changed)}",
            expected="the same settings, to resume from the saved shards",
            next_step=resume_advice(saved, wanted, paths),
        )
