"""Capture prompts and pairs in memory: the how-to's functions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.capture.prompts import PairCheck, TokenizedPrompt, tokenize_prompts
from engine.capture.provenance import trace_provenance
from engine.capture.run import align_rows, aligned_mask, capture_stacked, run_capture
from engine.capture.selection import DEFAULT_BATCH_SIZE, LayerSpec, PositionSpec
from engine.capture.settings import Settings
from engine.capture.sites import DEFAULT_SITE
from engine.concepts.catalog import load_concept
from engine.concepts.pairs import DEFAULT_SAMPLES, render_pairs
from engine.errors import CaptureError
from engine.inputs import is_text, plain_text, plain_texts, require_whole
from engine.models.structure import find_blocks
from engine.records.captures import ActivationData, Concept, ContrastData, Factors
from engine.runtime import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def capture_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Iterable[str],
    layers: LayerSpec = None,
    use_hooks: bool = False,
    *,
    rendered: bool = False,
    site: str = DEFAULT_SITE,
    positions: PositionSpec = "all",
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    progress: Progress | None = None,
) -> ActivationData:
    """Capture hidden states of one prompt or several: the residual stream after blocks, unless another site is named.

    Args:
        model: From `load_model_and_tokenizer`, or any causal language model of transformers. Left as it was found.
        tokenizer: Its tokenizer.
        prompt: A text, taken as it is: no chat template is applied. Or several: a list, tuple, array, Series or
            generator of texts.
        layers: See `parse_layers`; None for all.
        use_hooks: Stop each pass after the last layer wanted; the states are the same bits. Sites other than
            `resid_post` are read so in any case.
        rendered: Whether the text went through a chat template, and so holds its special tokens.
        site: What is read: `resid_post`, the stream after a block, before any final norm; `resid_pre`, the stream that
            the block takes in; `attn_out` and `mlp_out`, what its attention and its feed-forward add to the stream. Or
            what has no layers and is stored under the block that it adjoins, the first or the last: `embed`, what
            enters block 0, and `final_norm`, what the final norm puts out.
        positions: See `parse_positions`.
        batch_size: Most prompts in one forward pass, None for as many as run well; 1 for states that do not depend on
            the other prompts' shapes.
        prefix_reuse: Whether what prompts share at the beginning is run once, where the model allows it.
        progress: Called with prompts done and in total.

    Returns:
        States of shape `(batch, kept tokens, hidden)` for each layer, on the CPU; `[:, -1, :]` is the last kept token.

    Raises:
        RequestError: A site, layers or positions that do not exist.
        CaptureError: A prompt that is no text, empty or too long, or states that are unusable.
        ModelError: The model fails the check, or does not have the site.

    Example:
        >>> model, tokenizer, config = load_model_and_tokenizer("smollm2")
        >>> data = capture_activations(model, tokenizer, "Tell me a story", layers=[16])
        >>> data["activations"][16].shape
        torch.Size([1, 4, 576])
    """
    single = is_text(prompt)
    texts = [plain_text(prompt, "the prompt")] if single else plain_texts(prompt)
    if not texts:
        raise CaptureError("there are no prompts", expected="at least one")
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
    prompts = tokenize_prompts(model, tokenizer, texts, rendered=rendered)
    data = run_capture(model, prompts, settings)[0] if single else _together(model, prompts, settings)
    data["provenance"] = trace_provenance(model, settings)
    return data


def _together(model: PreTrainedModel, prompts: Sequence[TokenizedPrompt], settings: Settings) -> ActivationData:
    """Several prompts as one batch whose rows end together, zeros in front of the shorter ones."""
    states = capture_stacked(model, prompts, settings)
    ids = [prompt.ids for prompt in prompts]
    return ActivationData(
        activations={layer: align_rows(states.layers.pop(layer), states.kept) for layer in settings.layers},
        input_ids=align_rows(torch.tensor(list(chain(*ids))), [len(row) for row in ids]),
        tokens=[prompt.tokens for prompt in prompts],
        prompt=[prompt.text for prompt in prompts],
        num_layers=len(find_blocks(model).blocks),
        captured_layers=list(settings.layers),
        attention_mask=aligned_mask(states.kept).long(),
    )


log = logging.getLogger(__name__)


def capture_contrastive_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    positive_prompts: Iterable[str],
    negative_prompts: Iterable[str],
    layers: LayerSpec = None,
    use_hooks: bool = False,
    *,
    factors: Iterable[Factors] | None = None,
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
        positive_prompts: Texts of the positive class, taken as they are: a list, array, Series or generator.
        negative_prompts: As many texts of the negative class.
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
        CaptureError: The classes have different lengths, are empty or have the same prompts, a pair has the same prompt
            twice, or a prompt cannot be captured.
        RequestError: A site, layers or positions that do not exist.
        ModelError: The model fails the check, or does not have the site.

    Example:
        >>> data = capture_contrastive_activations(model, tokenizer, ["Be honest."], ["Be deceptive."], layers=[16])
        >>> data["positive"][0]["activations"][16].shape
        torch.Size([1, 3, 576])
    """
    positive, negative = (
        plain_texts(positive_prompts, "positive prompt"),
        plain_texts(negative_prompts, "negative prompt"),
    )
    made_from = None if factors is None else _plain_factors(factors, len(positive))
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
    data = _capture_pairs(model, tokenizer, positive, negative, settings, rendered=False)
    if made_from is not None:
        data["factors"] = made_from
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
        model,
        settings,
        alias=None if model_key is None else str(model_key),
        chat_template=pairs.chat_template,
        template_time=pairs.moment,
        seed=require_whole(seed, "the seed"),
    )
    return data


def _plain_factors(factors: Iterable[Factors], pairs: int) -> list[Factors]:
    """What pairs were made from, as it can be stored; refused unless it is said of every pair."""
    plain = []
    for number, known in enumerate(factors):
        if not isinstance(known, Mapping) or known.keys() != Factors.__annotations__.keys():
            raise CaptureError(
                f"the factors of pair {number} are {known!r}",
                expected=f"a dictionary with {', '.join(Factors.__annotations__)}",
            )
        values = {key: plain_text(value, f"the {key} of pair {number}") for key, value in known.items()}
        plain.append(Factors(template=values["template"], persona=values["persona"], topic=values["topic"]))
    if len(plain) != pairs:
        raise CaptureError(f"there are {pairs} pairs and {len(plain)} sets of factors", expected="one set a pair")
    return plain


def _capture_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    positive: list[str],
    negative: list[str],
    settings: Settings,
    *,
    rendered: bool,
) -> ContrastData:
    if len(positive) != len(negative) or not positive:
        raise CaptureError(
            f"there are {len(positive)} positive and {len(negative)} negative prompts",
            expected="as many of one as of the other, at least one",
        )
    # Both classes in one run: the prompts of a pair are alike in length and so meet in the same batch.
    texts = list(chain.from_iterable(zip(positive, negative, strict=True)))
    sides = ("positive", "negative")
    prompts = tokenize_prompts(model, tokenizer, texts, rendered=rendered, sides=sides)
    check = PairCheck()
    check.add(prompts)
    check.require_contrast()
    captured = run_capture(model, prompts, settings)
    return ContrastData(
        positive=captured[0::2],
        negative=captured[1::2],
        num_pairs=len(positive),
        concept=None,
        layers=settings.layers,
    )
