"""What the terminal app says for what can be done about an error: its own keys and fields."""

from engine.errors import LayerscopeError, Remedy

REMEDIES = {
    Remedy.CAPTURE_AGAIN: "capture it again: n in the library, under another name",
    Remedy.CAPTURE_CONTRAST: "capture one: n in the library",
    Remedy.CAPTURE_IN_FLOAT32: "start layerscope tui --dtype float32 and capture again: half precision can overflow",
    Remedy.CAPTURE_MORE_PAIRS: "capture more pairs",
    Remedy.CHOOSE_FOLDER: "start with another store: layerscope tui FOLDER",
    Remedy.CHOOSE_STORE: "start with another store, layerscope tui FOLDER, or ask its owner for permission",
    Remedy.EXTRACT_AGAIN: "extract them again: layerscope directions CAPTURE --force",
    Remedy.EXTRACT_DIRECTIONS: "extract them: layerscope directions CAPTURE",
    Remedy.GIVE_RENDERED_PAIRS: "render the prompts yourself and give a file of pairs as the concept",
    Remedy.GO_ON: "n in the library, and the form as before: it goes on from the shards that are saved",
    Remedy.LIST_CAPTURES: "Esc goes back to the library, which shows what there is",
    Remedy.LIST_CONCEPTS: "the concepts are listed below the form",
    Remedy.LIST_MODELS: "the models are listed below the form",
    Remedy.LOAD_IN_FLOAT32: "start layerscope tui --dtype float32, for half precision may be why; or use another model",
    Remedy.MAKE_ROOM: "make room, then n in the library, and the form as before: it goes on from the shards saved",
    Remedy.RENAME_OR_REPLACE: "give another name in the field Save as",
    Remedy.RENAME_OR_REPLACE_DIRECTIONS: "choose another name, or replace them: layerscope directions CAPTURE --force",
    Remedy.SAVE_FIGURE: "e saves the figure into a file",
    Remedy.SAVE_LESS: "make room, or keep less: positions last, or fewer layers",
    Remedy.SEE_CONCEPT: "compare with engine/concepts/data/honesty.toml",
    Remedy.TRUST_REMOTE_CODE: "layerscope capture --trust-remote-code, only if you trust the model's author",
    Remedy.USE_LESS_MEMORY: "take fewer layers, shorter prompts or a smaller model",
    Remedy.USE_SMALLER_MODEL: (
        "start layerscope tui --device-map auto, which leaves on the disk what does not fit; or use a smaller model"
    ),
    Remedy.USE_SMALLER_MODEL_OR_DTYPE: (
        "start layerscope tui --dtype bfloat16, which halves it, or --device-map auto, which leaves on the disk what"
        " does not fit; or use a smaller model"
    ),
}


def in_words(error: LayerscopeError) -> str:
    """An error as the app says it."""
    return error.said(REMEDIES)
