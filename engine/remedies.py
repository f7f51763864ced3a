"""What to do about an error, in the words of each face."""

import shlex
from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

Setting = str | int | list[int] | bool | None
"""Value of a setting of a capture; None if it is not given."""

Face = Literal["python", "command_line", "server", "app"]
"""Who reads a message: a caller of the functions, a user at a shell, an agent, a user of the terminal app."""


class _Words(NamedTuple):
    """The same advice for each face, in terms of the actions that face offers."""

    python: str
    command_line: str
    server: str
    app: str


_RESUME = "repeat the capture call without replace to resume from the saved shards"
_OPERATOR = "tell the person who runs this server"


class Remedy(Enum):
    """Next steps that each face words differently.

    One row per remedy, one column per face. `Advice` fills in `{capture}`, `{store}`, `{output}`,
    `{save_as}` and `{settings}`.
    """

    ADD_PAIRS = _Words(
        python="capture more pairs",
        command_line="add pairs to the file, and capture it again",
        server="call capture_contrast with more pairs",
        app="add pairs to the file, and capture it again",
    )
    ADD_RESPONSES = _Words(
        python="pass respond=60 to let the model answer, give responses, or choose other positions",
        command_line="add --respond 60 to let the model answer, give responses in a file, or choose other --positions",
        server="choose other positions, or a file of prompts or pairs with responses",
        app="choose other positions, or a file of prompts or pairs with responses",
    )
    ADD_RESPOND = _Words(
        python="pass respond=60 too",
        command_line="add --respond 60",
        server="leave out sampling",
        app="leave out sampling",
    )
    ADD_SHARDS = _Words(
        python="pass shards=True",
        command_line="add --shards",
        server="pass a file",
        app="use a file of prompts",
    )
    ASK_TO_READ = _Words(
        python="ask its owner for permission to read it, or choose another folder",
        command_line="ask its owner for permission to read it, or choose another folder",
        server=f"{_OPERATOR} that its store is not readable",
        app="start with another store (layerscope tui FOLDER), or ask the owner of this one for permission to read it",
    )
    CAPTURE_AGAIN = _Words(
        python="capture again and save with force=True",
        command_line="capture again with --force",
        server="capture it again with replace=true, or call delete_capture",
        app="press n in the library to capture it again under another name",
    )
    CAPTURE_CONTRAST = _Words(
        python="capture one with capture_from_concept or capture_contrastive_activations",
        command_line="capture one: layerscope capture --concept honesty, or --pairs FILE",
        server="call capture_contrast(concept='honesty'), or pass your own pairs",
        app="press n in the library to capture one",
    )
    CAPTURE_IN_FLOAT32 = _Words(
        python="load the model with dtype='float32' and capture again: half precision can overflow",
        command_line="capture again with --dtype float32: half precision can overflow",
        server=f"use another model or other layers, or {_OPERATOR} that half precision overflows and float32 would not",
        app="start the app again with --dtype float32 and capture again: half precision can overflow",
    )
    CAPTURE_MORE_PAIRS = _Words(
        python="capture more pairs (max_samples)",
        command_line="capture more pairs (--max-samples)",
        server="call capture_contrast with a larger max_samples",
        app="capture more pairs",
    )
    CHOOSE_FOLDER = _Words(
        python="choose another folder",
        command_line="choose another folder with --output",
        server=f"{_OPERATOR} that its store is not writable",
        app="start with another store: layerscope tui FOLDER",
    )
    CHOOSE_STORE = _Words(
        python="choose another folder, or save a capture into this one with save_activations",
        command_line="create one with `layerscope capture --concept honesty{output}`, or name another with --store",
        server=f"{_OPERATOR} that its store is not readable",
        app="start with another store: layerscope tui FOLDER",
    )
    COMPILE_OR_START_AGAIN = _Words(
        python="make compiling possible here and repeat the call to resume, or start again: compiled=False, force=True",
        command_line=(
            "make compiling possible here and run the same command again to resume, or start again with --no-compile"
            " --force"
        ),
        server=f"{_OPERATOR} that compiling fails now, or start again with replace=true",
        app="make compiling possible here to resume, or capture under another name",
    )
    DELETE_SHARD = _Words(
        python="delete it and the record, and make the same capture call again: only missing shards are run",
        command_line="delete it and the .json, and run the same capture again: only missing shards are run",
        server="capture it again with replace=true, or call delete_capture",
        app="delete it and the .json, and capture the same again: only missing shards are run",
    )
    EXTRACT_AGAIN = _Words(
        python="extract the directions again and save with force=True",
        command_line="extract them again: layerscope directions {capture} --force",
        server="call extract_direction with replace=true",
        app="extract them again: layerscope directions {capture} --force",
    )
    EXTRACT_DIRECTIONS = _Words(
        python="extract them with extract_directions and save_directions",
        command_line="extract them: layerscope directions {capture}",
        server="call extract_direction(name=...)",
        app="extract them: layerscope directions {capture}",
    )
    GET_ANSWERS = _Words(
        python="write the prompts in the model's chat format, as concepts do, or give responses with the pairs",
        command_line="write the prompts in the model's chat format, as concepts do, or give responses with the pairs",
        server="write the prompts in the model's chat format, as concepts do, or pass a file with responses",
        app="use a capture of a concept, whose prompts are in the model's chat format, or a file with responses",
    )
    GIVE_NEUTRAL_PROMPTS = _Words(
        python="pass neutral=[...], one neutral prompt per pair",
        command_line="name a file with one neutral prompt per pair: --neutral FILE",
        server="pass neutral=[...], one neutral prompt per pair",
        app="use a capture of a concept",
    )
    GIVE_RENDERED_PAIRS = _Words(
        python="render the prompts yourself and pass them to capture_contrastive_activations",
        command_line="render the prompts yourself and pass them with --pairs FILE",
        server="render the prompts yourself and pass them to capture_contrast as pairs",
        app="render the prompts yourself and enter a file of pairs as the concept",
    )
    LET_PERSONAS_SAY_MORE = _Words(
        python="let them say more, as in CausalRequest(answer_tokens=24), or choose prompts that ask for an answer",
        command_line="let them say more with --answer-tokens, or choose prompts that ask for an answer",
        server="use a capture whose prompts ask for an answer",
        app="use a capture whose prompts ask for an answer",
    )
    LIST_CAPTURES = _Words(
        python="list_captures shows the captures of a store",
        command_line="layerscope list{store} shows the captures; --store FOLDER looks elsewhere",
        server="list_captures",
        app="Esc returns to the library, which lists the captures",
    )
    LIST_CONCEPTS = _Words(
        python="list_concepts shows the concepts",
        command_line="layerscope capture --list-concepts shows the concepts",
        server="list_concepts",
        app="the concepts are listed below the form",
    )
    LIST_MODELS = _Words(
        python="list_models shows the model aliases and which load without a download",
        command_line="layerscope capture --list-models shows the aliases and which load without a download",
        server="call list_models and prefer a model that is local",
        app="the models are listed below the form",
    )
    LOAD_IN_FLOAT32 = _Words(
        python="load it with dtype='float32', since half precision may be the cause; or use a model of another family",
        command_line="add --dtype float32, since half precision may be the cause; or use a model of another family",
        server=f"use another model, or {_OPERATOR} that half precision may be the cause and float32 would help",
        app="start the app again with --dtype float32, since half precision may be the cause; or use another model",
    )
    DO_NOT_COMPILE = _Words(
        python="pass compiled=False and another name",
        command_line="add --no-compile, under another name",
        server=f"{_OPERATOR} that compiling fails, and that the capture has to be made without it",
        app="make the capture on the command line with --no-compile, under another name",
    )
    MAKE_ROOM = _Words(
        python="free some disk space, then run the same capture again to resume from the saved shards",
        command_line="free some disk space, then run the same command again to resume from the saved shards",
        server=f"{_OPERATOR} to free some disk space; then {_RESUME}",
        app="free some disk space, then press n in the library and fill in the form as before to resume",
    )
    MAKE_WRITABLE = _Words(
        python="change the permissions of that folder (chmod u+w), and repeat the call",
        command_line="change the permissions of that folder (chmod u+w), and run the same command again",
        server=f"{_OPERATOR} that its store is not writable",
        app="change the permissions of that folder (chmod u+w), and try again",
    )
    MAKE_WRITABLE_OR_COPY = _Words(
        python="change the permissions of that folder (chmod u+w), or copy the capture into one that you may write",
        command_line=(
            "change the permissions of that folder (chmod u+w), or copy the capture into one that you may write and"
            " name it with --store"
        ),
        server=f"{_OPERATOR} that its store is not writable",
        app="change the permissions of that folder (chmod u+w), or start with a copy of it: layerscope tui FOLDER",
    )
    RENAME_DIRECTIONS = _Words(
        python="choose another name",
        command_line="choose another name",
        server="choose another save_as",
        app="choose another name",
    )
    RENAME_OR_MOVE_DIRECTIONS = _Words(
        python="choose another name, or rename those directions first with rename_capture",
        command_line=(
            "choose another name with --output, or rename those directions first: layerscope rename {capture} NEW"
        ),
        server="choose another name, or delete those directions first: delete_capture(directions_only=true)",
        app="enter another name in the field Save as",
    )
    RENAME_OR_REPLACE = _Words(
        python="choose another name, or replace it with force=True",
        command_line="choose another name with --output, or replace it with --force",
        server="choose another name, or replace=true",
        app="enter another name in the field Save as",
    )
    RENAME_OR_REPLACE_DIRECTIONS = _Words(
        python="choose another name, or replace them with force=True",
        command_line="choose another name with --output, or replace them with --force",
        server="choose another save_as, or replace=true",
        app="choose another name, or replace them: layerscope directions {capture} --force",
    )
    RESUME_AS_STARTED = _Words(
        python="resume {settings}, choose another name, or replace it with force=True",
        command_line="resume {settings}, choose another name with --output, or replace it with --force",
        server="repeat the capture call {settings} to resume, choose another name, or replace=true",
        app="resume {settings}, or enter another name in the field Save as",
    )
    RESUME = _Words(
        python="run the same capture again to resume from the saved shards",
        command_line="run the same capture command again to resume from the saved shards",
        server=_RESUME,
        app="press n in the library and fill in the form as before to resume from the saved shards",
    )
    RESUME_UNDER_NAME = _Words(
        python="run the same capture again under this name to resume from the saved shards",
        command_line="run the same capture command again, with{save_as}, to resume from the saved shards",
        server="repeat the capture call with this name, without replace, to resume from the saved shards",
        app=(
            "press n in the library, fill in the form as before, and enter this name in the field Save as, to resume"
            " from the saved shards"
        ),
    )
    SAVE_FIGURE = _Words(
        python="save the figure to a file with save_figure",
        command_line="save the figure with --output FILE.png",
        server="call plot_capture",
        app="press e to save the figure to a file",
    )
    SAVE_LESS = _Words(
        python="free some disk space, choose another folder, or keep less with positions='last' or fewer layers",
        command_line=(
            "free some disk space, choose another folder with --output, or keep less with --positions last or --layers"
        ),
        server=f"keep less with positions='last' or fewer layers, or {_OPERATOR} to free some disk space",
        app="free some disk space, or keep less: positions last, or fewer layers",
    )
    SEE_CONCEPT = _Words(
        python="compare with load_concept('honesty'), which `layerscope concepts show honesty` prints as a file",
        command_line="compare with the file that `layerscope concepts show honesty` prints",
        server="compare with list_concepts(name='honesty')",
        app="compare with the file that `layerscope concepts show honesty` prints in another terminal",
    )
    STEER_LESS = _Words(
        python="steer by less, or load the model with dtype='float32', whose range is larger",
        command_line="steer by less, or add --dtype float32, whose range is larger",
        server="steer by less",
        app="steer by less, or start the app again with --dtype float32, whose range is larger",
    )
    SET_CACHE_FOLDER = _Words(
        python="set TORCHINDUCTOR_CACHE_DIR to a folder that can be written, or unset it, before Python starts",
        command_line="set TORCHINDUCTOR_CACHE_DIR to a folder that can be written, or unset it",
        server=f"{_OPERATOR} to set TORCHINDUCTOR_CACHE_DIR to a folder that can be written, or to unset it",
        app="set TORCHINDUCTOR_CACHE_DIR to a folder that can be written, or unset it, and start the app again",
    )
    TRUST_REMOTE_CODE = _Words(
        python="pass trust_remote_code=True, only if you trust the model's author",
        command_line="add --trust-remote-code, only if you trust the model's author",
        server="use another model from list_models: this server does not run code that comes with a model",
        app="capture on the command line with --trust-remote-code, only if you trust the model's author",
    )
    USE_LESS_MEMORY = _Words(
        python="use fewer layers, use_hooks=True, dtype='bfloat16', shorter prompts or a smaller model",
        command_line="use fewer --layers, --use-hooks, --dtype bfloat16, shorter prompts or a smaller model",
        server="use fewer layers, shorter prompts or a smaller model, or call load_model(unload=true) first",
        app="use fewer layers, shorter prompts or a smaller model",
    )
    USE_SMALLER_MODEL = _Words(
        python="pass device_map='auto' to offload to disk what does not fit, or use a smaller model",
        command_line=(
            "add --device-map auto to offload to disk what does not fit, or use a smaller model:"
            " layerscope capture --list-models shows the sizes"
        ),
        server="use a smaller model from list_models, or call load_model(unload=true) first",
        app="start the app again with --device-map auto to offload to disk what does not fit, or use a smaller model",
    )
    USE_SMALLER_MODEL_OR_DTYPE = _Words(
        python=(
            "pass dtype='bfloat16' to halve the memory, or device_map='auto' to offload to disk what does not fit;"
            " or use a smaller model"
        ),
        command_line=(
            "add --dtype bfloat16 to halve the memory, or --device-map auto to offload to disk what does not fit;"
            " or use a smaller model"
        ),
        server="use a smaller model from list_models, or call load_model(unload=true) first",
        app=(
            "start the app again with --dtype bfloat16 to halve the memory, or with --device-map auto to offload to"
            " disk what does not fit; or use a smaller model"
        ),
    )
    WAIT = _Words(
        python="wait until it ends",
        command_line="wait until it ends",
        server="wait_for_job",
        app="wait until it ends",
    )
    WAIT_OR_RENAME = _Words(
        python="wait until it ends, or choose another name",
        command_line="wait until it ends, or choose another name with --output",
        server="wait_for_job, or choose another name",
        app="wait until it ends, or enter another name in the field Save as",
    )

    def words(self, face: Face) -> str:
        """The advice in the wording of one face.

        Example:
            >>> Remedy.RENAME_OR_REPLACE.words("server")
            'choose another name, or replace=true'
        """
        return Advice(self).words(face)


@dataclass(frozen=True)
class Advice:
    """A remedy about one store or capture, whose commands work as printed.

    Attributes:
        remedy: The remedy.
        store: The store folder; empty for the default one.
        capture: Name of the capture; by default, the reader fills it in.
        settings: Settings to give, by the names that the functions have for them; None for those to omit.
    """

    remedy: Remedy
    store: str = ""
    capture: str = "CAPTURE"
    settings: tuple[tuple[str, Setting], ...] = ()

    def words(self, face: Face) -> str:
        """The advice in the wording of one face.

        Example:
            >>> Advice(Remedy.EXTRACT_DIRECTIONS, store="my runs", capture="mine").words("command_line")
            "extract them: layerscope directions mine --store 'my runs'"
        """
        text = str(getattr(self.remedy.value, face))
        store, output = option("--store", self.store), option("--output", f"{self.store}/" if self.store else "")
        settings = _settings_in_words(self.settings, face)
        save_as = save_option(self.store, self.capture)
        return text.format(
            capture=f"{self.capture}{store}", store=store, output=output, save_as=save_as, settings=settings
        )


def option(name: str, value: str) -> str:
    """An option as a shell command needs it, after a space; empty without a value.

    Example:
        >>> option("--store", "my runs"), option("--store", "")
        (" --store 'my runs'", '')
    """
    return f" {name} {shlex.quote(value)}" if value else ""


def save_option(store: str, name: str) -> str:
    """The option of `capture` that saves under a name, after a space.

    Args:
        store: The store folder; empty for the default one.
        name: Name of the capture.

    Example:
        >>> save_option("", "mine"), save_option("my runs", "mine")
        (' --output activations/mine', " --output 'my runs/mine'")
    """
    return option("--output", f"{store or 'activations'}/{name}")


def _settings_in_words(settings: tuple[tuple[str, Setting], ...], face: Face) -> str:
    """Settings as arguments of a function, as options of a command, or in general."""
    if not settings or face in ("server", "app"):
        return "with the saved settings"
    if face == "python":
        return f"with {', '.join(f'{name}={value!r}' for name, value in settings)}"
    given = [_as_option(name, value) for name, value in settings if value not in (None, False)]
    omitted = [f"--{name.replace('_', '-')}" for name, value in settings if value in (None, False)]
    parts = [f"with {' '.join(given)}" if given else "", f"without {' and '.join(omitted)}" if omitted else ""]
    return " and ".join(part for part in parts if part)


def _as_option(name: str, value: Setting) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(text)}")
