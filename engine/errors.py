"""The errors a person or an agent may see: what is wrong, what was expected, what to do next.

Knows nothing of how an error is shown. Every other exception that leaves the engine is a bug and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class LayerscopeError(Exception):
    """Something the user can put right.

    Args:
        problem: What is wrong, one sentence without a full stop.
        expected: What would have been right, where that is not plain from the problem.
        next_step: What to do now.

    Example:
        >>> print(LayerscopeError("layer 30 does not exist", expected="0 to 29", next_step="give a smaller one"))
        layer 30 does not exist. Expected: 0 to 29. Next: give a smaller one.
    """

    exit_code = 1

    def __init__(self, problem: str, *, expected: str = "", next_step: str = "") -> None:
        self.problem = problem
        self.expected = expected
        self.next_step = next_step
        parts = [problem, f"Expected: {expected}" if expected else "", f"Next: {next_step}" if next_step else ""]
        super().__init__(" ".join(part if part.endswith((".", "?")) else f"{part}." for part in parts if part))


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
        "did you mean 'a' or 'b'?", or the list of all names when none is near.

    Example:
        >>> nearest("honest", ["honesty", "empathy"])
        "did you mean 'honesty'?"
    """
    names = list(known)
    close = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    return f"choose one of: {', '.join(names)}" if names else "there are none yet"
