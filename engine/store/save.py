"""Capture into a store: as one file what fits into memory, all else as shards that can be resumed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from engine.capture.activations import capture_in_memory
from engine.capture.estimate import bytes_in_memory, goes_into_shards
from engine.capture.prepare import prepare_capture
from engine.capture.request import AS_CAPTURED, DEFAULT_BATCH_SIZE, CaptureRequest
from engine.capture.selection import DEFAULT_POSITIONS, LayerSpec, PositionSpec
from engine.capture.sites import DEFAULT_SITE
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import PAIR_FILES, PairFile, open_pairs
from engine.concepts.rows import is_dataset
from engine.concepts.text_files import open_prompts
from engine.errors import RequestError
from engine.inputs import user_path
from engine.records.captures import Concept
from engine.runtime import ALONE, Processes, Progress, Steps, untold
from engine.store.names import CapturePaths, locate, require_free
from engine.store.plan import require_own_folder
from engine.store.resume import capture_in_shards, time_begun
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
    """Capture and save: as one file, or in bounded memory as shards, see `goes_into_shards`.

    Every face captures through this function. Run it again with the same request to resume an interrupted capture in
    shards: finished shards are not run again, and since each shard is run separately, the result is the same to the
    bit on the same machine.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        request: What to capture, and where to save it.
        progress: Called with the number of finished prompts and their total; what it raises ends the work.
        steps: Told of the steps before and after the forward passes; what it raises ends the work.
        processes: Who shares the work, from `find_processes`, when every process of a launcher makes this call.

    Returns:
        Where the files are.

    Raises:
        RequestError: The request does not fit the model, a file cannot be read, or nothing says where to save.
        CaptureError: A prompt cannot be captured.
        ModelError: The model fails the check, or does not have the site.
        StoreError: The name is taken, an unfinished capture was started with other settings, or there is no room.

    Example:
        >>> request = CaptureRequest(["Tell me a story", "And another"], paths=locate("runs/two"), force=True)
        >>> paths = capture_and_save(model, tokenizer, request)
        >>> paths.tensors.name, paths.in_shards
        ('two.pt', False)
    """
    paths, told = request.paths, steps or untold
    if paths is None:
        raise RequestError("the request does not say where to save", expected="paths=locate(name, store)")
    require_free(paths, force=request.force, resume=True)
    resumes = paths.unfinished and not request.force
    moment = time_begun(paths) if resumes else None
    prepared = prepare_capture(model, tokenizer, request, moment=moment, steps=told)
    if resumes or goes_into_shards(prepared):
        if not request.shards:
            log.info(
                "%.1f GB of states: saved as shards, in bounded memory, resumable", bytes_in_memory(prepared) / 1e9
            )
        require_own_folder(paths)
        capture_in_shards(prepared, paths, progress=progress or untold, steps=told, processes=processes)
        return paths
    data = capture_in_memory(prepared, progress)
    return save_activations(data, paths.name, store=paths.store, force=request.force, steps=told)


def capture_prompt_file(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Path,
    name: str | Path,
    layers: LayerSpec = None,
    *,
    store: str | Path | None = None,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = DEFAULT_POSITIONS,
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    store_dtype: str = AS_CAPTURED,
    model_key: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    steps: Steps | None = None,
    processes: Processes = ALONE,
) -> CapturePaths:
    r"""Capture the prompts of a file into a folder of shards; memory does not grow with their number.

    The file is read twice: once to check, count and fingerprint every prompt, before anything is run, and once to run
    them. An interrupted capture is gone on with by the same call: shards that are saved are not run again, and since
    each shard is run by itself, what comes out is the same to the bit, on the same machine.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        prompts: A `.txt`, `.jsonl` or `.csv` file or the folder of a data set, see `open_prompts`. Texts are taken as
            they are.
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
        steps: Told of what is done before and after the prompts are run.
        processes: Who shares the work, from `find_processes`, when every process of a launcher makes this call; they
            take turns with the shards.

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
    request = CaptureRequest(
        open_prompts(prompts),
        layers=layers,
        site=site,
        positions=positions,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
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
    max_samples: int | None = None,
    *,
    store: str | Path | None = None,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = DEFAULT_POSITIONS,
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    seed: int = 0,
    store_dtype: str = AS_CAPTURED,
    model_key: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    steps: Steps | None = None,
    processes: Processes = ALONE,
) -> CapturePaths:
    """Capture any number of pairs into a folder of shards, and rank their layers, in memory that has a bound.

    As `capture_prompt_file`, for pairs: their prompts lie in turn, positive and negative, in the shards. The layers are
    ranked at the end, from the shards, one layer at a time.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        pairs: A `.jsonl` or `.csv` file or the folder of a data set, see `PairFile`, whose texts are taken as they are;
            or a concept, by its name or its `.toml` file, as in `capture_from_concept`.
        name: A path, as in "activations/honesty"; a plain name when `store` is given.
        layers: See `parse_layers`; None for all.
        max_samples: Most pairs of a concept; None for every combination.
        store: The folder to save into.
        site: See `capture_activations`.
        positions: See `parse_positions`.
        batch_size: Most prompts in one forward pass, None for as many as run well.
        prefix_reuse: See `capture_activations`; beginnings are shared within a shard.
        seed: Of the draw of a concept's pairs.
        store_dtype: `as captured`, `float32` or `bfloat16`, which halves float32 on disk.
        model_key: Short name of the model, for the record; the alias it was loaded by unless given.
        force: Whether an earlier capture of that name, finished or not, is replaced.
        progress: Called with prompts done and in total.
        steps: Told of what is done before and after the prompts are run.
        processes: As in `capture_prompt_file`.

    Returns:
        Where the files lie; `load_activations` reads them as it reads any contrast, a state when it is looked at.

    Raises:
        RequestError: The file or concept cannot be read, or a site, layers, positions or a dtype do not exist.
        CaptureError: A prompt is too long, or states are unusable.
        ModelError: The model fails the check, or does not have the site.
        StoreError: The name is taken, an unfinished capture was begun otherwise, or there is no room.

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
        max_samples=max_samples,
        seed=seed,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        alias=model_key,
        paths=locate(name, store),
        force=force,
        shards=True,
        store_dtype=store_dtype,
    )
    return capture_and_save(model, tokenizer, request, progress=progress, steps=steps, processes=processes)


def find_pairs(pairs: str | Path) -> Concept | PairFile:
    """A file of pairs where the name is that of one, else a concept.

    Args:
        pairs: A `.jsonl` or `.csv` file, the folder of a data set, the name of a concept, or its `.toml` file.

    Raises:
        RequestError: It cannot be read, or there is no such concept.
    """
    path = user_path(pairs)
    return open_pairs(path) if path.suffix.lower() in PAIR_FILES or is_dataset(path) else load_concept(pairs)
