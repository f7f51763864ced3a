"""How large a capture will be, told before it is run, and whether it goes into one file or into shards.

Counts one prompt or pair at a time.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING

import torch

from engine.capture.estimate import estimate_capture
from engine.capture.layers import LayerSpec
from engine.capture.positions import DEFAULT_POSITIONS, Positions, PositionSpec, parse_positions
from engine.capture.sites import DEFAULT_SITE, wanted_layers
from engine.concepts.pair_files import PairFile, WrittenPairs
from engine.concepts.prompt_file import PromptFile
from engine.main_memory import main_memory
from engine.models.description import describe_model
from engine.progress import Steps
from engine.records.captures import SourceEstimate
from engine.records.concepts import Concept
from engine.records.files import PromptList
from engine.store.names import MOST_IN_MEMORY
from engine.store.survey import PromptSource, Source, survey_prompts

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
