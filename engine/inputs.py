"""Validate and convert arguments from callers: texts, whole numbers, paths."""

from __future__ import annotations

import errno
import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from io import IOBase
from numbers import Number
from pathlib import Path, PurePath
from typing import SupportsIndex, cast

from engine.errors import CaptureError, RequestError

_RENDER = (
    "render the conversation with tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)"
    " and pass the resulting text with rendered=True"
)
_DECODE = "pass the original text; tokenizer.decode(ids) recovers it from token ids"
_MOST_SEED = 2**32 - 1
_NOT_A_LIST = (str, bytes, bytearray, memoryview, Mapping, set, frozenset, PurePath, IOBase)


def is_text(given: object) -> bool:
    """Whether a value is a single text rather than several."""
    return isinstance(_unwrapped(given), str)


def plain_text(given: object, name: str) -> str:
    """Convert a text to a plain `str`.

    Args:
        given: A Python or NumPy string.
        name: Name of the value in error messages.

    Raises:
        CaptureError: The value is not a text; the message says what to pass instead.

    Example:
        >>> import numpy as np
        >>> plain_text(np.str_("Tell me a story"), "the prompt")
        'Tell me a story'
    """
    given = _unwrapped(given)
    if not isinstance(given, str):
        what, step = _description(given)
        raise CaptureError(f"{name} is {what}", expected="a text", next_step=step)
    return str.__str__(given)  # a subclass may override __str__


def plain_texts(given: object, name: str = "prompt") -> list[str]:
    """Convert several texts to a list of plain `str`.

    Args:
        given: A list, tuple, array, Series, generator or other iterable of texts.
        name: Name of one text in error messages.

    Raises:
        CaptureError: The value is a single text, is not a list, or contains something other than texts; the message
            says what to pass instead.

    Example:
        >>> import numpy as np
        >>> plain_texts(np.array(["a river", "a lake"]))
        ['a river', 'a lake']
    """
    if is_text(given):
        raise CaptureError(
            f"the {name}s are a single string, not a list", expected="a list of texts", next_step="pass [text]"
        )
    entries = _entries(given)
    if entries is None:
        what, step = _description(given)
        raise CaptureError(f"the {name} is {what}", expected="a text, or a list of texts", next_step=step)
    return [plain_text(entry, f"{name} {number}") for number, entry in enumerate(entries)]


def whole_number(given: object) -> int | None:
    """Convert a whole number to a plain `int`; None for anything else.

    True and 3.0 are not whole numbers.

    Example:
        >>> import numpy as np
        >>> whole_number(np.int64(3)), whole_number(3.0), whole_number(True)
        (3, None, None)
    """
    if type(given) is int:
        return given
    given = _unwrapped(given)
    if isinstance(given, bool) or not isinstance(given, SupportsIndex):
        return None
    try:
        return operator.index(given)
    except TypeError:  # arrays have the method but reject the call
        return None


def whole_numbers(given: object) -> list[object] | None:
    """The entries of a list, array, range or generator; None for anything else.

    The entries are not checked: convert each with `whole_number`.
    """
    entries = _entries(given)
    return None if entries is None else [*entries]


def require_whole(given: object, name: str, least: int | None = None) -> int:
    """Convert a whole number to a plain `int`, or raise.

    Args:
        given: Value from the user.
        name: Name of the value in error messages.
        least: Smallest allowed value.

    Raises:
        RequestError: The value is not a whole number, or is too small.
    """
    number = whole_number(given)
    if number is None or (least is not None and number < least):
        raise RequestError(
            f"{name} cannot be {given!r}",
            expected="a whole number" if least is None else f"a whole number, at least {least}",
        )
    return number


def require_seed(given: object) -> int:
    """Convert the seed of a random generator to a plain `int`.

    Raises:
        RequestError: It is not a whole number from 0 to 2^32 - 1.
    """
    number = require_whole(given, "the seed", 0)
    if number > _MOST_SEED:
        raise RequestError(f"the seed cannot be {number}", expected=f"0 to {_MOST_SEED}")
    return number


def require_flag(given: object, name: str) -> bool:
    """Check that a value is True or False, of Python or NumPy: any text is true in Python, also "no".

    Args:
        given: The value.
        name: What the message calls it.

    Raises:
        RequestError: It is something else.

    Example:
        >>> require_flag(True, "sample")
        True
    """
    flag = _unwrapped(given)
    if not isinstance(flag, bool):
        raise RequestError(f"{name} cannot be {given!r}", expected="True or False")
    return flag


def _unwrapped(given: object) -> object:
    """The value of a NumPy scalar or of a zero-dimensional array or tensor."""
    item = getattr(given, "item", None)
    return item() if callable(item) and getattr(given, "ndim", None) == 0 else given


def _entries(given: object) -> Iterator[object] | None:
    """The entries of a value that is clearly a list; None for anything else."""
    if isinstance(given, _NOT_A_LIST) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1:
        return None
    return iter(given)


def _description(given: object) -> tuple[str, str]:
    """Describe a value that is not a text, and say what to pass instead."""
    if given is None:
        return "missing (None)", "pass a text"
    if isinstance(given, Mapping):
        if "input_ids" in given:
            return "the output of a tokenizer", "pass the text itself: the capture tokenizes it"
        return ("a chat message", _RENDER) if "role" in given else ("a dictionary", "pass its texts as a list")
    if isinstance(given, bytes | bytearray | memoryview):
        return "bytes", "decode them with bytes.decode('utf-8')"
    if isinstance(given, PurePath | IOBase):
        return "a file", "pass its contents, or capture all its prompts with capture_prompt_file"
    if isinstance(given, set | frozenset):
        return "a set, which has no order", "pass a list"
    if isinstance(given, Number) or hasattr(given, "dtype"):
        return f"a number or an array of numbers ({type(given).__name__})", _DECODE
    return f"a value of type {type(given).__name__}", "pass a str or a list of str"


def user_path(given: str | Path) -> Path:
    """Expand `~` or `~name` at the start of a path.

    Shells do not expand it in quotes or after `=`.

    Args:
        given: Path from the user.

    Raises:
        RequestError: The value is not a path, the home folder does not exist, or no file can have that name: it is too
            long, or contains a null character or a lone surrogate.

    Example:
        >>> user_path("activations").as_posix()
        'activations'
    """
    if not isinstance(given, str | Path):
        raise RequestError(
            f"a value of type {type(given).__name__} is not a path",
            expected="the path of one file or folder, as str or Path",
        )
    if "\0" in str(given):
        raise RequestError(f"{str(given)!r} is not a valid path", expected="a path without null characters")
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:
        raise RequestError(
            f"{str(given)!r} cannot be expanded: there is no such home folder", next_step="write the path out in full"
        ) from error
    _require_possible(path)
    return path


def _require_possible(path: Path) -> None:
    """Refuse a path that no file can have; looking for such a file raises errors of its own."""
    try:
        os.lstat(path)
    except UnicodeEncodeError as error:
        raise RequestError(f"{str(path)!r} is not a valid path", expected="text without lone surrogates") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise RequestError(f"'{str(path)[:40]}…' is too long for the name of a file") from error


def require_strength(strength: object, name: str = "the strength") -> float:
    """Convert a strength, or another number, to a plain `float`.

    Args:
        strength: The number.
        name: What the message calls it.

    Raises:
        RequestError: It is not a finite number.
    """
    number = math.nan
    if not isinstance(strength, bool | str | bytes):
        try:
            number = float(cast("float", strength))
        except (TypeError, ValueError):
            number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{name} cannot be {strength!r}", expected="a finite number, such as 0.1")
    return number
