"""Capture prompts, pairs and concepts in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.capture.dialogues import response_progress, tell_unusual
from engine.capture.prepare import HeldPrompts, PreparedCapture, prepare_capture
from engine.capture.prompts import TokenizedPrompt
from engine.capture.request import DEFAULT_BATCH_SIZE, CaptureRequest, written_pairs
from engine.capture.run import align_rows, aligned_mask, capture_stacked, flat_ids, run_capture
from engine.capture.selection import LayerSpec, PositionSpec
from engine.capture.sites import DEFAULT_SITE
from engine.concepts.catalog import load_concept
from engine.concepts.pairs import QUICK_SAMPLES
from engine.records.captures import ActivationData, CaptureData, Concept, ContrastData, Factors
from engine.runtime import Progress, Steps, ignore_progress

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
    positions: PositionSpec | None = None,
    respond: int | None = None,
    sample: bool = False,
    seed: int = 0,
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    compiled: bool | None = None,
    progress: Progress | None = None,
) -> ActivationData:
    """Capture hidden states of one or more prompts, by default the residual stream.

    Args:
        model: From `load_model_and_tokenizer`, or any causal language model of transformers. It is not modified.
        tokenizer: Its tokenizer.
        prompt: One text, or a list, tuple, array, Series or generator of texts. No chat template is applied.
        layers: See `parse_layers`; None for all.
        use_hooks: Stop each forward pass after the last requested layer; the states are bit-identical. Sites other than
            `resid_post` are always read this way.
        rendered: Whether the text went through a chat template and already contains special tokens.
        site: What to read. `resid_post`: the residual stream after a block, before any final norm. `resid_pre`: the
            residual stream before a block. `attn_out` and `mlp_out`: the attention output and the MLP output, as added
            to the residual stream. `embed`, the input of block 0, and `final_norm`, the output of the final norm, have
            no layers; they are stored under the first and the last block.
        positions: See `parse_positions`; None for all tokens, or with `respond` for the mean over each response.
        respond: Let the model respond to each prompt first, with at most this many tokens. The states are those of the
            prompt followed by its response; `response` holds the texts.
        sample: Sample the responses, with the model's own generation settings, instead of taking the most likely
            tokens.
        seed: Seed for sampling responses.
        batch_size: Maximum number of prompts in a forward pass; None for as many as the token budget allows. With 1,
            states do not depend on the shapes of other prompts.
        prefix_reuse: Run shared prefixes once, if the model allows it.
        compiled: Compile the decoder blocks, if the model allows it: see `CaptureRequest`.
        progress: Called with the number of finished prompts and their total.

    Returns:
        States of shape `(batch, kept tokens, hidden)` for each layer, on the CPU, in the model's dtype (float32 for
        means). `[:, -1, :]` is the last kept token.

    Raises:
        RequestError: The site, layers or positions do not exist.
        CaptureError: A prompt is not a text, is empty or is too long, or states are not finite or all zero.
        ModelError: The model fails the load check, or does not have the site.

    Example:
        >>> model, tokenizer, config = load_model_and_tokenizer("smollm2")
        >>> data = capture_activations(model, tokenizer, "Tell me a story", layers=[16])
        >>> data["activations"][16].shape
        torch.Size([1, 4, 576])
    """
    request = CaptureRequest(
        prompt,
        layers=layers,
        site=site,
        positions=_or_all(positions, responses=respond is not None),
        respond=respond,
        sample=sample,
        seed=seed,
        rendered=rendered,
        use_hooks=use_hooks,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        compiled=compiled,
    )
    return cast("ActivationData", capture_in_memory(prepare_capture(model, tokenizer, request), progress))


def capture_contrastive_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    positive_prompts: Iterable[str],
    negative_prompts: Iterable[str],
    layers: LayerSpec = None,
    use_hooks: bool = False,
    *,
    factors: Iterable[Factors] | None = None,
    positive_responses: Iterable[str] | None = None,
    negative_responses: Iterable[str] | None = None,
    site: str = DEFAULT_SITE,
    positions: PositionSpec | None = None,
    respond: int | None = None,
    sample: bool = False,
    seed: int = 0,
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    compiled: bool | None = None,
    progress: Progress | None = None,
) -> ContrastData:
    """Capture pairs of positive and negative prompts, paired in order.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        positive_prompts: Texts of the positive class: a list, array, Series or generator. No chat template is applied.
        negative_prompts: The same number of texts of the negative class.
        layers: See `parse_layers`; None for all.
        use_hooks: Stop each forward pass after the last requested layer.
        factors: Persona, template and topic of each pair, for leave-one-group-out statistics.
        positive_responses: A response to each positive prompt, written by any model or person. Each is tokenized alone
            and follows its prompt.
        negative_responses: A response to each negative prompt.
        site: See `capture_activations`.
        positions: See `parse_positions`; None for all tokens, or with responses for `response`.
        respond: Let the model respond to each prompt first, with at most this many tokens.
        sample: Sample the responses, with the model's own generation settings.
        seed: Seed for sampling responses.
        batch_size: Maximum number of prompts in a forward pass; None for as many as the token budget allows.
        prefix_reuse: See `capture_activations`.
        compiled: See `CaptureRequest`.
        progress: Called with the number of finished prompts and their total.

    Returns:
        One capture per prompt, each of shape `(1, kept tokens, hidden)` at each layer.

    Raises:
        CaptureError: The classes differ in length, are empty or have identical prompts, a pair has two identical
            prompts, a response is missing or empty, or a prompt cannot be captured.
        RequestError: The site, layers or positions do not exist.
        ModelError: The model fails the load check, or does not have the site.

    Example:
        >>> data = capture_contrastive_activations(model, tokenizer, ["Be honest."], ["Be deceptive."], layers=[16])
        >>> data["positive"][0]["activations"][16].shape
        torch.Size([1, 3, 576])
    """
    request = CaptureRequest(
        written_pairs(positive_prompts, negative_prompts, factors, positive_responses, negative_responses),
        layers=layers,
        site=site,
        positions=_or_all(positions, responses=respond is not None or positive_responses is not None),
        respond=respond,
        sample=sample,
        seed=seed,
        use_hooks=use_hooks,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        compiled=compiled,
    )
    return cast("ContrastData", capture_in_memory(prepare_capture(model, tokenizer, request), progress))


def capture_from_concept(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    concept: str | Path | Concept,
    model_key: str | None = None,
    layers: LayerSpec = None,
    max_samples: int | None = QUICK_SAMPLES,
    use_hooks: bool = False,
    *,
    site: str = DEFAULT_SITE,
    positions: PositionSpec | None = None,
    respond: int | None = None,
    sample: bool = False,
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    prefix_reuse: bool = True,
    compiled: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ContrastData:
    """Capture pairs of a concept, sampled evenly over personas, templates and topics.

    Prompts are rendered with the tokenizer's chat template; a base model has none and gets plain text.

    Args:
        model: See `capture_activations`.
        tokenizer: Its tokenizer.
        concept: A name, the path of a `.toml` file, or a `Concept`.
        model_key: Short name of the model, for the record; defaults to the alias it was loaded by.
        layers: See `parse_layers`; None for all.
        max_samples: Maximum number of pairs; None for every combination. The default is a quarter of that of the
            command line, since all positions are kept by default.
        use_hooks: Stop each forward pass after the last requested layer.
        site: See `capture_activations`.
        positions: See `parse_positions`; None for all tokens, or with `respond` for the mean over each response.
        respond: Let the model respond to each prompt first, with at most this many tokens.
        sample: Sample the responses, with the model's own generation settings.
        batch_size: Maximum number of prompts in a forward pass; None for as many as the token budget allows.
        prefix_reuse: See `capture_activations`.
        compiled: See `CaptureRequest`.
        seed: Seed for sampling pairs and responses.
        progress: Called with the number of finished prompts and their total.

    Returns:
        The same as `capture_contrastive_activations`, with the factors of each pair.

    Raises:
        RequestError: The concept, site, layers or positions do not exist.
        CaptureError: A prompt cannot be captured.
        ModelError: The model fails the load check, or does not have the site.

    Example:
        >>> data = capture_from_concept(model, tokenizer, "honesty", layers=[14, 15, 16], max_samples=5)
        >>> data["num_pairs"], data["layers"]
        (5, [14, 15, 16])
    """
    request = CaptureRequest(
        concept if isinstance(concept, Concept) else load_concept(concept),
        layers=layers,
        site=site,
        positions=_or_all(positions, responses=respond is not None),
        respond=respond,
        sample=sample,
        max_samples=max_samples,
        seed=seed,
        use_hooks=use_hooks,
        batch_size=batch_size,
        prefix_reuse=prefix_reuse,
        compiled=compiled,
        alias=model_key,
    )
    return cast("ContrastData", capture_in_memory(prepare_capture(model, tokenizer, request), progress))


def _or_all(positions: PositionSpec | None, *, responses: bool) -> PositionSpec | None:
    """The positions of a capture in memory, by default all; with responses, the default of the request."""
    return "all" if positions is None and not responses else positions


def capture_in_memory(
    prepared: PreparedCapture, progress: Progress | None = None, steps: Steps | None = None
) -> CaptureData:
    """Run a prepared capture and return its states in memory.

    Args:
        prepared: From `prepare_capture`.
        progress: Called with the number of finished prompts and their total.
        steps: Called with the number of finished responses, if the model responds first.

    Returns:
        One prompt: its states. Several prompts: one left-padded batch. Pairs: one capture per prompt, each of shape
        `(1, kept tokens, hidden)` at each layer.

    Raises:
        CaptureError: States are not finite or all zero, or the model was changed during the capture.

    Example:
        >>> prepared = prepare_capture(model, tokenizer, CaptureRequest(["Tell me a story"], layers=[16]))
        >>> capture_in_memory(prepared)["captured_layers"]
        [16]
    """
    report = progress or ignore_progress
    prepared = replace(prepared, settings=prepared.compile(prepared.settings))
    held = prepared.with_responses(
        prepared.prompts(), prepared.settings, progress=response_progress(report, steps, prepared.found["count"])
    )
    if prepared.request.respond is not None:
        tell_unusual((each.response for each in held.prompts if each.response), prepared.request.respond)
    data: CaptureData
    if prepared.source.pairs:
        data = _pairs(prepared, held, report)
    elif isinstance(prepared.request.source, str):
        data = run_capture(prepared.model, held.prompts, prepared.settings, report)[0]
    else:
        data = _as_batch(prepared, held.prompts, report)
    data["provenance"] = prepared.provenance(prepared.settings)
    return data


def _pairs(prepared: PreparedCapture, held: HeldPrompts, progress: Progress) -> ContrastData:
    """Capture both classes in one run, so that prompts of a pair share a batch."""
    captured = run_capture(prepared.model, held.prompts, prepared.settings, progress)
    data = ContrastData(
        positive=captured[0::2],
        negative=captured[1::2],
        num_pairs=len(captured) // 2,
        concept=prepared.source.concept,
        layers=prepared.settings.layers,
    )
    if prepared.found["factors"]:
        data["factors"] = held.factors
    return data


def _as_batch(prepared: PreparedCapture, prompts: list[TokenizedPrompt], progress: Progress) -> ActivationData:
    """Capture several prompts as one batch, left-padded with zeros."""
    settings = prepared.settings
    states = capture_stacked(prepared.model, prompts, settings, progress)
    ids = [prompt.ids for prompt in prompts]
    data = ActivationData(
        activations={layer: align_rows(states.layers.pop(layer), states.kept) for layer in settings.layers},
        input_ids=align_rows(flat_ids(ids), [len(row) for row in ids]),
        tokens=[prompt.tokens for prompt in prompts],
        prompt=[prompt.text for prompt in prompts],
        num_layers=settings.model.num_layers,
        captured_layers=list(settings.layers),
        attention_mask=aligned_mask(states.kept).long(),
    )
    if responses := [prompt.response for prompt in prompts if prompt.response is not None]:
        data["response"] = responses
    return data
