"""Files of prompts by their names in one folder, for who must not read any other. Imports no torch."""

from pathlib import Path

from engine.concepts.prompt_file import PromptFile, open_prompts
from engine.concepts.text_file import TEXT_FILES
from engine.errors import RequestError, nearest


def prompt_files(folder: Path) -> list[str]:
    """Names of the files of texts that lie in a folder; links are passed over, for they lead elsewhere.

    Args:
        folder: It need not be there.

    Example:
        >>> prompt_files(Path("nowhere"))
        []
    """
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in TEXT_FILES and path.is_file() and not path.is_symlink()
    )


def find_prompts(name: str, folder: Path) -> PromptFile:
    """A file of prompts of a folder.

    Args:
        name: As `prompt_files` lists it. A path is no name.
        folder: Where it lies.

    Raises:
        RequestError: There is none of that name, or it does not begin with a prompt.
    """
    try:
        known = prompt_files(folder)
    except OSError as error:
        raise RequestError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if name not in known:
        raise RequestError(
            f"there is no file of prompts called {name!r}; {nearest(name, known)}",
            expected=f"the name of a .txt, .jsonl or .csv file in {folder}; no path, no link",
        )
    return open_prompts(folder / name)
