"""The model that stays loaded between jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.models.captured import find_captured_model, named_sources, require_captured_model
from engine.models.placement import LoadOptions
from engine.models.registry import find_source, user_registry_path

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
        self._loaded: Loaded | None = None
        self._seen: dict[str, ModelConfig] = {}  # models loaded so far, by the names that were typed

    def get(self, name: str) -> Loaded:
        """Return a model with its tokenizer and configuration; load it if needed.

        Raises:
            LayerscopeError: The model cannot be loaded.
        """
        if self._loaded is None or self._loaded[2].source.key != find_source(name).key:
            from engine.models.loading import load_model_and_tokenizer

            self._loaded = None  # free its memory before the next model is loaded
            self._loaded = load_model_and_tokenizer(name, **self._options.arguments())
            self._seen[name] = self._loaded[2]
        return self._loaded

    def captured(self, provenance: Provenance) -> Loaded:
        """Return the model that a capture was made with; load it if needed.

        Raises:
            RequestError: It came from a file or folder without an alias, or its alias is another model's.
            LayerscopeError: The model cannot be loaded.
        """
        named = named_sources(provenance)
        sources = {name: config.source for name, config in self._seen.items()} | named
        seen = {name: config for name, config in self._seen.items() if config.source.key == sources[name].key}
        free = provenance["alias"] + ("-2" if provenance["alias"] in named else "")
        advice = f"register it in {user_registry_path()}: [{free}] with path, layers and parameters"
        name = find_captured_model(provenance, sources, seen, advice=advice)
        loaded = self.get(name)
        require_captured_model(loaded[2], provenance, advice=advice)
        return loaded
