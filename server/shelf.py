"""Models that stay loaded: several within a budget of memory, least recently used out first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.records.models import ModelConfig
    from server.settings import ServerSettings


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer.

    Attributes:
        name: What clients call it.
        model: The model.
        tokenizer: Its tokenizer.
        config: What is known of it.
        bytes: Size of its weights, without those that stay on the disk.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    bytes: int


class ModelShelf:
    """The loaded models of a server. Used from the one thread that runs jobs; listed from any."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> LoadedModel:
        """A model, loaded if it is not; others make room for it.

        Raises:
            RequestError: It may not be loaded here, or there is none of that name.
            ModelError: It cannot be loaded.
        """
        meaning, listing = self._settings.require_allowed(name)
        name = listing.alias
        with self._lock:
            known = self._loaded.get(name)
            if known is not None:
                self._loaded.move_to_end(name)
                return known
        from engine.models.loading import load_model_and_tokenizer  # imports torch: not before a model is wanted

        options = self._settings.load_options
        model, tokenizer, config = load_model_and_tokenizer(meaning, **options.arguments())
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters() if not weight.is_meta)
        loaded = LoadedModel(name, model, tokenizer, config, size)
        with self._lock:
            self._loaded[name] = loaded
            while len(self._loaded) > 1 and self._total() > self._settings.memory_bytes:
                self._loaded.popitem(last=False)
        return loaded

    def unload(self, name: str) -> None:
        """Let a model go; a job that uses it keeps it until its end.

        Raises:
            RequestError: It is not loaded.
        """
        with self._lock:
            if name not in self._loaded:
                raise RequestError(
                    f"the model {name!r} is not loaded", expected=f"one of {', '.join(self._loaded) or 'none'}"
                )
            del self._loaded[name]

    def loaded(self) -> list[LoadedModel]:
        """What is loaded, least recently used first."""
        with self._lock:
            return list(self._loaded.values())

    def _total(self) -> int:
        return sum(model.bytes for model in self._loaded.values())
