"""Describe the current state of a model and what has changed since it was loaded.

Descriptions live in a weak dictionary because the user's model is never modified. Losing one costs another check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from engine.errors import CaptureError, ModelError
from engine.models.adapters import inner_model, list_adapters, require_readable_adapters
from engine.models.alterations import (
    Snapshot,
    autocast_dtype,
    find_alterations,
    find_replaced,
    hash_configuration,
    module_types,
    sample_weights,
    sampled_values,
    take_snapshot,
)
from engine.models.check import check_model
from engine.models.forward import turn_of
from engine.models.load_errors import readable_check_errors
from engine.models.offload import each_weight, is_offloaded
from engine.models.structure import find_blocks
from engine.records.models import ModelConfig, ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EDITED = "the weights were edited after the model was loaded"


class Examined(NamedTuple):
    """The current state of a model.

    Attributes:
        config: Its description.
        snapshot: Its observable state, for later comparison.
    """

    config: ModelConfig
    snapshot: Snapshot


@dataclass(frozen=True)
class _Known:
    """The state of a model when it was last examined and when it was first seen.

    Attributes:
        last: The last examination.
        values: Sampled values of the weights at the last examination; empty for offloaded weights.
        first_weights: First fingerprint of the weights.
        first_dtype: First dtype of the weights.
        first_types: First classes of the modules, by path.
    """

    last: Examined
    values: list[Tensor]
    first_weights: str
    first_dtype: torch.dtype
    first_types: dict[str, type]


_known: WeakKeyDictionary[PreTrainedModel, _Known] = WeakKeyDictionary()


def describe_model(model: PreTrainedModel) -> ModelConfig:
    """Return the last description of a model; examine the model if there is none.

    Args:
        model: A model from `load_model_and_tokenizer`, or the user's own.

    Raises:
        ModelError: The model fails the check.
    """
    _require_module(model)
    known = _known.get(model)
    return examine_model(model).config if known is None else known.last.config


def examine_model(model: PreTrainedModel, source: ModelSource | None = None) -> Examined:
    """Examine a model, and check it again if its modules or hooks have changed.

    Call this at the start of a capture. For an unchanged model with a few hundred modules it takes milliseconds.

    Args:
        model: A model from `load_model_and_tokenizer`, or the user's own.
        source: Where it came from. None takes the name that transformers stored on it.

    Returns:
        The description and the snapshot.

    Raises:
        ModelError: The model fails the check, or has an adapter that cannot be captured.
    """
    _require_module(model)
    with readable_check_errors(model):
        require_readable_adapters(model)
        blocks = find_blocks(model)
        with turn_of(blocks.decoder):
            known, snapshot = _known.get(model), take_snapshot(model)
            last = known.last if known else None
            if last is not None and last.snapshot.structure == snapshot.structure:
                config = last.config
            else:
                config = _check(model, source or (last.config.source if last else _own_source(model)), snapshot)
            same = last is not None and last.snapshot == snapshot
            # Offloaded weights take too long to read for each capture, and nobody edits them on disk.
            held = each_weight(model)
            offloaded = any(weight.is_meta for weight in held)
            values = [] if offloaded else sampled_values(held)
            if known is not None and same and (offloaded or not config.adapters) and _equal(values, known.values):
                return known.last
            weights, adapters = sample_weights(model), tuple(list_adapters(model))
            if last is not None and same and (weights, adapters) == (config.weights, config.adapters):
                return last
            # peft's wrapper around a known model inherits that model's history.
            first = known or _known.get(inner_model(model))
            first = first or _Known(Examined(config, snapshot), values, weights, model.dtype, module_types(model))
            written = last is not None and snapshot.edited_since(last.snapshot)
            config = replace(
                config,
                weights=weights,
                adapters=adapters,
                edited=_edits(model, first, weights, written=written),
                autocast=autocast_dtype(model),
            )
            examined = Examined(config, snapshot)
            _known[model] = replace(first, last=examined, values=values)
    return examined


def _equal(values: list[Tensor], before: list[Tensor]) -> bool:
    """Whether the bytes are equal; some packed dtypes can only be compared so."""
    return len(values) == len(before) and all(
        torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in zip(values, before, strict=True)
    )


def _edits(model: PreTrainedModel, first: _Known, weights: str, *, written: bool) -> tuple[str, ...]:
    """Describe the changes to weights and modules since the model was first seen."""
    replaced = find_replaced(model, first.first_types)
    if model.dtype != first.first_dtype:
        return (*replaced, f"the weights were cast from {first.first_dtype} to {model.dtype}".replace("torch.", ""))
    edited = weights != first.first_weights or written or EDITED in first.last.config.edited
    return (*replaced, *([EDITED] if edited else []))


def _check(model: PreTrainedModel, source: ModelSource, snapshot: Snapshot) -> ModelConfig:
    try:
        receipt, added = check_model(model), tuple(find_alterations(model))
    except ModelError as error:
        if is_offloaded(model) or take_snapshot(model) == snapshot:  # offloaded weights change within a pass
            raise
        raise CaptureError(
            "the model was changed while it was checked",
            expected="the same weights, hooks and modules until the capture ends",
            next_step="capture before or after the change, not in two threads at once",
        ) from error
    return ModelConfig(
        source,
        receipt["num_layers"],
        receipt["hidden_size"],
        receipt,
        configuration=hash_configuration(model),
        added=added,
    )


def _require_module(model: object) -> None:
    if hasattr(model, "_orig_mod"):
        raise ModelError(
            "the model is wrapped by torch.compile, and hooks cannot read states from its compiled graphs",
            expected="the uncompiled model",
            next_step="pass model._orig_mod, which shares its weights",
        )
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model is a {type(model).__name__}: {str(model)[:60]!r}",
            expected="a transformers causal language model",
            next_step="pass the first value that load_model_and_tokenizer returns",
        )


def _own_source(model: PreTrainedModel) -> ModelSource:
    if inner := _known.get(inner_model(model)):
        return inner.last.config.source
    name = str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
    revision = getattr(model.config, "_commit_hash", None)
    return ModelSource(name.rstrip("/").rpartition("/")[2].lower(), name, "given", name, revision)
