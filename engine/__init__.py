"""layerscope's engine: find where in a language model a concept lives.

The public names are resolved when they are used: importing `engine` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.capture.activations import capture_activations as capture_activations
    from engine.capture.contrast import capture_contrastive_activations as capture_contrastive_activations
    from engine.capture.contrast import capture_from_concept as capture_from_concept
    from engine.concepts.catalog import list_concepts as list_concepts
    from engine.concepts.catalog import load_concept as load_concept
    from engine.errors import LayerscopeError as LayerscopeError
    from engine.models.loading import load_model_and_tokenizer as load_model_and_tokenizer
    from engine.models.registry import list_models as list_models
    from engine.stats.contrast import compute_contrastive_diff as compute_contrastive_diff
    from engine.stats.separation import compute_separation as compute_separation
    from engine.stats.summary import compute_activation_stats as compute_activation_stats
    from engine.store.catalog import list_captures as list_captures
    from engine.store.read import load_activations as load_activations
    from engine.store.write import save_activations as save_activations

_HOMES = {
    "LayerscopeError": "engine.errors",
    "capture_activations": "engine.capture.activations",
    "capture_contrastive_activations": "engine.capture.contrast",
    "capture_from_concept": "engine.capture.contrast",
    "compute_activation_stats": "engine.stats.summary",
    "compute_contrastive_diff": "engine.stats.contrast",
    "compute_separation": "engine.stats.separation",
    "list_captures": "engine.store.catalog",
    "list_concepts": "engine.concepts.catalog",
    "list_models": "engine.models.registry",
    "load_activations": "engine.store.read",
    "load_concept": "engine.concepts.catalog",
    "load_model_and_tokenizer": "engine.models.loading",
    "save_activations": "engine.store.write",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
