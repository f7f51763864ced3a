"""The model that stays loaded between two jobs. Imports torch when one is loaded, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import RequestError
from engine.models.placement import LoadOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.records.captures import Provenance
    from engine.records.models import ModelConfig

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]


class ModelKeeper:
    """Keeps the model that was used last: a person looks at one at a time. Used from the thread of jobs alone.

    Args:
        options: How models are loaded.
    """

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._name = ""
        self._loaded: Loaded | None = None
        self._typed: dict[str, str] = {}

    def get(self, name: str) -> Loaded:
        """A model with its tokenizer, loaded unless it is the last one used.

        Raises:
            LayerscopeError: It cannot be loaded.
        """
        if self._loaded is None or self._name != name:
            from engine.models.loading import load_model_and_tokenizer

            self._loaded = None  # make room for the other
            self._loaded = load_model_and_tokenizer(name, **self._options.arguments())
            self._name = name
            self._typed[self._loaded[2].source.alias] = name
        return self._loaded

    def name_of(self, provenance: Provenance) -> str:
        """What the model of a capture is called here: as it was typed in the form, or by its alias.

        Raises:
            RequestError: It came from a file or folder that has no name here.
        """
        from engine.models.registry import find_source, user_registry_path

        alias = provenance["alias"]
        if alias in self._typed:
            return self._typed[alias]
        try:
            find_source(alias)
        except RequestError as error:
            raise RequestError(
                f"the model {provenance['model']} has no name here",
                next_step=f"give it one in {user_registry_path()}: [{alias}] with path, layers and parameters",
            ) from error
        return alias
