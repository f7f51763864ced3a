"""Paths as a user gives them: `~` stands for the home folder, in every place that takes one. Imports no torch."""

from pathlib import Path

from engine.errors import RequestError


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
