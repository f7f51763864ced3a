"""The model that stays loaded between two jobs. Imports torch when one is loaded, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.records.models import ModelConfig

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]


class ModelKeeper:
    """Keeps the model that was used last: a person looks at one at a time. Used from the thread of jobs alone."""

    def __init__(self) -> None:
        self._name = ""
        self._loaded: Loaded | None = None

    def get(self, name: str) -> Loaded:
        """A model with its tokenizer, loaded unless it is the last one used.

        Raises:
            LayerscopeError: It cannot be loaded.
        """
        if self._loaded is None or self._name != name:
            from engine.models.loading import load_model_and_tokenizer

            self._loaded = None  # make room for the other
            self._loaded, self._name = load_model_and_tokenizer(name), name
        return self._loaded
