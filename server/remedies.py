"""What agents are told for what can be done about an error: tools and their arguments, or what their person must do."""

from engine.errors import Remedy

GO_ON = "make the call that captured it again, without replace: it goes on from the shards that are saved"
"""What to do about a capture in shards that is not finished."""

_PERSON = "tell the person who runs this server"

REMEDIES = {
    Remedy.CAPTURE_AGAIN: "capture it again with replace=true, or delete_capture",
    Remedy.CAPTURE_CONTRAST: "capture_contrast(concept='honesty'), or with pairs of your own",
    Remedy.CAPTURE_IN_FLOAT32: (
        f"use another model or other layers, or {_PERSON} that half precision overflows, and float32 would do"
    ),
    Remedy.CAPTURE_MORE_PAIRS: "capture_contrast with a larger max_samples, or with more pairs",
    Remedy.CHOOSE_FOLDER: f"{_PERSON} that its store cannot be written",
    Remedy.CHOOSE_STORE: f"{_PERSON} that its store cannot be read",
    Remedy.EXTRACT_AGAIN: "extract_direction with replace=true",
    Remedy.EXTRACT_DIRECTIONS: "extract_direction(name=...)",
    Remedy.GIVE_RENDERED_PAIRS: "render the prompts yourself and give them to capture_contrast as pairs",
    Remedy.GO_ON: GO_ON,
    Remedy.LIST_CAPTURES: "list_captures",
    Remedy.LIST_CONCEPTS: "list_concepts",
    Remedy.LIST_MODELS: "list_models; prefer one that is here",
    Remedy.LOAD_IN_FLOAT32: f"use another model, or {_PERSON} that half precision may be why, and float32 would do",
    Remedy.MAKE_ROOM: f"{_PERSON} to make room; then {GO_ON}",
    Remedy.RENAME_OR_REPLACE: "choose another name, or replace=true",
    Remedy.RENAME_OR_REPLACE_DIRECTIONS: "choose another save_as, or replace=true",
    Remedy.SAVE_FIGURE: "plot_capture",
    Remedy.SAVE_LESS: f"keep less with positions='last' or fewer layers, or {_PERSON} to make room",
    Remedy.SEE_CONCEPT: "compare with show_concept(name='honesty')",
    Remedy.TRUST_REMOTE_CODE: "use another model from list_models: this server runs no code that comes with a model",
    Remedy.USE_LESS_MEMORY: "take fewer layers, shorter prompts or a smaller model, or unload_model first",
    Remedy.USE_SMALLER_MODEL: "use a smaller model from list_models, or unload_model first",
    Remedy.USE_SMALLER_MODEL_OR_DTYPE: "use a smaller model from list_models, or unload_model first",
}
