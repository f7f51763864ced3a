"""The model that stays loaded between jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import RequestError
from engine.models.placement import LoadOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.records.captures import Provenance
    from engine.records.models import ModelConfig

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelConfig]


class ModelCache:
    """Cache of the last model used.

    Not thread-safe: only background jobs call it, one at a time.

    Args:
        options: Dtype, device map and memory limits for loading.
    """

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._name = ""
        self._loaded: Loaded | None = None
        self._typed: dict[str, str] = {}

    def get(self, name: str) -> Loaded:
        """Return a model with its tokenizer and configuration; load it if needed.

        Raises:
            LayerscopeError: The model cannot be loaded.
        """
        if self._loaded is None or self._name != name:
            from engine.models.loading import load_model_and_tokenizer

            self._loaded = None  # free its memory before the next model is loaded
            self._loaded = load_model_and_tokenizer(name, **self._options.arguments())
            self._name = name
            self._typed[self._loaded[2].source.alias] = name
        return self._loaded

    def name_of(self, provenance: Provenance) -> str:
        """Return the name that loads a capture's model: its alias, or the typed name.

        Raises:
            RequestError: The model came from a file or folder without a registered name.
        """
        from engine.models.registry import find_source, user_registry_path

        alias = provenance["alias"]
        if alias in self._typed:
            return self._typed[alias]
        try:
            find_source(alias)
        except RequestError as error:
            raise RequestError(
                f"the model {provenance['model']} has no registered name",
                next_step=f"register it in {user_registry_path()}: [{alias}] with path, layers and parameters",
            ) from error
        return alias
