"""Errors for users and agents: what is wrong, what was expected, what to do next.

Any other exception that leaves the engine is a bug and keeps its traceback.
"""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

from engine.remedies import Advice, Face, Remedy

_MOST_NAMES = 20
_NO_MEMORY = ("can't allocate memory", "out of memory")  # in main memory, on a GPU
_UNSEEN = {"Cc", "Cs"}  # control characters, lone surrogates
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # marks that change the direction of text


class LayerscopeError(Exception):
    """An error that the user can fix.

    Args:
        problem: What is wrong, as one sentence without a final period.
        expected: What would have been right, if the problem does not make it obvious.
        next_step: What to do now; a `Remedy` or an `Advice` if each face words it differently.

    Attributes:
        problem: The argument of that name.
        expected: The argument of that name.
        next_step: The argument of that name.

    Example:
        >>> print(LayerscopeError("layer 30 does not exist", expected="0 to 29", next_step="give a smaller one"))
        layer 30 does not exist. Expected: 0 to 29. Next: give a smaller one.
    """

    exit_code = 1

    def __init__(self, problem: str, *, expected: str = "", next_step: str | Remedy | Advice = "") -> None:
        self.problem = problem
        self.expected = expected
        self.next_step = next_step
        super().__init__(self.said())

    def said(self, face: Face = "python") -> str:
        """The full message in the wording of one face.

        Args:
            face: Who reads it.

        Example:
            >>> LayerscopeError("there is no capture 'x'", next_step=Remedy.LIST_CAPTURES).said("server")
            "there is no capture 'x'. Next: list_captures."
        """
        step = self.next_step if isinstance(self.next_step, str) else self.next_step.words(face)
        parts = [self.problem, f"Expected: {self.expected}" if self.expected else "", f"Next: {step}" if step else ""]
        return visible(" ".join(part if part.endswith((".", "?")) else f"{part}." for part in parts if part))


class RequestError(LayerscopeError):
    """Invalid request: an unknown name, a layer out of range, conflicting arguments."""

    exit_code = 2


class ModelError(LayerscopeError):
    """A model cannot be found or loaded, or breaks an assumption of capture."""

    exit_code = 3


class CaptureError(LayerscopeError):
    """A prompt cannot be captured, or its states are unusable."""

    exit_code = 4


class StoreError(LayerscopeError):
    """A capture cannot be written, found, or read back intact."""

    exit_code = 5


def visible(text: str) -> str:
    r"""Show control characters and undecodable bytes as escapes, so that no text can steer a terminal.

    Line breaks and tabs stay.

    Example:
        >>> visible("a\x1b[31mb")
        'a\\x1b[31mb'
    """
    return "".join(_escaped(character) for character in text) if not text.isprintable() else text


def _escaped(character: str) -> str:
    if character in "\n\t" or (unicodedata.category(character) not in _UNSEEN and character not in _REORDERING):
        return character
    return character.encode("unicode_escape").decode()


def first_line(error: BaseException) -> str:
    """First line of another library's error; the type of the error if it has no text.

    Some libraries follow the first line with a page of advice.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest existing names similar to a mistyped one, for an error message.

    Args:
        name: The mistyped name.
        known: All existing names.

    Returns:
        "did you mean 'a' or 'b'?", or the first of the existing names if none is similar.

    Example:
        >>> nearest("honest", ["honesty", "empathy"])
        "did you mean 'honesty'?"
    """
    names = list(known)
    if close := similar(name, names):
        return close
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"choose one of: {', '.join(names[:_MOST_NAMES])}{more}" if names else "there are none yet"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch raises a RuntimeError then, of a type of its own for some allocations on a GPU.

    Example:
        >>> out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
        True
    """
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)


def similar(name: str, known: Iterable[str]) -> str:
    """Suggest names similar to a mistyped one, for an error message that lists all names elsewhere.

    Args:
        name: The mistyped name.
        known: All existing names.

    Returns:
        "did you mean 'a' or 'b'?", or nothing if none is similar.

    Example:
        >>> similar("honest", ["honesty", "empathy"]), similar("zzz", ["honesty", "empathy"])
        ("did you mean 'honesty'?", '')
    """
    close = get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
