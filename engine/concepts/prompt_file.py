"""Prompts of the user's own, from a text, JSONL or CSV file, one at a time: files may be larger than memory.

Every complaint names the line. Imports no torch.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
        try:
            for number, text in _READERS[self.path.suffix.lower()](self.path):
                yield _checked(self.path, number, text)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise RequestError(
                f"{self.path} cannot be read: {error}", next_step="check the path; it must be UTF-8"
            ) from error

    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change: what differs when the file was changed.

        Raises:
            RequestError: The file is gone.
        """
        try:
            found = self.path.stat()
        except OSError as error:
            raise RequestError(f"{self.path} cannot be read: {error.strerror}", next_step="check the path") from error
        return found.st_size, found.st_mtime_ns


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


def _read_text(path: Path) -> Iterator[tuple[int, object]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.removesuffix("\n")


def _read_jsonl(path: Path) -> Iterator[tuple[int, object]]:
    for number, line in _read_text(path):
        try:
            row = json.loads(str(line))
        except json.JSONDecodeError as error:
            raise RequestError(f"{path}, line {number} is not JSON: {error}", next_step="correct that line") from error
        if not isinstance(row, dict):
            raise RequestError(f"{path}, line {number} is not an object", expected='{"prompt": …}')
        yield number, row.get("prompt")


def _read_csv(path: Path) -> Iterator[tuple[int, object]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if "prompt" not in (reader.fieldnames or []):
            raise RequestError(f"{path} has no column 'prompt'", expected="it in the first line, which names columns")
        for row in reader:
            yield reader.line_num, row["prompt"]


_READERS = {".txt": _read_text, ".jsonl": _read_jsonl, ".csv": _read_csv}


def _checked(path: Path, number: int, text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise RequestError(f"{path}, line {number}: prompt must be a text that is not empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{path}, line {number}: the prompt holds half a character: {error.reason}") from error
    return text
