"""Prompts of the user's own, from a text, JSONL or CSV file or a data set, one at a time.

Every complaint names the line or row. Imports no torch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.concepts.dataset_folder import dataset_rows
from engine.concepts.rows import (
    csv_rows,
    file_stamp,
    jsonl_rows,
    place_in,
    readable_errors,
    require_whole_characters,
    text_lines,
)
from engine.errors import RequestError
from engine.paths import user_path


@dataclass(frozen=True)
class PromptFile:
    """A file or data set of prompts.

    Attributes:
        path: Where it lies.
    """

    path: Path

    def texts(self) -> Iterator[str]:
        """The prompts in the order of the file; lines without any text are passed over.

        Raises:
            RequestError: The file cannot be read, or a line or row has no prompt.
        """
        read = _read_dataset if self.path.is_dir() else _READERS[self.path.suffix.lower()]
        with readable_errors(self.path):
            for number, text in read(self.path):
                yield self._checked(number, text)

    def _checked(self, number: int, text: object) -> str:
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f"{place_in(self.path, number)}: prompt must be a text that is not empty")
        require_whole_characters(self.path, number, "prompt", text)
        return text

    def stamp(self) -> tuple[int, int]:
        """What differs when the file was changed, see `file_stamp`."""
        return file_stamp(self.path)


def open_prompts(path: str | Path) -> PromptFile:
    """A file of prompts, looked into as far as its first prompt.

    Args:
        path: `.txt`: a prompt a line. `.jsonl`: an object a line, with `prompt`. `.csv`: a table whose first line names
            the columns, one of them `prompt`. Other fields are left alone. In UTF-8. Or the folder of a data set with a
            column `prompt`, as `save_to_disk` of the library datasets writes it, which must be installed.

    Raises:
        RequestError: It says no format, cannot be read, or does not begin with a prompt.
    """
    file = PromptFile(user_path(path))
    if file.path.suffix.lower() not in _READERS and not file.path.is_dir():
        raise RequestError(
            f"{file.path.name!r} says no format",
            expected="prompts in a .txt, .jsonl or .csv file, or in the folder of a data set",
        )
    if next(file.texts(), None) is None:
        raise RequestError(f"{file.path} holds no prompts", expected="at least one")
    return file


def _read_jsonl(path: Path) -> Iterator[tuple[int, object]]:
    for number, row in jsonl_rows(path, '{"prompt": …}'):
        yield number, row.get("prompt")


def _read_csv(path: Path) -> Iterator[tuple[int, object]]:
    for number, row in csv_rows(path, "prompt"):
        yield number, row["prompt"]


def _read_dataset(path: Path) -> Iterator[tuple[int, object]]:
    for number, row in dataset_rows(path, ["prompt"]):
        yield number, row["prompt"]


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, object]]]] = {
    ".txt": text_lines,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}
