"""Capture prompts: `capture_activations`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

from engine.capture.aligned import align_rows, aligned_mask
from engine.capture.batches import DEFAULT_BATCH_SIZE
from engine.capture.layers import LayerSpec
from engine.capture.positions import PositionSpec
from engine.capture.prompts import TokenizedPrompt, tokenize_prompts
from engine.capture.provenance import trace_provenance
from engine.capture.run import run_capture
from engine.capture.settings import Settings
from engine.capture.sites import DEFAULT_SITE
from engine.capture.stacked import capture_stacked
from engine.errors import CaptureError
from engine.models.blocks import find_blocks
from engine.plain import is_text, plain_text, plain_texts
from engine.progress import Progress
from engine.records.captures import ActivationData

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
