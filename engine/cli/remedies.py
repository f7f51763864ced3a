"""What the command line says for what can be done about an error: its own commands and options."""

from engine.errors import Remedy

REMEDIES = {
    Remedy.CAPTURE_AGAIN: "capture again with --force",
    Remedy.CAPTURE_CONTRAST: "capture one: layerscope capture --concept honesty, or --pairs FILE",
    Remedy.CAPTURE_IN_FLOAT32: "capture again with --dtype float32: half precision can overflow",
    Remedy.CAPTURE_MORE_PAIRS: "capture more pairs (--max-samples)",
    Remedy.CHOOSE_FOLDER: "choose another with --output",
    Remedy.CHOOSE_STORE: "make one with `layerscope capture --concept honesty`, or name another with --store",
    Remedy.EXTRACT_AGAIN: "extract them again: layerscope directions CAPTURE --force",
    Remedy.EXTRACT_DIRECTIONS: "extract them: layerscope directions CAPTURE",
    Remedy.GIVE_RENDERED_PAIRS: "render the prompts yourself and give them with --pairs FILE",
    Remedy.GO_ON: "give the same command again: it goes on from the shards that are saved",
    Remedy.LIST_CAPTURES: "layerscope list shows what there is; --store FOLDER looks elsewhere",
    Remedy.LIST_CONCEPTS: "layerscope capture --list-concepts shows the concepts",
    Remedy.LIST_MODELS: "layerscope capture --list-models shows the aliases, and what loads without a download",
    Remedy.LOAD_IN_FLOAT32: "add --dtype float32, for half precision may be why; or choose a model of another family",
    Remedy.MAKE_ROOM: "make room, then give the same command again: it goes on from the shards that are saved",
    Remedy.RENAME_OR_REPLACE: "choose another name with --output, or replace it with --force",
    Remedy.RENAME_OR_REPLACE_DIRECTIONS: "choose another name with --output, or replace them with --force",
    Remedy.SAVE_FIGURE: "save the figure with --output FILE.png",
    Remedy.SAVE_LESS: "make room, choose another folder with --output, or keep less with --positions last or --layers",
    Remedy.SEE_CONCEPT: "compare with engine/concepts/data/honesty.toml",
    Remedy.TRUST_REMOTE_CODE: "--trust-remote-code, only if you trust the model's author",
    Remedy.USE_LESS_MEMORY: "fewer --layers, --use-hooks, --dtype bfloat16, shorter prompts or a smaller model",
    Remedy.USE_SMALLER_MODEL: (
        "--device-map auto leaves on the disk what does not fit, and reads it in each pass; or use a smaller model:"
        " layerscope capture --list-models shows their sizes"
    ),
    Remedy.USE_SMALLER_MODEL_OR_DTYPE: (
        "--dtype bfloat16 halves it; --device-map auto leaves on the disk what does not fit, and reads it in each pass;"
        " or use a smaller model"
    ),
}
