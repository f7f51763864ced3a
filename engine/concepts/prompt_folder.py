"""Files and data sets of prompts or pairs by their names in one folder, for who must not read any other. No torch."""

from pathlib import Path

from engine.concepts.dataset_folder import is_dataset
from engine.concepts.pair_files import PairFile
from engine.concepts.prompt_file import PromptFile
from engine.concepts.text_file import TEXT_FILES, open_texts
from engine.errors import RequestError, nearest


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
