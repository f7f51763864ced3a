"""layerscope's engine: find where a concept lives in a language model.

Public names are imported on first use, so `import engine` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.capture.activations import capture_activations as capture_activations
    from engine.capture.activations import capture_contrastive_activations as capture_contrastive_activations
    from engine.capture.activations import capture_from_concept as capture_from_concept
    from engine.capture.estimate import estimate_capture as estimate_capture
    from engine.capture.prepare import prepare_capture as prepare_capture
    from engine.capture.request import CaptureRequest as CaptureRequest
    from engine.concepts.catalog import list_concepts as list_concepts
    from engine.concepts.catalog import load_concept as load_concept
    from engine.errors import LayerscopeError as LayerscopeError
    from engine.models.loading import load_model_and_tokenizer as load_model_and_tokenizer
    from engine.models.registry import list_models as list_models
    from engine.runtime import find_processes as find_processes
    from engine.stats.classes import project_sides as project_sides
    from engine.stats.comparison import compare_captures as compare_captures
    from engine.stats.comparison import compare_directions as compare_directions
    from engine.stats.concept_check import check_concept as check_concept
    from engine.stats.confounds import find_confounds as find_confounds
    from engine.stats.contrast import compute_contrastive_diff as compute_contrastive_diff
    from engine.stats.direction import extract_direction as extract_direction
    from engine.stats.direction import extract_directions as extract_directions
    from engine.stats.methods import compare_methods as compare_methods
    from engine.stats.ranking import rank_layers as rank_layers
    from engine.stats.reading import read_text as read_text
    from engine.stats.separation import compute_separation as compute_separation
    from engine.stats.specificity import measure_specificity as measure_specificity
    from engine.stats.summary import compute_activation_stats as compute_activation_stats
    from engine.stats.transfer import compare_transfer as compare_transfer
    from engine.steering.apply import ablate as ablate
    from engine.steering.apply import steer as steer
    from engine.steering.calibrate import calibrate_strength as calibrate_strength
    from engine.steering.causal import rank_layers_causally as rank_layers_causally
    from engine.steering.causal_request import CausalRequest as CausalRequest
    from engine.steering.causal_store import add_causal_ranking as add_causal_ranking
    from engine.steering.texts import steer_text as steer_text
    from engine.steering.vectors import direction_cosines as direction_cosines
    from engine.steering.vectors import export_directions as export_directions
    from engine.steering.vectors import import_directions as import_directions
    from engine.store.catalog import list_captures as list_captures
    from engine.store.delete import delete_capture as delete_capture
    from engine.store.directions import load_directions as load_directions
    from engine.store.directions import save_directions as save_directions
    from engine.store.manage import rename_capture as rename_capture
    from engine.store.neighbours import capture_neighbours as capture_neighbours
    from engine.store.read import load_activations as load_activations
    from engine.store.save import capture_and_save as capture_and_save
    from engine.store.save import capture_contrast_in_shards as capture_contrast_in_shards
    from engine.store.save import capture_prompt_file as capture_prompt_file
    from engine.store.shards import open_shards as open_shards
    from engine.store.specificity import add_specificity as add_specificity
    from engine.store.verify import verify_capture as verify_capture
    from engine.store.verify import verify_store as verify_store
    from engine.store.write import save_activations as save_activations

_HOMES = {
    "CaptureRequest": "engine.capture.request",
    "CausalRequest": "engine.steering.causal_request",
    "LayerscopeError": "engine.errors",
    "ablate": "engine.steering.apply",
    "add_causal_ranking": "engine.steering.causal_store",
    "add_specificity": "engine.store.specificity",
    "calibrate_strength": "engine.steering.calibrate",
    "capture_activations": "engine.capture.activations",
    "capture_and_save": "engine.store.save",
    "capture_contrast_in_shards": "engine.store.save",
    "capture_contrastive_activations": "engine.capture.activations",
    "capture_from_concept": "engine.capture.activations",
    "capture_neighbours": "engine.store.neighbours",
    "capture_prompt_file": "engine.store.save",
    "check_concept": "engine.stats.concept_check",
    "compare_captures": "engine.stats.comparison",
    "compare_directions": "engine.stats.comparison",
    "compare_methods": "engine.stats.methods",
    "compare_transfer": "engine.stats.transfer",
    "compute_activation_stats": "engine.stats.summary",
    "compute_contrastive_diff": "engine.stats.contrast",
    "compute_separation": "engine.stats.separation",
    "delete_capture": "engine.store.delete",
    "direction_cosines": "engine.steering.vectors",
    "estimate_capture": "engine.capture.estimate",
    "export_directions": "engine.steering.vectors",
    "extract_direction": "engine.stats.direction",
    "extract_directions": "engine.stats.direction",
    "find_confounds": "engine.stats.confounds",
    "find_processes": "engine.runtime",
    "import_directions": "engine.steering.vectors",
    "list_captures": "engine.store.catalog",
    "list_concepts": "engine.concepts.catalog",
    "list_models": "engine.models.registry",
    "load_activations": "engine.store.read",
    "load_concept": "engine.concepts.catalog",
    "load_directions": "engine.store.directions",
    "load_model_and_tokenizer": "engine.models.loading",
    "measure_specificity": "engine.stats.specificity",
    "open_shards": "engine.store.shards",
    "prepare_capture": "engine.capture.prepare",
    "project_sides": "engine.stats.classes",
    "rank_layers": "engine.stats.ranking",
    "rank_layers_causally": "engine.steering.causal",
    "read_text": "engine.stats.reading",
    "rename_capture": "engine.store.manage",
    "save_activations": "engine.store.write",
    "save_directions": "engine.store.directions",
    "steer": "engine.steering.apply",
    "steer_text": "engine.steering.texts",
    "verify_capture": "engine.store.verify",
    "verify_store": "engine.store.verify",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public function or class
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
