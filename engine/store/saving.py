"""Capture into a store whatever can be captured: into one file what fits into memory, all else into shards.

Knows which way a capture takes. Does not know how prompts are run or files written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.capture.activations import capture_activations
from engine.capture.batches import DEFAULT_BATCH_SIZE
from engine.capture.contrast import capture_contrastive_activations, capture_from_concept
from engine.capture.layers import LayerSpec
from engine.capture.positions import DEFAULT_POSITIONS, PositionSpec
from engine.capture.settings import Settings
from engine.capture.sites import DEFAULT_SITE
from engine.concepts.pair_files import PairFile, WrittenPairs, read_pairs
from engine.concepts.prompt_file import PromptFile
from engine.plain import plain_texts
from engine.processes import ALONE
from engine.progress import Progress, Steps, untold
from engine.records.captures import CaptureData
from engine.records.concepts import Concept
from engine.store.names import MOST_IN_MEMORY, CapturePaths, locate, require_free
from engine.store.planned import Wanted, capture_planned
from engine.store.shard_run import AS_CAPTURED
from engine.store.size import goes_into_shards
from engine.store.survey import PromptSource, Source
from engine.store.write import save_activations

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
