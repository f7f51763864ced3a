"""What `layerscope capture` does once it is known what is wanted: load, run, save, and say so."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.cli.console import Narrator
from engine.concepts.pair_files import PairFile, WrittenPairs
from engine.concepts.text_files import PromptFile
from engine.models.placement import LoadOptions
from engine.records.captures import Concept
from engine.store.names import CapturePaths, require_free

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Source = Concept | PromptFile | PairFile
"""What can be captured in shards."""

_PROMPTS = "running prompts"


def load(
    narrator: Narrator,
    model: str,
    device: str,
    options: LoadOptions,
    *,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and say what it is."""
    with narrator.working(f"loading {model}"):
        from engine.models.forward import input_device
        from engine.models.loading import load_model_and_tokenizer

        loaded, tokenizer, config = load_model_and_tokenizer(
            model, device, trust_remote_code=trust_remote_code, **options.arguments()
        )
    narrator.say(
        f"{config.source.model_id}: {config.num_layers} layers of width {config.hidden_size},"
        f" {loaded.dtype} on {input_device(loaded)}; the check at load passed"
    )
    return loaded, tokenizer


def too_large(
    narrator: Narrator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    what: dict[str, Any],
) -> bool:
    """Whether a source goes into shards by itself, and if so, say it."""
    from engine.store.save import goes_into_shards

    with narrator.steps() as steps:
        return goes_into_shards(model, tokenizer, source, **what, steps=steps)


def capture_shards(
    narrator: Narrator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    paths: CapturePaths,
    how: dict[str, Any],
) -> None:
    """Run a source into a folder of shards."""
    from engine.store.save import capture_contrast_in_shards, capture_prompt_file

    with narrator.steps() as steps:
        told: dict[str, Any] = {"progress": partial(steps, _PROMPTS), "steps": steps}
        where: dict[str, Any] = how | told | {"store": paths.store}
        if isinstance(source, PromptFile):
            capture_prompt_file(model, tokenizer, source.path, paths.name, **where)
        else:
            pairs = source if isinstance(source, Concept) else source.path
            capture_contrast_in_shards(model, tokenizer, pairs, paths.name, **where)
    narrator.say(f"saved {paths.shards}{os.sep} and {paths.record.name}")


def capture_in_memory(
    narrator: Narrator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Concept | WrittenPairs | list[str],
    paths: CapturePaths,
    how: dict[str, Any],
    *,
    force: bool,
) -> None:
    """Run what fits into memory, and save it as one file."""
    from engine.store.save import capture_source
    from engine.store.write import save_activations

    require_free(paths, force=force)  # an unfinished capture in shards is in the way, too
    with narrator.steps() as steps:
        data = capture_source(model, tokenizer, chosen, how | {"progress": partial(steps, _PROMPTS)})
        steps(f"saving {paths.tensors}", 0, 0)
        save_activations(data, paths.name, store=paths.store, force=force, steps=steps)
    megabytes = paths.tensors.stat().st_size / 1e6
    narrator.say(f"saved {paths.tensors} ({megabytes:.1f} MB) and {paths.record.name}")
