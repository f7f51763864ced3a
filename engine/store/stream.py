"""Capture prompts or pairs of any number into shards, and go on where a run was interrupted.

Knows what a user asks for. `engine.store.planned` plans it and sees it through.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.capture.batches import DEFAULT_BATCH_SIZE
from engine.capture.layers import LayerSpec
from engine.capture.positions import DEFAULT_POSITIONS, PositionSpec
from engine.capture.settings import Settings
from engine.capture.sites import DEFAULT_SITE
from engine.concepts.catalog import load_concept
from engine.concepts.dataset_folder import is_dataset
from engine.concepts.pair_files import PAIR_FILES, PairFile, open_pairs
from engine.concepts.prompt_file import open_prompts
from engine.paths import user_path
from engine.processes import ALONE, Processes
from engine.progress import Progress, Steps, untold
from engine.records.concepts import Concept
from engine.store.names import CapturePaths, locate
from engine.store.planned import Wanted, capture_planned
from engine.store.shard_run import AS_CAPTURED
from engine.store.survey import PromptSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
