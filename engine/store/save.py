"""How large a capture will be, told before it is run, and whether it goes into one file or into shards.

Counts one prompt or pair at a time.
"""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.capture.activations import capture_activations, capture_contrastive_activations, capture_from_concept
from engine.capture.estimate import estimate_capture
from engine.capture.selection import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_POSITIONS,
    LayerSpec,
    Positions,
    PositionSpec,
    parse_positions,
)
from engine.capture.settings import Settings
from engine.capture.sites import DEFAULT_SITE, wanted_layers
from engine.concepts.catalog import load_concept
from engine.concepts.pair_files import PAIR_FILES, PairFile, WrittenPairs, open_pairs, read_pairs
from engine.concepts.rows import is_dataset
from engine.concepts.text_files import PromptFile, open_prompts
from engine.inputs import plain_texts, user_path
from engine.models.description import describe_model
from engine.records.captures import CaptureData, Concept, SourceEstimate
from engine.records.files import PromptList
from engine.runtime import ALONE, Processes, Progress, Steps, main_memory, untold
from engine.store.names import MOST_IN_MEMORY, CapturePaths, locate, require_free
from engine.store.resume import Wanted, capture_planned
from engine.store.shard_run import AS_CAPTURED
from engine.store.sources import PromptSource, Source, survey_prompts
from engine.store.write import save_activations

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_SAMPLE = 512  # prompts: as many as a shard holds, so that what they share is shared here as well

log = logging.getLogger(__name__)


def goes_into_shards(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    layers: LayerSpec = None,
    max_samples: int | None = None,
    *,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = DEFAULT_POSITIONS,
    seed: int = 0,
    most_in_memory: int = MOST_IN_MEMORY,
    steps: Steps | None = None,
) -> bool:
    """Whether a capture goes into a folder of shards: files of prompts do, and what is too large for memory.

    Args:
        model: See `capture_contrast_in_shards`, as all that is not said here.
        tokenizer: Its tokenizer.
        source: What to capture.
        layers: See `parse_layers`; None for all.
        max_samples: Most pairs of a concept; None for every combination.
        site: See `capture_activations`.
        positions: See `parse_positions`.
        seed: Of the draw of a concept's pairs.
        most_in_memory: Bytes of states above which it does; half of the free memory, where that is less.
        steps: Told now and then how many prompts were counted.

    Example:
        >>> goes_into_shards(model, tokenizer, load_concept("honesty"), max_samples=10)
        False
    """
    if isinstance(source, PromptFile):
        return True
    prompts = PromptSource.of(tokenizer, source, max_samples, seed)
    wanted, numbers = parse_positions(positions), wanted_layers(site, layers, describe_model(model).receipt)
    found = survey_prompts(model, tokenizer, prompts, wanted, steps)
    needed = _in_memory(source, found) * _state_bytes(model, wanted, len(numbers))
    large = needed > _room(most_in_memory)
    if large:
        log.info("%.1f GB of states: into shards, in bounded memory; it can be gone on with", needed / 1e9)
    return large


def estimate_source(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    layers: LayerSpec = None,
    max_samples: int | None = None,
    *,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = DEFAULT_POSITIONS,
    seed: int = 0,
    most_in_memory: int = MOST_IN_MEMORY,
    steps: Steps | None = None,
) -> SourceEstimate:
    """Count all prompts of a capture without holding them, and time a small piece of it.

    Args:
        model: See `goes_into_shards`, as all others.
        tokenizer: Its tokenizer.
        source: What to capture.
        layers: See `parse_layers`; None for all.
        max_samples: Most pairs of a concept; None for every combination.
        site: See `capture_activations`.
        positions: See `parse_positions`.
        seed: Of the draw of a concept's pairs.
        most_in_memory: See `goes_into_shards`.
        steps: Told now and then how many prompts were counted.

    Returns:
        The estimate. Prompts, tokens and bytes of the states are exact; seconds are what `estimate_capture` says of
        the first 512 prompts, scaled by the number of tokens.

    Raises:
        CaptureError: A prompt is empty or too long.
        ModelError: The model fails the check, or does not have the site.
        RequestError: A file cannot be read, or a site, layers or positions do not exist.

    Example:
        >>> estimate = estimate_source(model, tokenizer, ["Tell me a story"] * 1000, layers=[16])
        >>> estimate["prompts"], estimate["tokens"], estimate["bytes"]
        (1000, 4000, 2304000)
    """
    prompts = PromptSource.of(tokenizer, source, max_samples, seed)
    wanted, numbers = parse_positions(positions), wanted_layers(site, layers, describe_model(model).receipt)
    found = survey_prompts(model, tokenizer, prompts, wanted, steps)
    sample = [text for item in islice(prompts.items(), _SAMPLE // prompts.sides) for text in item.texts]
    rendered = prompts.chat_template is not None
    timed = estimate_capture(model, tokenizer, sample, layers, site=site, positions=positions, rendered=rendered)
    state_bytes = _state_bytes(model, wanted, len(numbers))
    large = _in_memory(source, found) * state_bytes > _room(most_in_memory)
    return SourceEstimate(
        prompts=found["count"],
        tokens=found["tokens"],
        seconds=round(timed["seconds"] * found["tokens"] / timed["tokens"], 2),
        bytes=found["kept_in_all"] * state_bytes,
        in_shards=large or isinstance(source, PromptFile),
    )


def _in_memory(source: Source, found: PromptList) -> int:
    """States of a layer when they are in memory: rows of several prompts are all as long as the longest."""
    pairs = isinstance(source, Concept | WrittenPairs | PairFile)
    return found["kept_in_all"] if pairs else found["kept"] * found["count"]


def _room(most_in_memory: int) -> int:
    """How many bytes may be in memory: half of what is free, for a model that runs and a ranking want some too."""
    return min(most_in_memory, main_memory().free // 2)


def _state_bytes(model: PreTrainedModel, positions: Positions, layers: int) -> int:
    """Bytes of a token's states."""
    dtype = torch.float32 if positions.mean else model.dtype
    return layers * describe_model(model).hidden_size * dtype.itemsize


def capture_into_store(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    name: str | Path,
    layers: LayerSpec = None,
    max_samples: int | None = None,
    *,
    store: str | Path | None = None,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = DEFAULT_POSITIONS,
    seed: int = 0,
    model_key: str | None = None,
    force: bool = False,
    most_in_memory: int = MOST_IN_MEMORY,
    progress: Progress | None = None,
    steps: Steps | None = None,
) -> CapturePaths:
    """Capture and save, in memory and as one file, or in bounded memory and into shards, see `goes_into_shards`.

    What was interrupted in shards is gone on with by the same call.

    Args:
        model: See `capture_contrast_in_shards`, as all that is not said here.
        tokenizer: Its tokenizer.
        source: A concept, pairs, a file of pairs or prompts, or prompts.
        name: A path; a plain name when `store` is given.
        layers: See `parse_layers`; None for all.
        max_samples: Most pairs of a concept; None for every combination.
        store: The folder to save into.
        site: See `capture_activations`.
        positions: See `parse_positions`.
        seed: Of the draw of a concept's pairs.
        model_key: Short name of the model, for the record of a concept and of shards.
        force: Whether an earlier capture of that name, finished or not, is replaced.
        most_in_memory: Bytes of states above which it goes into shards.
        progress: Called with prompts done and in total; what it raises ends the work.
        steps: Told of what is done before and after; what it raises ends the work.

    Returns:
        Where the files lie.

    Raises:
        LayerscopeError: As `capture_contrast_in_shards` and `save_activations`.

    Example:
        >>> paths = capture_into_store(model, tokenizer, ["Tell me a story", "And another"], "runs/two", force=True)
        >>> paths.tensors.name, paths.in_shards
        ('two.pt', False)
    """
    paths = locate(name, store)
    require_free(paths, force=force, resume=True)
    told = steps or untold
    what: dict[str, Any] = {"layers": layers, "site": site, "positions": positions}
    draw: dict[str, Any] = {"max_samples": max_samples, "seed": seed}
    if (paths.unfinished and not force) or goes_into_shards(
        model, tokenizer, source, **what, **draw, most_in_memory=most_in_memory, steps=steps
    ):
        settings = Settings.for_model(
            model,
            layers,
            positions,
            site=site,
            use_hooks=True,
            batch_size=DEFAULT_BATCH_SIZE,
            prefix_reuse=True,
            progress=None,
        )
        wanted = Wanted(paths, AS_CAPTURED, model_key, force, progress or untold, ALONE, told)
        return capture_planned(model, tokenizer, PromptSource.of(tokenizer, source, **draw), wanted, settings)
    if isinstance(source, Concept):
        what |= {"model_key": model_key, **draw}
    data = capture_source(model, tokenizer, source, what | {"use_hooks": True, "progress": progress})
    return save_activations(data, paths.name, store=paths.store, force=force, steps=told)


def capture_source(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Source, how: dict[str, Any]
) -> CaptureData:
    """Capture in memory whatever can be captured.

    Args:
        model: What to run it through.
        tokenizer: Its tokenizer.
        source: A concept, pairs, a file of pairs or prompts, or prompts.
        how: What the capture function of such a source takes beside it.

    Example:
        >>> capture_source(model, tokenizer, ["Tell me a story"], {"layers": [16]})["captured_layers"]
        [16]
    """
    if isinstance(source, Concept):
        return capture_from_concept(model, tokenizer, source, **how)
    if isinstance(source, PairFile):
        source = read_pairs(source.path)
    if isinstance(source, WrittenPairs):
        return capture_contrastive_activations(
            model, tokenizer, source.positive, source.negative, factors=source.factors, **how
        )
    prompts = [*source.texts()] if isinstance(source, PromptFile) else plain_texts(source)
    return capture_activations(model, tokenizer, prompts[0] if len(prompts) == 1 else prompts, **how)


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
    source = PromptSource.of_prompts(open_prompts(prompts))
    wanted = Wanted(locate(name, store), store_dtype, model_key, force, progress or untold, processes, steps or untold)
    return capture_planned(
        model, tokenizer, source, wanted, _settings(model, layers, site, positions, batch_size, prefix_reuse)
    )


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
    source = PromptSource.of(tokenizer, _pairs(pairs), max_samples, seed)
    wanted = Wanted(locate(name, store), store_dtype, model_key, force, progress or untold, processes, steps or untold)
    return capture_planned(
        model, tokenizer, source, wanted, _settings(model, layers, site, positions, batch_size, prefix_reuse)
    )


def _pairs(pairs: str | Path | Concept) -> Concept | PairFile:
    if isinstance(pairs, Concept):
        return pairs
    path = user_path(pairs)
    return open_pairs(path) if path.suffix.lower() in PAIR_FILES or is_dataset(path) else load_concept(pairs)


def _settings(
    model: PreTrainedModel,
    layers: LayerSpec,
    site: str,
    positions: PositionSpec,
    batch_size: int | None,
    prefix_reuse: bool,
) -> Settings:
    return Settings.for_model(
        model,
        layers,
        positions,
        site=site,
        use_hooks=True,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        progress=None,
    )
