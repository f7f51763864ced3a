"""Capture into a store, as one file or as resumable shards."""

from __future__ import annotations

import logging
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.capture.activations import capture_in_memory
from engine.capture.estimate import bytes_in_memory, goes_into_shards
from engine.capture.prepare import PreparedCapture, prepare_capture
from engine.capture.request import AS_CAPTURED, DEFAULT_BATCH_SIZE, CaptureRequest, require_shards
from engine.capture.selection import LayerSpec, PositionSpec
from engine.capture.sites import DEFAULT_SITE
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import PAIR_FILES, PairFile, open_pairs
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.concepts.rows import is_dataset
from engine.concepts.text_files import open_prompts
from engine.errors import RequestError, StoreError
from engine.inputs import user_path
from engine.records.captures import Concept
from engine.runtime import ALONE, Processes, Progress, Steps, ignore_progress
from engine.store.names import CapturePaths, locate
from engine.store.ownership import require_free
from engine.store.plan import require_own_folder
from engine.store.resume import capture_in_shards, is_resumable, saved_template_time
from engine.store.specificity import add_captured_specificity
from engine.store.write import save_activations

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def capture_and_save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: CaptureRequest,
    *,
    progress: Progress | None = None,
    steps: Steps | None = None,
    processes: Processes = ALONE,
) -> CapturePaths:
    """Capture and save, as one file or as shards in bounded memory.

    `goes_into_shards` decides which. Call again with the same request to resume an interrupted capture in shards:
    saved shards are not run again. Each shard is run separately, so the result is bit-identical on the same machine.
    The Python functions, the command line, the server and the terminal app all capture through this function.

    A concept is then compared with its neighbours (see `add_specificity`), unless `request.specificity` is off. The
    first time for a model, this captures four more concepts, which are kept for later.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        request: What to capture, and where to save it.
        progress: Called with the number of finished prompts and their total; an exception it raises stops the work.
        steps: Called with each step before and after the forward passes; an exception it raises stops the work.
        processes: The processes that share the work, from `find_processes`; every process of a launcher makes this
            call.

    Returns:
        Paths of the saved files.

    Raises:
        RequestError: The request does not fit the model, has no `paths`, or a file cannot be read.
        CaptureError: A prompt cannot be captured.
        ModelError: The model fails the load check, or does not have the site.
        StoreError: The name is taken, an unfinished capture was started with other settings, or the disk is full.

    Example:
        >>> request = CaptureRequest(["Tell me a story", "And another"], paths=locate("runs/two"), force=True)
        >>> paths = capture_and_save(model, tokenizer, request)
        >>> paths.tensors.name, paths.in_shards
        ('two.pt', False)
    """
    paths, report = request.paths, steps or ignore_progress
    if paths is None:
        raise RequestError("the request does not say where to save", expected="paths=locate(name, store)")
    require_free(paths, force=request.force, resume=True)
    require_shards(request, processes)
    if request.always_shards or (paths.started and not request.force):
        require_own_folder(paths)  # before its prompts are counted
    prepared, resumes = _prepare(model, tokenizer, request, paths, report, processes)
    if resumes or goes_into_shards(prepared):
        if not (resumes or request.always_shards):
            log.info("saving %.1f GB of states as shards: bounded memory, resumable", bytes_in_memory(prepared) / 1e9)
            require_own_folder(paths)
        prepared = replace(prepared, settings=replace(prepared.settings, use_hooks=True))  # nothing reads later layers
        capture_in_shards(prepared, paths, progress=progress or ignore_progress, steps=report, processes=processes)
        add_captured_specificity(request, paths, model, tokenizer, None, steps=report, processes=processes)
        return paths
    data = capture_in_memory(prepared, progress, report)
    save_activations(data, paths.name, store=paths.store, force=request.force, steps=report)
    add_captured_specificity(request, paths, model, tokenizer, data if "positive" in data else None, steps=report)
    return paths


def _prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: CaptureRequest,
    paths: CapturePaths,
    steps: Steps,
    processes: Processes,
) -> tuple[PreparedCapture, bool]:
    """Prepare a capture, and say whether it resumes an unfinished one.

    With `force`, it does if the settings are the same: repeating a command that was interrupted loses no shards.
    """
    unfinished, moment = paths.started is not None, None
    with suppress(StoreError) if request.force else nullcontext():  # a damaged plan is replaced
        moment = saved_template_time(paths) if unfinished else None
    prepared = prepare_capture(model, tokenizer, request, moment=moment, steps=steps)
    if not request.force:
        return prepared, unfinished
    if processes.gather(processes.is_main and is_resumable(prepared, paths, steps))[0]:
        log.info("an unfinished capture of %s has the same settings: resuming it instead of starting over", paths.name)
        return replace(prepared, request=replace(request, force=False)), True
    if moment is not None:  # the new capture has a time of its own
        prepared = prepare_capture(model, tokenizer, request, steps=steps)
    return prepared, False


def capture_prompt_file(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Path,
    name: str | Path,
    layers: LayerSpec = None,
    *,
    store: str | Path | None = None,
    site: str = DEFAULT_SITE,
    positions: PositionSpec | None = None,
    respond: int | None = None,
    sample: bool = False,
    seed: int = 0,
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    compiled: bool | None = None,
    store_dtype: str = AS_CAPTURED,
    model_key: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    steps: Steps | None = None,
    processes: Processes = ALONE,
) -> CapturePaths:
    r"""Capture a file of prompts as shards, in memory independent of their number.

    The file is read twice: once to check, count and hash all prompts before the first forward pass, and once to run
    them. Make the same call again to resume an interrupted capture: saved shards are not run again. Each shard is run
    separately, so the result is bit-identical on the same machine.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        prompts: A `.txt`, `.jsonl` or `.csv` file or a dataset folder, see `open_prompts`. No chat template is applied.
        name: A path, such as "activations/questions"; a plain name when `store` is given.
        layers: See `parse_layers`; None for all.
        store: The store folder.
        site: See `capture_activations`.
        positions: See `parse_positions`; None for the last token, or with responses for the mean over each.
        respond: Let the model respond to each prompt first, with at most this many tokens.
        sample: Sample the responses, with the model's own generation settings.
        seed: Seed for sampling responses.
        batch_size: Maximum number of prompts in a forward pass; None for as many as the token budget allows.
        prefix_reuse: See `capture_activations`; prefixes are shared within a shard.
        compiled: See `CaptureRequest`.
        store_dtype: `as captured`, `float32` or `bfloat16`, which halves the size of float32 states on disk.
        model_key: Short name of the model, for the record; defaults to the alias it was loaded by.
        force: Replace an existing capture of that name when the new one is complete; until then the disk holds both.
            One that is unfinished and has the same settings is resumed.
        progress: Called with the number of finished prompts and their total.
        steps: Called with each step before and after the forward passes.
        processes: The processes that share the work, from `find_processes`; every process of a launcher makes this
            call, and they divide the work evenly.

    Returns:
        Paths of the saved files.

    Raises:
        RequestError: The file cannot be read, or the site, layers, positions or dtype do not exist.
        CaptureError: A prompt is too long, or states are not finite or all zero.
        ModelError: The model fails the load check, or does not have the site.
        StoreError: The name is taken, an unfinished capture was started with other settings, or the disk is full.

    Example:
        >>> count = Path("questions.txt").write_text("Is the sky blue?\nIs grass green?\n")
        >>> paths = capture_prompt_file(
        ...     model, tokenizer, "questions.txt", "runs/questions", positions="last", force=True
        ... )
        >>> [shard.states(16).shape for shard in open_shards("runs/questions")]
        [torch.Size([2, 576])]
    """
    request = CaptureRequest(
        open_prompts(prompts),
        layers=layers,
        site=site,
        positions=positions,
        seed=seed,
        respond=respond,
        sample=sample,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        compiled=compiled,
        alias=model_key,
        paths=locate(name, store),
        force=force,
        store_dtype=store_dtype,
    )
    return capture_and_save(model, tokenizer, request, progress=progress, steps=steps, processes=processes)


def capture_contrast_in_shards(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: str | Path | Concept,
    name: str | Path,
    layers: LayerSpec = None,
    max_samples: int | None = DEFAULT_SAMPLES,
    *,
    store: str | Path | None = None,
    site: str = DEFAULT_SITE,
    positions: PositionSpec | None = None,
    respond: int | None = None,
    sample: bool = False,
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    compiled: bool | None = None,
    seed: int = 0,
    store_dtype: str = AS_CAPTURED,
    model_key: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    steps: Steps | None = None,
    processes: Processes = ALONE,
) -> CapturePaths:
    """Capture pairs as shards and rank their layers, in bounded memory.

    Like `capture_prompt_file`, for pairs: the shards hold positive and negative prompts alternately. After the last
    shard, the layers are ranked from disk, one layer at a time.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        pairs: A `.jsonl` or `.csv` file or a dataset folder, see `PairFile`, with no chat template applied; or a
            concept, by its name or its `.toml` file, as in `capture_from_concept`.
        name: A path, such as "activations/honesty"; a plain name when `store` is given.
        layers: See `parse_layers`; None for all.
        max_samples: Maximum number of pairs of a concept, sampled evenly; None for every combination.
        store: The store folder.
        site: See `capture_activations`.
        positions: See `parse_positions`; None for the last token, or with responses for the mean over each.
        respond: Let the model respond to each prompt first, with at most this many tokens.
        sample: Sample the responses, with the model's own generation settings.
        batch_size: Maximum number of prompts in a forward pass; None for as many as the token budget allows.
        prefix_reuse: See `capture_activations`; prefixes are shared within a shard.
        compiled: See `CaptureRequest`.
        seed: Seed for sampling pairs of a concept and responses.
        store_dtype: `as captured`, `float32` or `bfloat16`, which halves the size of float32 states on disk.
        model_key: Short name of the model, for the record; defaults to the alias it was loaded by.
        force: Replace an existing capture of that name when the new one is complete; until then the disk holds both.
            One that is unfinished and has the same settings is resumed.
        progress: Called with the number of finished prompts and their total.
        steps: Called with each step before and after the forward passes.
        processes: See `capture_prompt_file`.

    Returns:
        Paths of the saved files. `load_activations` reads them like any contrast and loads states on first access.

    Raises:
        RequestError: The file or concept cannot be read, or the site, layers, positions or dtype do not exist.
        CaptureError: A prompt is too long, or states are not finite or all zero.
        ModelError: The model fails the load check, or does not have the site.
        StoreError: The name is taken, an unfinished capture was started with other settings, or the disk is full.

    Example:
        >>> paths = capture_contrast_in_shards(
        ...     model, tokenizer, "honesty", "runs/honesty", layers=[15, 16], max_samples=24, force=True
        ... )
        >>> load_activations("runs/honesty")["positive"][0]["activations"][16].shape
        torch.Size([1, 1, 576])
    """
    request = CaptureRequest(
        pairs if isinstance(pairs, Concept) else find_pairs(pairs),
        layers=layers,
        site=site,
        positions=positions,
        respond=respond,
        sample=sample,
        max_samples=max_samples,
        seed=seed,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        compiled=compiled,
        alias=model_key,
        paths=locate(name, store),
        force=force,
        shards=True,
        specificity=False,
        store_dtype=store_dtype,
    )
    return capture_and_save(model, tokenizer, request, progress=progress, steps=steps, processes=processes)


def find_pairs(pairs: str | Path) -> Concept | PairFile:
    """Open a file of pairs, or load a concept if the name is not one of a file.

    Args:
        pairs: A `.jsonl` or `.csv` file, a dataset folder, the name of a concept, or its `.toml` file.

    Raises:
        RequestError: The file cannot be read, or the concept does not exist.
    """
    path = user_path(pairs)
    return open_pairs(path) if path.suffix.lower() in PAIR_FILES or is_dataset(path) else load_concept(pairs)
