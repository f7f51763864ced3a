"""Rank the layers of a saved contrast causally, and keep the result in its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.concepts.text_files import PromptFile
from engine.records.causal import CausalRanking
from engine.runtime import Steps
from engine.stats.comparison_rules import require_contrasts
from engine.steering.causal import rank_layers_causally
from engine.steering.causal_request import CausalRequest
from engine.store.catalog import show_capture
from engine.store.names import locate
from engine.store.ownership import require_amendable
from engine.store.read import load_contrast
from engine.store.write import amend_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_causal_ranking(
    name: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: CausalRequest | None = None,
    *,
    neutral: Sequence[str] | PromptFile | None = None,
    store: str | Path | None = None,
    steps: Steps | None = None,
) -> CausalRanking:
    """Rank the layers of a saved contrast by what steering there does, and keep the result in its record.

    An interrupted measurement is resumed by the same call: finished parts are kept in the user's cache folder until the
    result is saved.

    Args:
        name: A path, such as "activations/honesty"; a plain name when `store` is given.
        model: The model that it was captured with.
        tokenizer: Its tokenizer.
        request: What to measure.
        neutral: See `rank_layers_causally`.
        store: The store folder.
        steps: Called with each step; an exception it raises stops the work.

    Returns:
        The causal ranking, see `rank_layers_causally`.

    Raises:
        RequestError: The capture is not a contrast, or see `rank_layers_causally`.
        StoreError: The capture does not exist, is damaged, was replaced meanwhile, or cannot be written.

    Example:
        >>> chosen = {"layers": [14], "max_samples": 96, "positions": "last"}
        >>> contrast = capture_from_concept(model, tokenizer, "formality", **chosen)
        >>> paths = save_activations(contrast, "runs/formal", force=True)
        >>> wanted = CausalRequest(prompts=8, answer_tokens=2)
        >>> found = add_causal_ranking("runs/formal", model, tokenizer, wanted)
        >>> show_capture("runs/formal")["causal"]["layers"] == found["layers"]
        True
    """
    record, paths = show_capture(name, store=store), locate(name, store)
    require_contrasts(record)
    require_amendable(paths)
    data, keep = load_contrast(name, store=store), paths.causal_parts
    found = rank_layers_causally(
        model, tokenizer, data, request, ranking=record["ranking"], neutral=neutral, steps=steps, keep=keep
    )
    amend_record(paths, record, {"causal": found}, "steered with")
    keep.unlink(missing_ok=True)
    return found
