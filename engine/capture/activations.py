"""Capture prompts: `capture_activations`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from engine.capture.batches import DEFAULT_BATCH_SIZE
from engine.capture.layers import LayerSpec
from engine.capture.positions import PositionSpec
from engine.capture.prompts import tokenize_prompts
from engine.capture.provenance import trace_provenance
from engine.capture.run import Progress, Settings, run_capture
from engine.errors import CaptureError
from engine.records.captures import ActivationData

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def capture_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[str],
    layers: LayerSpec = None,
    use_hooks: bool = False,
    *,
    positions: PositionSpec = "all",
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Progress | None = None,
) -> ActivationData:
    """Capture the residual stream after blocks, before any final norm, for one prompt or several.

    Args:
        model: From `load_model_and_tokenizer`, or any causal language model of transformers. Left as it was found.
        tokenizer: Its tokenizer.
        prompt: A text, taken as it is: no chat template is applied. Or several.
        layers: See `parse_layers`; None for all.
        use_hooks: Read through hooks on the blocks: less memory, stops after the last layer wanted, same bits.
        positions: See `parse_positions`.
        batch_size: Most prompts in one forward pass; 1 for states that do not depend on the other prompts' shapes.
        progress: Called with prompts done and in total.

    Returns:
        States of shape `(batch, kept tokens, hidden)` for each layer, on the CPU; `[:, -1, :]` is the last kept token.

    Raises:
        RequestError: Layers or positions that do not exist.
        CaptureError: A prompt that is empty or too long, or states that are unusable.
        ModelError: The model fails the check.

    Example:
        >>> model, tokenizer, config = load_model_and_tokenizer("smollm2")
        >>> data = capture_activations(model, tokenizer, "Tell me a story", layers=[16])
        >>> data["activations"][16].shape
        torch.Size([1, 4, 576])
    """
    settings = Settings.for_model(
        model, layers, positions, use_hooks=use_hooks, batch_size=batch_size, progress=progress
    )
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts:
        raise CaptureError("there are no prompts", expected="at least one")
    captured = run_capture(model, tokenize_prompts(model, tokenizer, texts, rendered=False), settings)
    data = captured[0] if isinstance(prompt, str) else _stack(captured)
    data["provenance"] = trace_provenance(model, settings)
    return data


def _stack(captured: list[ActivationData]) -> ActivationData:
    """Several prompts as one batch whose rows end together, zeros in front of the shorter ones."""
    layers = captured[0]["captured_layers"]
    kept = [data["activations"][layers[0]].shape[1] for data in captured]
    return ActivationData(
        activations={layer: _align([data["activations"][layer][0] for data in captured]) for layer in layers},
        input_ids=_align([data["input_ids"][0] for data in captured]),
        tokens=[[str(token) for token in data["tokens"]] for data in captured],
        prompt=[str(data["prompt"]) for data in captured],
        num_layers=captured[0]["num_layers"],
        captured_layers=layers,
        attention_mask=_align([torch.ones(length, dtype=torch.long) for length in kept]),
    )


def _align(rows: list[Tensor]) -> Tensor:
    """Rows of different lengths, `(length, ...)` each, as one tensor `(rows, longest, ...)`, zeros in front."""
    longest = max(len(row) for row in rows)
    out = rows[0].new_zeros((len(rows), longest, *rows[0].shape[1:]))
    for filled, row in zip(out, rows, strict=True):
        filled[longest - len(row) :] = row
    return out
