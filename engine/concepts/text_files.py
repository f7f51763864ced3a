"""Find and read files of prompts or pairs: text, JSONL, CSV and saved datasets.

Every error names the line or row.
"""

import csv
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from engine.concepts.pair_files import PairFile, open_pairs, require_like_first, require_response
from engine.concepts.rows import (
    csv_columns,
    csv_rows,
    dataset_columns,
    dataset_rows,
    file_stamp,
    how_to_convert,
    is_dataset,
    jsonl_rows,
    lines_of,
    open_text,
    place_in,
    readable_errors,
    require_text,
    text_lines,
)
from engine.errors import RequestError, nearest
from engine.inputs import plain_texts, user_path

log = logging.getLogger(__name__)

_MISSPELT = 0.85  # similarity to `response`, above that of `response_id`


class WrittenPrompt(NamedTuple):
    """A prompt as written in a file.

    Attributes:
        text: The prompt.
        responses: The response to it; empty if the file does not give one.
        line: Number of its line or row.
    """

    text: str
    responses: tuple[str, ...] = ()
    line: int = 0


@dataclass(frozen=True)
class PromptFile:
    """A file or saved dataset of prompts.

    Attributes:
        path: Path of the file or folder.
    """

    path: Path

    def texts(self) -> Iterator[str]:
        """Yield the prompts in file order; blank lines are skipped.

        Raises:
            RequestError: The file cannot be read, or a line or row has no prompt.
        """
        return (prompt.text for prompt in self.prompts())

    def prompts(self) -> Iterator[WrittenPrompt]:
        """Yield the prompts with their responses; see `texts`.

        Raises:
            RequestError: See `texts`; or only some lines have a response.
        """
        read = _read_dataset if self.path.is_dir() else _READERS[self.path.suffix.lower()]
        with readable_errors(self.path):
            answered: bool | None = None
            for number, text, response in read(self.path):
                answered = response is not None if answered is None else answered
                require_like_first(self.path, number, response is not None, answered)
                if answered:
                    require_response(self.path, number, "response", response)
                yield WrittenPrompt(self._checked(number, text), (str(response),) if answered else (), number)

    @property
    def answered(self) -> bool:
        """Whether the prompts have responses.

        Raises:
            RequestError: The first prompt cannot be read.
        """
        return any(prompt.responses for prompt in islice(self.prompts(), 1))

    def _checked(self, number: int, text: object) -> str:
        if text is None:
            raise RequestError(f"{place_in(self.path, number)}: prompt is missing", expected="a prompt in each line")
        return require_text(self.path, number, "prompt", text)

    def stamp(self) -> tuple[int, int]:
        """Size and modification time of the file; see `file_stamp`."""
        return file_stamp(self.path)


def open_prompts(path: str | Path) -> PromptFile:
    """Open a file of prompts and check its first prompt.

    Args:
        path: UTF-8 file or dataset folder. `.txt`: one prompt per line. `.jsonl`: one object per line, with the field
            `prompt`. `.csv`: a header line with a column `prompt`. A dataset: a folder written by `save_to_disk` of
            the `datasets` library, which must be installed, with a column `prompt`. A field `response`, if there is
            one, is the response to the prompt. Other fields are ignored, with a warning if one looks like `response`.

    Raises:
        RequestError: The file type is not supported, the file cannot be read, or it does not start with a valid
            prompt.
    """
    file = PromptFile(user_path(path))
    if file.path.suffix.lower() not in _READERS and not file.path.is_dir():
        raise RequestError(
            f"{file.path.name!r} is not a supported file type",
            expected="prompts in a .txt, .jsonl or .csv file, or in a dataset folder",
            next_step=how_to_convert(file.path),
        )
    if next(file.texts(), None) is None:
        blank = file.path.is_file() and file.path.suffix.lower() != ".csv" and file.path.stat().st_size > 0
        raise RequestError(
            f"{file.path} contains no prompts{': all of its lines are blank' if blank else ''}", expected="at least one"
        )
    if not file.answered:
        _warn_of_misspelt(file.path)
    return file


def _warn_of_misspelt(path: Path) -> None:
    """Log a warning if a field of the first prompt looks like a misspelt `response`."""
    rows = {".jsonl": partial(jsonl_rows, path, ""), ".csv": partial(csv_rows, path)}.get(path.suffix.lower())
    first = next(rows(), None) if rows else None
    for field in first[1] if first else {}:
        if get_close_matches(field.lower(), ["response"], cutoff=_MISSPELT):
            log.warning("%s: the field %r is ignored; a response is read from the field 'response'", path.name, field)


def named_prompts(prompts: Iterable[str] | PromptFile, what: str) -> list[tuple[str, str]]:
    """Prompts with their names in error messages, which say where they are written.

    Args:
        prompts: The texts, or their file.
        what: What the messages call one of them.

    Raises:
        CaptureError: One is not a text.
        RequestError: The file cannot be read, or a line or row has no prompt.

    Example:
        >>> named_prompts(["Is the sky blue?"], "neutral prompt")
        [('neutral prompt 0', 'Is the sky blue?')]
    """
    if isinstance(prompts, PromptFile):
        lines = lines_of(prompts.path)
        return [(f"the {what} in {lines} {prompt.line}", prompt.text) for prompt in prompts.prompts()]
    return [(f"{what} {number}", text) for number, text in enumerate(plain_texts(prompts, what))]


_Read = Iterator[tuple[int, object, object]]  # number of a line, its prompt and its response


def _read_lines(path: Path) -> _Read:
    return ((number, line, None) for number, line in text_lines(path))


def _read_jsonl(path: Path) -> _Read:
    for number, row in jsonl_rows(path, '{"prompt": …}'):
        yield number, row.get("prompt"), row.get("response")


def _read_csv(path: Path) -> _Read:
    for number, row in csv_rows(path, "prompt"):
        yield number, row["prompt"], row.get("response")


def _read_dataset(path: Path) -> _Read:
    for number, row in dataset_rows(path, ["prompt"], ["response"]):
        yield number, row["prompt"], row.get("response")


_READERS: dict[str, Callable[[Path], _Read]] = {
    ".txt": _read_lines,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}


TEXT_FILES = (".txt", ".jsonl", ".csv")
"""Suffixes of files of prompts or pairs."""

_PROMPTS = '{"prompt": "…"}'
_PAIRS = '{"positive": "…", "negative": "…"}'
_EXPECTED = f"prompts ({_PROMPTS}) or pairs ({_PAIRS}); a .csv file has these as columns"


def open_texts(path: str | Path) -> PromptFile | PairFile:
    """Open a file of prompts or of pairs; its fields decide which.

    Args:
        path: UTF-8 file or dataset folder. `.txt`: prompts. `.jsonl`, `.csv` and datasets: prompts if the first line
            or the dataset has `prompt`, pairs if it has `positive` and `negative`.

    Raises:
        RequestError: The file type is not supported, the file cannot be read, or it starts with neither prompts nor
            pairs, or with both.

    Example:
        >>> written = Path("questions.jsonl").write_text('{"prompt": "Is the sky blue?"}')
        >>> type(open_texts("questions.jsonl")).__name__
        'PromptFile'
    """
    path = user_path(path)
    kind = path.suffix.lower()
    if kind not in TEXT_FILES and not path.is_dir():
        raise RequestError(
            f"{path.name!r} is not a supported file type",
            expected=f"a file ending in {', '.join(TEXT_FILES)}",
            next_step=how_to_convert(path),
        )
    if kind == ".txt" and not path.is_dir():
        return open_prompts(path)
    fields = _first_fields(path)
    prompts, pairs = "prompt" in fields, bool(fields & {"positive", "negative"})
    if prompts == pairs:
        has = f"has {', '.join(sorted(fields))}" if fields else "has no fields"
        where = "it" if path.is_dir() else "its first line"
        wrong = "both prompts and pairs" if prompts else "neither prompts nor pairs"
        raise RequestError(f"{path} contains {wrong}: {where} {has}", expected=_EXPECTED)
    return open_prompts(path) if prompts else open_pairs(path)


def is_text_file(path: Path) -> bool:
    """Whether `open_texts` supports a path: by its suffix, or as a dataset folder."""
    return path.suffix.lower() in TEXT_FILES or is_dataset(path)


def _first_fields(path: Path) -> set[str]:
    """Fields of the first line of a file, or columns of a dataset."""
    if path.is_dir():
        return dataset_columns(path)
    with readable_errors(path):
        if path.suffix.lower() == ".csv":
            with open_text(path, newline="") as file:
                return {*csv_columns(path, next(csv.reader(file, strict=True), []))}
        for _, row in jsonl_rows(path, f"{_PROMPTS} or {_PAIRS}"):
            return {*row}
    return set()


def prompt_files(folder: Path) -> list[str]:
    """Names of the prompt files, pair files and datasets in a folder.

    Links and names that are not UTF-8 are skipped.

    Args:
        folder: Path of the folder; it may not exist.

    Example:
        >>> prompt_files(Path("nowhere"))
        []
    """
    if folder.is_symlink() or not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if not path.is_symlink() and _holds_texts(path))
    return sorted(name for name in names if _is_utf8(name))


def find_texts(name: str, folder: Path) -> PromptFile | PairFile:
    """Open a file or dataset of prompts or pairs by its name in a folder.

    Args:
        name: Name as listed by `prompt_files`; paths are refused.
        folder: Folder of the file.

    Raises:
        RequestError: The folder has no file of that name, or the file starts with neither a prompt nor a pair.
    """
    try:
        known = prompt_files(folder)
    except OSError as error:
        raise RequestError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if name not in known:
        raise RequestError(
            f"there is no file called {name!r}; {nearest(name, known)}",
            expected=f"the name of a .txt, .jsonl or .csv file or dataset in {folder}, not a path or a link",
        )
    return open_texts(folder / name)


def _holds_texts(path: Path) -> bool:
    return (path.is_file() and path.suffix.lower() in TEXT_FILES) or is_dataset(path)


def _is_utf8(name: str) -> bool:
    """Whether a file name is valid UTF-8; other bytes show up as lone surrogates."""
    return name == name.encode(errors="replace").decode()
