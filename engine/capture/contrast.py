"""Capture pairs: `capture_contrastive_activations` for prompts of one's own, `capture_from_concept` for a concept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from engine.capture.batches import DEFAULT_BATCH_SIZE
from engine.capture.layers import LayerSpec
from engine.capture.positions import PositionSpec
from engine.capture.prompts import tokenize_prompts
from engine.capture.provenance import trace_provenance
from engine.capture.run import run_capture
from engine.capture.settings import Settings
from engine.capture.sites import DEFAULT_SITE
from engine.concepts.catalog import load_concept
from engine.concepts.pairs import DEFAULT_SAMPLES
from engine.concepts.rendered import render_pairs
from engine.errors import CaptureError
from engine.progress import Progress
from engine.records.captures import ContrastData
from engine.records.concepts import Concept, Factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def capture_contrastive_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    positive_prompts: Sequence[str],
    negative_prompts: Sequence[str],
    layers: LayerSpec = None,
    use_hooks: bool = False,
    *,
    factors: Sequence[Factors] | None = None,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = "all",
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    progress: Progress | None = None,
) -> ContrastData:
    """Capture pairs of prompts: the first positive with the first negative, and so on.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        positive_prompts: Texts of one side, taken as they are.
        negative_prompts: As many texts of the other side.
        layers: See `parse_layers`; None for all.
        use_hooks: Stop each pass after the last layer wanted.
        factors: What each pair was made from, for statistics that leave one of these out.
        site: See `capture_activations`.
        positions: See `parse_positions`.
        batch_size: Most prompts in one forward pass, None for as many as run well.
        prefix_reuse: See `capture_activations`.
        progress: Called with prompts done and in total.

    Returns:
        One capture a prompt, each of shape `(1, kept tokens, hidden)` at each layer.

    Raises:
        CaptureError: The sides have different lengths or are empty, or a prompt cannot be captured.
        RequestError: A site, layers or positions that do not exist.
        ModelError: The model fails the check, or does not have the site.

    Example:
        >>> data = capture_contrastive_activations(model, tokenizer, ["Be honest."], ["Be deceptive."], layers=[16])
        >>> data["positive"][0]["activations"][16].shape
        torch.Size([1, 3, 576])
    """
    settings = Settings.for_model(
        model,
        layers,
        positions,
        site=site,
        use_hooks=use_hooks,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        progress=progress,
    )
    data = _capture_pairs(model, tokenizer, positive_prompts, negative_prompts, settings, rendered=False)
    if factors is not None:
        if len(factors) != data["num_pairs"]:
            raise CaptureError(f"there are {data['num_pairs']} pairs and {len(factors)} sets of factors")
        data["factors"] = list(factors)
    data["provenance"] = trace_provenance(model, settings)
    return data


def capture_from_concept(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    concept: str | Path | Concept,
    model_key: str | None = None,
    layers: LayerSpec = None,
    max_samples: int | None = DEFAULT_SAMPLES,
    use_hooks: bool = False,
    *,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = "all",
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> ContrastData:
    """Capture pairs of a concept, drawn evenly over its personas, templates and topics.

    Prompts go through the tokenizer's own chat template; a base model, which has none, gets plain text.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        concept: A name, the path of a `.toml` file, or a concept.
        model_key: Short name of the model, for the record; the alias it was loaded by unless given.
        layers: See `parse_layers`; None for all.
        max_samples: Most pairs; None for every combination.
        use_hooks: Stop each pass after the last layer wanted.
        site: See `capture_activations`.
        positions: See `parse_positions`.
        batch_size: Most prompts in one forward pass, None for as many as run well.
        prefix_reuse: See `capture_activations`.
        seed: Of the draw.
        progress: Called with prompts done and in total.

    Returns:
        As `capture_contrastive_activations`, with the factors of each pair.

    Raises:
        RequestError: Unknown concept, site, layers or positions.
        CaptureError: A prompt cannot be captured.
        ModelError: The model fails the check, or does not have the site.

    Example:
        >>> data = capture_from_concept(model, tokenizer, "honesty", layers=[14, 15, 16], max_samples=5)
        >>> data["num_pairs"], data["layers"]
        (5, [14, 15, 16])
    """
    chosen = concept if isinstance(concept, Concept) else load_concept(concept)
    settings = Settings.for_model(
        model,
        layers,
        positions,
        site=site,
        use_hooks=use_hooks,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        progress=progress,
    )
    pairs = render_pairs(tokenizer, chosen, max_samples, seed)
    if pairs.chat_template is None:
        log.info("the tokenizer has no chat template: prompts are plain text, as for a base model")
    rendered = pairs.chat_template is not None
    data = _capture_pairs(model, tokenizer, pairs.positive, pairs.negative, settings, rendered=rendered)
    data["concept"] = chosen.name
    data["factors"] = pairs.factors
    data["provenance"] = trace_provenance(
        model, settings, alias=model_key, chat_template=pairs.chat_template, seed=seed
    )
    return data


def _capture_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    positive: Sequence[str],
    negative: Sequence[str],
    settings: Settings,
    *,
    rendered: bool,
) -> ContrastData:
    if len(positive) != len(negative) or not positive:
        raise CaptureError(
            f"there are {len(positive)} positive and {len(negative)} negative prompts",
            expected="as many of one as of the other, at least one",
        )
    # Both sides in one run: the prompts of a pair are alike in length and so meet in the same batch.
    texts = list(chain.from_iterable(zip(positive, negative, strict=True)))
    sides = ("positive", "negative")
    captured = run_capture(model, tokenize_prompts(model, tokenizer, texts, rendered=rendered, sides=sides), settings)
    return ContrastData(
        positive=captured[0::2],
        negative=captured[1::2],
        num_pairs=len(positive),
        concept=None,
        layers=settings.layers,
    )
