"""Prompts of the user's own, from a text, JSONL or CSV file or a data set, one at a time.

Every complaint names the line or row. Imports no torch.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.concepts.pair_files import PairFile, open_pairs
from engine.concepts.rows import (
    csv_rows,
    dataset_columns,
    dataset_rows,
    file_stamp,
    is_dataset,
    jsonl_rows,
    place_in,
    readable_errors,
    require_whole_characters,
    text_lines,
)
from engine.errors import RequestError, nearest
from engine.inputs import user_path


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


TEXT_FILES = (".txt", ".jsonl", ".csv")
"""How the names of files that hold texts end."""

_PROMPTS = '{"prompt": "…"}'
_PAIRS = '{"positive": "…", "negative": "…"}'
_EXPECTED = f"prompts, {_PROMPTS}, or pairs, {_PAIRS}; in a .csv file these are columns"


def open_texts(path: str | Path) -> PromptFile | PairFile:
    """A file of prompts or of pairs, whichever it is.

    Args:
        path: `.txt`: prompts. `.jsonl`, `.csv` and the folder of a data set: prompts if the first line or the data set
            has `prompt`, pairs if it has `positive` and `negative`.

    Raises:
        RequestError: It says no format, cannot be read, or begins with neither or both.

    Example:
        >>> written = Path("questions.jsonl").write_text('{"prompt": "Is the sky blue?"}')
        >>> type(open_texts("questions.jsonl")).__name__
        'PromptFile'
    """
    path = user_path(path)
    kind = path.suffix.lower()
    if kind not in TEXT_FILES and not path.is_dir():
        raise RequestError(f"{path.name!r} says no format", expected=f"a file ending in {', '.join(TEXT_FILES)}")
    if kind == ".txt" and not path.is_dir():
        return open_prompts(path)
    fields = _first_fields(path)
    prompts, pairs = "prompt" in fields, bool(fields & {"positive", "negative"})
    if prompts == pairs:
        has = f"has {', '.join(sorted(fields))}" if fields else "has no fields"
        where = "it" if path.is_dir() else "its first line"
        wrong = "both prompts and pairs" if prompts else "neither prompts nor pairs"
        raise RequestError(f"{path} holds {wrong}: {where} {has}", expected=_EXPECTED)
    return open_prompts(path) if prompts else open_pairs(path)


def is_text_file(path: Path) -> bool:
    """Whether a path, by its name or as the folder of a data set, is for `open_texts`."""
    return path.suffix.lower() in TEXT_FILES or is_dataset(path)


def _first_fields(path: Path) -> set[str]:
    """What the first line, or a data set, says there is."""
    if path.is_dir():
        return dataset_columns(path)
    with readable_errors(path):
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return {*next(csv.reader(file, strict=True), [])}
        for _, row in jsonl_rows(path, f"{_PROMPTS} or {_PAIRS}"):
            return {*row}
    return set()


def prompt_files(folder: Path) -> list[str]:
    """Names of the files of texts and data sets in a folder; links and names that are not UTF-8 are skipped.

    Args:
        folder: It need not be there.

    Example:
        >>> prompt_files(Path("nowhere"))
        []
    """
    if folder.is_symlink() or not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if not path.is_symlink() and _holds_texts(path))
    return sorted(name for name in names if _is_utf8(name))


def find_texts(name: str, folder: Path) -> PromptFile | PairFile:
    """A file or data set of a folder, of prompts or of pairs.

    Args:
        name: As `prompt_files` lists it. A path is no name.
        folder: Where it lies.

    Raises:
        RequestError: There is none of that name, or it begins with neither a prompt nor a pair.
    """
    try:
        known = prompt_files(folder)
    except OSError as error:
        raise RequestError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if name not in known:
        raise RequestError(
            f"there is no file called {name!r}; {nearest(name, known)}",
            expected=f"the name of a .txt, .jsonl or .csv file or of a data set in {folder}; no path, no link",
        )
    return open_texts(folder / name)


def _holds_texts(path: Path) -> bool:
    return (path.is_file() and path.suffix.lower() in TEXT_FILES) or is_dataset(path)


def _is_utf8(name: str) -> bool:
    """Python keeps what a name has beside UTF-8 as halves of characters."""
    return name == name.encode(errors="replace").decode()
