"""What is known of a model as it stands now: where it came from, that it was checked, what was done to it since.

Kept beside the model, not on it: a model that a user brings is never written to, and forgetting costs one more check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from torch import nn

from engine.errors import ModelError
from engine.models.adapters import list_adapters
from engine.models.alterations import Snapshot, autocast_dtype, find_alterations, take_snapshot
from engine.models.blocks import find_blocks
from engine.models.check import check_model
from engine.models.fingerprint import sample_weights
from engine.models.forward import turn_of
from engine.models.load_errors import readable_check_errors
from engine.models.offload import is_offloaded
from engine.records.models import ModelConfig, ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Known:
    """A model as it was when it was last examined.

    Attributes:
        snapshot: What could be seen of it.
        first_weights: Fingerprint of the weights when it was first seen.
        config: What was found.
    """

    snapshot: Snapshot
    first_weights: str
    config: ModelConfig


_known: WeakKeyDictionary[PreTrainedModel, _Known] = WeakKeyDictionary()


def describe_model(model: PreTrainedModel) -> ModelConfig:
    """What was found of a model when it was last examined; it is examined if it never was.

    Args:
        model: A model from `load_model_and_tokenizer`, or one of the user's own.

    Raises:
        ModelError: The model fails the check.
    """
    _require_module(model)
    known = _known.get(model)
    return examine_model(model) if known is None else known.config


def examine_model(model: PreTrainedModel, source: ModelSource | None = None) -> ModelConfig:
    """Look at a model as it stands now, and check it again if its modules or its hooks have changed.

    To be called where a capture begins. It takes some milliseconds where nothing has changed.

    Args:
        model: A model from `load_model_and_tokenizer`, or one of the user's own.
        source: Where it came from, when the caller knows; else the name that transformers keeps is believed.

    Returns:
        The description.

    Raises:
        ModelError: The model fails the check, or has an adapter that cannot be captured.
    """
    _require_module(model)
    with readable_check_errors(model):
        adapters, blocks = tuple(list_adapters(model)), find_blocks(model)
        with turn_of(blocks.decoder):
            before, snapshot = _known.get(model), take_snapshot(model)
            if before is not None and before.snapshot.structure == snapshot.structure:
                config = before.config
            else:
                config = _check(model, source or (before.config.source if before else _own_source(model)))
            # Weights on the disk are too much to read for each capture, and are not edited there.
            unread = before is not None and before.snapshot == snapshot and is_offloaded(model)
            weights = config.weights if unread else sample_weights(model)
            origin = before or _known.get(_inner(model))  # a wrapper of peft around a model that is known
            first = origin.first_weights if origin else weights
            edited, autocast = weights != first, autocast_dtype(model)
            config = replace(config, weights=weights, adapters=adapters, edited=edited, autocast=autocast)
            _known[model] = _Known(snapshot, first, config)
    return config


def _check(model: PreTrainedModel, source: ModelSource) -> ModelConfig:
    receipt, added = check_model(model), tuple(find_alterations(model))
    return ModelConfig(source, receipt["num_layers"], receipt["hidden_size"], receipt, added=added)


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model is a {type(model).__name__}: {str(model)[:60]!r}",
            expected="a causal language model of transformers",
            next_step="load it with load_model_and_tokenizer, the first of what that returns",
        )


def _own_source(model: PreTrainedModel) -> ModelSource:
    if inner := _known.get(_inner(model)):
        return inner.config.source
    name = str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
    revision = getattr(model.config, "_commit_hash", None)
    return ModelSource(name.rstrip("/").rpartition("/")[2].lower(), name, "given", name, revision)


def _inner(model: PreTrainedModel) -> PreTrainedModel:
    """The model that peft is wrapped around, or the model itself."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    return model if get_base_model is None else cast("PreTrainedModel", get_base_model())
