"""Check what callers hand over: texts, whole numbers, paths."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from io import IOBase
from numbers import Number
from pathlib import Path, PurePath
from typing import SupportsIndex

from engine.errors import CaptureError, RequestError

_RENDER = (
    "render the conversation with tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)"
    " and pass that text with rendered=True"
)
_DECODE = "pass the text that the token ids came from; tokenizer.decode(ids) gives it back"
_NOT_A_LIST = (str, bytes, bytearray, memoryview, Mapping, set, frozenset, PurePath, IOBase)


def is_text(given: object) -> bool:
    """Whether a value is one text, as opposed to several."""
    return isinstance(_unwrapped(given), str)


def plain_text(given: object, name: str) -> str:
    """A text as a plain `str`.

    Args:
        given: A string of Python or NumPy.
        name: What an error message calls it.

    Raises:
        CaptureError: It is no text; the message says what to pass.

    Example:
        >>> import numpy as np
        >>> plain_text(np.str_("Tell me a story"), "the prompt")
        'Tell me a story'
    """
    given = _unwrapped(given)
    if not isinstance(given, str):
        what, step = _description(given)
        raise CaptureError(f"{name} is {what}", expected="a text", next_step=step)
    return str.__str__(given)  # of a subclass the text itself, whatever it says it is


def plain_texts(given: object, name: str = "prompt") -> list[str]:
    """Several texts as a list of plain `str`.

    Args:
        given: A list, tuple, array, Series, generator or other iterable of texts.
        name: What an error message calls one of them.

    Raises:
        CaptureError: It is one text, no list at all, or holds something else; the message says what to pass.

    Example:
        >>> import numpy as np
        >>> plain_texts(np.array(["a river", "a lake"]))
        ['a river', 'a lake']
    """
    if is_text(given):
        raise CaptureError(
            f"the {name}s are one string where a list is meant", expected="a list of texts", next_step="pass [text]"
        )
    entries = _entries(given)
    if entries is None:
        what, step = _description(given)
        raise CaptureError(f"the {name} is {what}", expected="a text, or a list of texts", next_step=step)
    return [plain_text(entry, f"{name} {number}") for number, entry in enumerate(entries)]


def whole_number(given: object) -> int | None:
    """A whole number as a plain `int`; None for everything else, such as True and 3.0.

    Example:
        >>> import numpy as np
        >>> whole_number(np.int64(3)), whole_number(3.0), whole_number(True)
        (3, None, None)
    """
    given = _unwrapped(given)
    if isinstance(given, bool) or not isinstance(given, SupportsIndex):
        return None
    try:
        return operator.index(given)
    except TypeError:  # arrays have the method, and refuse
        return None


def whole_numbers(given: object) -> list[object] | None:
    """The entries of a list, array, range or generator, to be read with `whole_number`; None if it is no list."""
    entries = _entries(given)
    return None if entries is None else [*entries]


def require_whole(given: object, name: str, least: int | None = None) -> int:
    """A whole number as a plain `int`.

    Args:
        given: What a user passed.
        name: What an error message calls it.
        least: The smallest that is allowed.

    Raises:
        RequestError: It is none, or too small.
    """
    number = whole_number(given)
    if number is None or (least is not None and number < least):
        raise RequestError(
            f"{name} cannot be {given!r}",
            expected="a whole number" if least is None else f"a whole number, at least {least}",
        )
    return number


def _unwrapped(given: object) -> object:
    """The value of a NumPy scalar, or of an array or tensor without dimensions."""
    item = getattr(given, "item", None)
    return item() if callable(item) and getattr(given, "ndim", None) == 0 else given


def _entries(given: object) -> Iterator[object] | None:
    """The entries of what is plainly a list; None for all else."""
    if isinstance(given, _NOT_A_LIST) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1:
        return None
    return iter(given)


def _description(given: object) -> tuple[str, str]:
    """What a value is that is no text, and what to pass instead."""
    if given is None:
        return "missing (None)", "pass a text"
    if isinstance(given, Mapping):
        if "input_ids" in given:
            return "the output of a tokenizer", "pass the text itself: the capture tokenizes it"
        return ("a chat message", _RENDER) if "role" in given else ("a dictionary", "pass its texts as a list")
    if isinstance(given, bytes | bytearray | memoryview):
        return "bytes", "decode them: bytes.decode('utf-8') gives a text"
    if isinstance(given, PurePath | IOBase):
        return "a file", "pass what it holds, or capture all its prompts with capture_prompt_file"
    if isinstance(given, set | frozenset):
        return "a set, which has no order", "pass a list"
    if isinstance(given, Number) or hasattr(given, "dtype"):
        return f"a number or an array of numbers ({type(given).__name__})", _DECODE
    return f"a value of the type {type(given).__name__}", "pass texts: str, or a list of str"


def user_path(given: str | Path) -> Path:
    """A path with `~` or `~name` at its beginning expanded; shells leave it alone in quotes and after `=`.

    Args:
        given: What a user gave.

    Raises:
        RequestError: It is no path, there is no such home folder, or the path holds a null character.

    Example:
        >>> user_path("activations").as_posix()
        'activations'
    """
    if not isinstance(given, str | Path):
        raise RequestError(
            f"a value of the type {type(given).__name__} is no path",
            expected="the path of one file or folder, a str or a Path",
        )
    if "\0" in str(given):
        raise RequestError(f"{str(given)!r} cannot be a path", expected="a path without null characters")
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise RequestError(
            f"{str(given)!r} is no path here: there is no such home folder", next_step="write it out"
        ) from error
