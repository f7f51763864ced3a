"""What is known of a model object: where it came from and that it was checked.

Kept beside the model, not on it: a model that a user brings is never written to, and forgetting costs one more check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from engine.models.check import check_model
from engine.models.load_errors import readable_check_errors
from engine.records.models import ModelConfig, ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_described: WeakKeyDictionary[PreTrainedModel, ModelConfig] = WeakKeyDictionary()


def describe_model(model: PreTrainedModel, source: ModelSource | None = None) -> ModelConfig:
    """What is known of a model, checking it if it has not been checked.

    Args:
        model: A model from `load_model_and_tokenizer`, or one of the user's own.
        source: Where it came from, when the caller knows; else the name that transformers keeps is believed.

    Returns:
        The description; the same object for the same model.

    Raises:
        ModelError: The model fails the check.
    """
    known = _described.get(model)
    if known is None:
        with readable_check_errors(model):
            receipt = check_model(model)
        known = ModelConfig(source or _own_source(model), receipt["num_layers"], receipt["hidden_size"], receipt)
        _described[model] = known
    return known


def _own_source(model: PreTrainedModel) -> ModelSource:
    name = str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
    revision = getattr(model.config, "_commit_hash", None)
    return ModelSource(name.rstrip("/").rpartition("/")[2].lower(), name, "given", name, revision)
