"""The errors a person or an agent may see: what is wrong, what was expected, what to do next.

Knows nothing of how an error is shown: what to do that each face calls something else is a `Remedy`, and the face
brings the words. Every other exception that leaves the engine is a bug and keeps its traceback.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import Enum

_MOST_NAMES = 20


class Remedy(Enum):
    """What to do about an error, where every face has words of its own for it.

    The value says it to who calls the functions from Python. Remedies that read the same everywhere are plain strings.
    """

    CAPTURE_AGAIN = "capture again and save with force=True"
    CAPTURE_CONTRAST = "capture one with capture_from_concept or capture_contrastive_activations"
    CAPTURE_IN_FLOAT32 = "load the model with dtype='float32' and capture again: half precision can overflow"
    CAPTURE_MORE_PAIRS = "capture more pairs (max_samples)"
    CHOOSE_FOLDER = "choose another folder"
    CHOOSE_STORE = "choose another folder, or save a capture into this one with save_activations"
    EXTRACT_AGAIN = "extract the directions again and save with force=True"
    EXTRACT_DIRECTIONS = "extract them with extract_directions and save_directions"
    GIVE_RENDERED_PAIRS = "render the prompts yourself and give them to capture_contrastive_activations"
    GO_ON = "capture the same again: it goes on from the shards that are saved"
    LIST_CAPTURES = "list_captures shows what there is"
    LIST_CONCEPTS = "list_concepts shows the concepts"
    LIST_MODELS = "list_models shows the models that have a name, and which load without a download"
    LOAD_IN_FLOAT32 = "load it with dtype='float32', for half precision may be why; or choose a model of another family"
    MAKE_ROOM = "make room, then capture the same again: it goes on from the shards that are saved"
    RENAME_OR_REPLACE = "choose another name, or replace it with force=True"
    RENAME_OR_REPLACE_DIRECTIONS = "choose another name, or replace them with force=True"
    SAVE_FIGURE = "save the figure into a file with save_figure"
    SAVE_LESS = "make room, choose another folder, or keep less with positions='last' or fewer layers"
    SEE_CONCEPT = "compare with engine/concepts/data/honesty.toml"
    TRUST_REMOTE_CODE = "pass trust_remote_code=True, only if you trust the model's author"
    USE_LESS_MEMORY = "take fewer layers, use_hooks=True, dtype='bfloat16', shorter prompts or a smaller model"
    USE_SMALLER_MODEL = (
        "pass device_map='auto': what does not fit stays on the disk and is read in each pass; or use a smaller model"
    )
    USE_SMALLER_MODEL_OR_DTYPE = (
        "pass dtype='bfloat16', which halves it, or device_map='auto': what does not fit stays on the disk and is read"
        " in each pass; or use a smaller model"
    )


class LayerscopeError(Exception):
    """Something the user can put right.

    Args:
        problem: What is wrong, one sentence without a full stop.
        expected: What would have been right, where that is not plain from the problem.
        next_step: What to do now.

    Attributes:
        problem: As given.
        expected: As given.
        next_step: As given; a `Remedy` where each face says it in its own words.

    Example:
        >>> print(LayerscopeError("layer 30 does not exist", expected="0 to 29", next_step="give a smaller one"))
        layer 30 does not exist. Expected: 0 to 29. Next: give a smaller one.
    """

    exit_code = 1

    def __init__(self, problem: str, *, expected: str = "", next_step: str | Remedy = "") -> None:
        self.problem = problem
        self.expected = expected
        self.next_step = next_step
        super().__init__(self.said({}))

    def said(self, remedies: Mapping[Remedy, str]) -> str:
        """The whole message in the words of one face.

        Args:
            remedies: What that face says for a remedy; one that is not in it is said as in Python.

        Example:
            >>> error = LayerscopeError("there is no capture 'x'", next_step=Remedy.LIST_CAPTURES)
            >>> error.said({Remedy.LIST_CAPTURES: "layerscope list shows what there is"})
            "there is no capture 'x'. Next: layerscope list shows what there is."
        """
        step = self.next_step
        step = remedies.get(step, step.value) if isinstance(step, Remedy) else step
        parts = [self.problem, f"Expected: {self.expected}" if self.expected else "", f"Next: {step}" if step else ""]
        return " ".join(part if part.endswith((".", "?")) else f"{part}." for part in parts if part)


class RequestError(LayerscopeError):
    """What was asked for cannot be: an unknown name, a layer out of range, arguments that exclude each other."""

    exit_code = 2


class ModelError(LayerscopeError):
    """A model cannot be found, loaded, or trusted to keep the promises that capture relies on."""

    exit_code = 3


class CaptureError(LayerscopeError):
    """A prompt cannot be captured, or its states came out unusable."""

    exit_code = 4


class StoreError(LayerscopeError):
    """A capture cannot be written, found, or read back whole."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    """What another library says is wrong, without the page of advice that follows; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: str, known: Iterable[str]) -> str:
    """Words for an error message that lead from a mistyped name to the right one.

    Args:
        name: What was given.
        known: Every name that exists.

    Returns:
        "did you mean 'a' or 'b'?", or the first names when none is near.

    Example:
        >>> nearest("honest", ["honesty", "empathy"])
        "did you mean 'honesty'?"
    """
    names = list(known)
    close = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"choose one of: {', '.join(names[:_MOST_NAMES])}{more}" if names else "there are none yet"
