"""Prompts of the user's own, from a text, JSONL or CSV file, one at a time.

Every complaint names the line. Imports no torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.concepts.rows import csv_rows, file_stamp, jsonl_rows, readable_errors, require_whole_characters, text_lines
from engine.errors import RequestError


@dataclass(frozen=True)
class PromptFile:
    """A file of prompts.

    Attributes:
        path: Where it lies.
    """

    path: Path

    def texts(self) -> Iterator[str]:
        """The prompts in the order of the file; lines without any text are passed over.

        Raises:
            RequestError: The file cannot be read, or a line has no prompt.
        """
        with readable_errors(self.path):
            for number, text in _READERS[self.path.suffix.lower()](self.path):
                yield _checked(self.path, number, text)

    def stamp(self) -> tuple[int, int]:
        """What differs when the file was changed, see `file_stamp`."""
        return file_stamp(self.path)


def open_prompts(path: str | Path) -> PromptFile:
    """A file of prompts, looked into as far as its first prompt.

    Args:
        path: `.txt`: a prompt a line. `.jsonl`: an object a line, with `prompt`. `.csv`: a table whose first line names
            the columns, one of them `prompt`. Other fields are left alone. In UTF-8.

    Raises:
        RequestError: It says no format, cannot be read, or does not begin with a prompt.
    """
    file = PromptFile(Path(path))
    if file.path.suffix.lower() not in _READERS:
        raise RequestError(f"{file.path.name!r} says no format", expected="prompts in a .txt, .jsonl or .csv file")
    if next(file.texts(), None) is None:
        raise RequestError(f"{file.path} holds no prompts", expected="at least one")
    return file


def _read_jsonl(path: Path) -> Iterator[tuple[int, object]]:
    for number, row in jsonl_rows(path, '{"prompt": …}'):
        yield number, row.get("prompt")


def _read_csv(path: Path) -> Iterator[tuple[int, object]]:
    for number, row in csv_rows(path, "prompt"):
        yield number, row["prompt"]


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, object]]]] = {
    ".txt": text_lines,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}


def _checked(path: Path, number: int, text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise RequestError(f"{path}, line {number}: prompt must be a text that is not empty")
    require_whole_characters(path, number, "prompt", text)
    return text
