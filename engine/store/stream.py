"""Capture a file of prompts of any length into shards, and go on where a run was interrupted.

Knows prompts, plans and shards. Holds no more than the states of one shard in memory.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.capture.batches import DEFAULT_BATCH_SIZE
from engine.capture.layers import LayerSpec
from engine.capture.positions import PositionSpec
from engine.capture.prompts import TokenizedPrompt
from engine.capture.provenance import trace_provenance
from engine.capture.run import Progress, Settings
from engine.capture.sites import DEFAULT_SITE
from engine.capture.stacked import capture_stacked
from engine.concepts.prompt_file import open_prompts
from engine.errors import RequestError, StoreError
from engine.models.description import describe_model
from engine.models.fingerprint import sample_weights
from engine.records.files import ShardPlan
from engine.store.names import CapturePaths, locate, require_free
from engine.store.plan import (
    PLAN_SCHEMA,
    clear_unfinished,
    encode_plan,
    remove_shards,
    require_own_folder,
    require_same_plan,
)
from engine.store.record import encode_record
from engine.store.shard_record import record_shards
from engine.store.shards import Shard, shard_at, write_shard
from engine.store.survey import PromptSource, survey_prompts
from engine.store.write import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHARD_BYTES = 64 * 2**20
_SHARD_PROMPTS = 512
_AS_CAPTURED = "as captured"
_DTYPES = {_AS_CAPTURED: None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def capture_prompt_file(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Path,
    name: str | Path,
    layers: LayerSpec = None,
    *,
    store: str | Path | None = None,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = "all",
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    store_dtype: str = _AS_CAPTURED,
    model_key: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CapturePaths:
    r"""Capture the prompts of a file into a folder of shards; memory does not grow with their number.

    The file is read twice: once to check, count and fingerprint every prompt, before anything is run, and once to run
    them. An interrupted capture is gone on with by the same call: shards that are saved are not run again, and since
    each shard is run by itself, what comes out is the same to the bit, on the same machine.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        prompts: A `.txt`, `.jsonl` or `.csv` file, see `open_prompts`. Texts are taken as they are.
        name: A path, as in "activations/questions"; a plain name when `store` is given.
        layers: See `parse_layers`; None for all.
        store: The folder to save into.
        site: See `capture_activations`.
        positions: See `parse_positions`.
        batch_size: Most prompts in one forward pass, None for as many as run well.
        prefix_reuse: See `capture_activations`; beginnings are shared within a shard.
        store_dtype: `as captured`, `float32` or `bfloat16`, which halves float32 on disk.
        model_key: Short name of the model, for the record; the alias it was loaded by unless given.
        force: Whether an earlier capture of that name, finished or not, is replaced.
        progress: Called with prompts done and in total.

    Returns:
        Where the files lie.

    Raises:
        RequestError: The file cannot be read, or a site, layers, positions or a dtype do not exist.
        CaptureError: A prompt is too long, or states are unusable.
        ModelError: The model fails the check, or does not have the site.
        StoreError: The name is taken, an unfinished capture was begun otherwise, or there is no room.

    Example:
        >>> count = Path("questions.txt").write_text("Is the sky blue?\nIs grass green?\n")
        >>> paths = capture_prompt_file(
        ...     model, tokenizer, "questions.txt", "runs/questions", positions="last", force=True
        ... )
        >>> [shard.states(16).shape for shard in open_shards("runs/questions")]
        [torch.Size([2, 576])]
    """
    if store_dtype not in _DTYPES:
        raise RequestError(f"states cannot be stored in {store_dtype!r}", expected=", ".join(_DTYPES))
    paths = locate(name, store)
    require_free(paths, force=force, resume=True)
    require_own_folder(paths)
    settings = Settings.for_model(
        model,
        layers,
        positions,
        site=site,
        use_hooks=True,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        progress=None,
    )
    source = PromptSource.of(model, tokenizer, open_prompts(prompts))
    found = survey_prompts(source, settings)
    width, itemsize = describe_model(model).hidden_size, _itemsize(model, settings, store_dtype)
    plan = ShardPlan(
        schema=PLAN_SCHEMA,
        prompts=found,
        shard_prompts=shard_prompts(len(settings.layers) * width * itemsize * found["kept"]),
        layers=settings.layers,
        num_layers=describe_model(model).num_layers,
        hidden_size=width,
        store_dtype=store_dtype,
        weights=sample_weights(model),
        provenance=trace_provenance(model, settings, alias=model_key),
    )
    _begin(paths, plan, force=force)
    _run(model, source, settings, plan, paths, progress or (lambda _done, _total: None))
    write_atomically(paths.record, encode_record(record_shards(paths, plan, source.file)))
    return paths


def shard_prompts(prompt_bytes: int) -> int:
    """How many prompts a shard holds: 512, or what 64 MiB take, so that memory has a bound.

    Args:
        prompt_bytes: Most bytes that the states of one prompt take.

    Example:
        >>> shard_prompts(30 * 576 * 4), shard_prompts(30 * 576 * 4 * 100)
        (512, 9)
    """
    return max(1, min(_SHARD_PROMPTS, _SHARD_BYTES // prompt_bytes))


def _itemsize(model: PreTrainedModel, settings: Settings, store_dtype: str) -> int:
    dtype = _DTYPES[store_dtype] or (torch.float32 if settings.positions.mean else model.dtype)
    return dtype.itemsize


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


def _run(
    model: PreTrainedModel,
    source: PromptSource,
    settings: Settings,
    plan: ShardPlan,
    paths: CapturePaths,
    progress: Progress,
) -> None:
    """Run the shards that are missing, each by itself."""
    total, texts = plan["prompts"]["count"], source.file.texts()
    for start in range(0, total, plan["shard_prompts"]):
        part = list(islice(texts, plan["shard_prompts"]))
        source.require_unchanged()
        shard = shard_at(paths, start, settings.layers)
        progress(start, total)
        if not shard.path.exists():
            prompts = source.tokenize(part, start)
            _run_shard(model, prompts, settings, plan, shard, progress)
    progress(total, total)


def _run_shard(
    model: PreTrainedModel,
    prompts: list[TokenizedPrompt],
    settings: Settings,
    plan: ShardPlan,
    shard: Shard,
    progress: Progress,
) -> None:
    """One shard; a function of its own, so that its states are gone before those of the next one come."""
    done = shard.start

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress(done, plan["prompts"]["count"])

    states = capture_stacked(model, prompts, settings, dtype=_DTYPES[plan["store_dtype"]], told=tell)
    write_shard(shard, prompts, states)
