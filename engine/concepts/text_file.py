"""Tell files of prompts from files of pairs by what they begin with. Imports no torch."""

import csv
from pathlib import Path

from engine.concepts.dataset_folder import dataset_columns, is_dataset
from engine.concepts.pair_files import PairFile, open_pairs
from engine.concepts.prompt_file import PromptFile, open_prompts
from engine.concepts.rows import jsonl_rows, readable_errors
from engine.errors import RequestError
from engine.paths import user_path

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
