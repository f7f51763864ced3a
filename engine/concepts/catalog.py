"""Load and save concepts: built-in, user-defined, or from any TOML file."""

import re
import secrets
import tomllib
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import platformdirs
import tomli_w

from engine.concepts.rows import not_utf8, open_text, text_problem
from engine.errors import RequestError, nearest, visible
from engine.inputs import user_path
from engine.records.captures import Concept, Persona, Template
from engine.regular import claim
from engine.remedies import Remedy

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FIELDS = {"name", "description", "positive", "negative", "topics", "personas", "templates"}


def user_concepts_path() -> Path:
    """The folder of the user's own concepts (`.toml` files); it may not exist."""
    return platformdirs.user_config_path("layerscope") / "concepts"


def list_concepts(*folders: Path, problems: list[str] | None = None) -> list[Concept]:
    """List all concepts: the built-in ones, then the user's own.

    Args:
        folders: Additional folders of `.toml` files. If two files use the same name, the later folder wins. Links to
            other places are skipped, both folders and files.
        problems: Receives a sentence for each file that cannot be read or is invalid, in place of an error.

    Raises:
        RequestError: A concept file cannot be read or is invalid, and `problems` is None.

    Example:
        >>> len(list_concepts()) >= 10
        True
    """
    concepts = []
    for path in _concept_files(*folders).values():
        try:
            concepts.append(_read_concept(path))
        except RequestError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return concepts


def load_concept(concept: str | Path, *folders: Path, by_name_only: bool = False) -> Concept:
    """Load a concept by name or from a `.toml` file.

    Args:
        concept: Name of a built-in or user-defined concept, or path of a `.toml` file.
        folders: Additional folders of `.toml` files.
        by_name_only: Refuse paths, for callers that must not choose files.

    Returns:
        The concept, with every field validated.

    Raises:
        RequestError: The concept does not exist (the message suggests similar names), or its file is invalid (the
            message names the field).

    Example:
        >>> load_concept("honesty").negative
        'deceptive'
    """
    known = _concept_files(*folders)
    name = str(concept)
    path = known.get(name) or user_path(name)
    if name not in known and (by_name_only or path.suffix != ".toml"):
        raise RequestError(
            f"there is no concept called {name!r}; {nearest(name, known)}",
            expected="the name of a concept" if by_name_only else "the name of a concept, or the path of a .toml file",
            next_step=Remedy.LIST_CONCEPTS,
        )
    return _read_concept(path)


def parse_concept(table: dict[str, Any], source: str) -> Concept:
    """Build a concept from the parsed fields of a concept file.

    Args:
        table: Fields as parsed from TOML.
        source: Name of the source in error messages.

    Raises:
        RequestError: A field is invalid; the message names it.
    """
    return _Reader(Path(source), table).concept()


def default_templates() -> tuple[Template, ...]:
    """Templates of every concept that has none of its own, which includes the built-in ones.

    Each has a system message, so that no prompt contains the default one of a model's chat template.

    Example:
        >>> default_templates()[0].system
        'You are {persona}.'
    """
    path = Path(str(files("engine.concepts").joinpath("default_templates.toml")))
    return _Reader(path, _parse(path)).templates()


def concept_as_toml(concept: Concept) -> str:
    """Format a concept as the text of a concept file.

    Example:
        >>> concept_as_toml(load_concept("honesty")).splitlines()[0]
        'name = "honesty"'
    """
    table = asdict(concept)
    table["templates"] = [{key: text for key, text in template.items() if text} for template in table["templates"]]
    return tomli_w.dumps(table)


def require_savable(concept: Concept, folder: Path, *, force: bool = False) -> Path:
    """Require that a concept can be saved in a folder.

    Args:
        concept: The concept; its name becomes the file name.
        folder: Folder for the file.
        force: Allow an existing file of the same name.

    Returns:
        Path of the file.

    Raises:
        RequestError: The name is not a valid file name or is taken. The folder is a symbolic link to another place.
    """
    if not _is_within(folder, folder.parent):
        raise RequestError(f"{folder} is a symbolic link to another folder", next_step="remove the link")
    if not _NAME.fullmatch(concept.name):
        raise RequestError(
            f"{concept.name!r} is not a valid concept name",
            expected="at most 64 letters, digits, hyphens and underscores, starting with a letter or digit",
        )
    path = folder / f"{concept.name}.toml"
    if concept.name in _concept_files(folder) and not (force and path.exists()):
        raise _taken(concept)
    return path


def _taken(concept: Concept) -> RequestError:
    return RequestError(f"there is already a concept called {concept.name!r}", next_step="choose another name")


def save_concept(concept: Concept, folder: Path, *, force: bool = False) -> Path:
    """Save a concept as a `.toml` file.

    Args:
        concept: The concept to save; its name becomes the file name.
        folder: Folder for the file, created if missing. Pass it to `list_concepts` or `load_concept` later.
        force: Replace an existing file of the same name.

    Raises:
        RequestError: The concept cannot be saved there (see `require_savable`), or the file cannot be written.
    """
    path = require_savable(concept, folder, force=force)
    unfinished = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.unfinished")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("x", encoding="utf-8") as file:  # follows no link
                file.write(concept_as_toml(concept))
            if force:
                unfinished.replace(path)
            else:
                _claim(concept, unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}", next_step=Remedy.CHOOSE_FOLDER) from error
    return path


def _claim(concept: Concept, unfinished: Path, path: Path) -> None:
    try:
        claim(unfinished, path)
    except FileExistsError as error:  # another process was faster
        raise _taken(concept) from error


def _read_concept(path: Path) -> Concept:
    try:
        table = _parse(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}", next_step="check the path") from error
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not valid TOML: {error}", next_step="fix that line") from error
    return _Reader(path, table).concept()


def _parse(path: Path) -> dict[str, Any]:
    with open_text(path) as file:
        return tomllib.loads(file.read())


def _concept_files(*more: Path) -> dict[str, Path]:
    built_in = Path(str(files("engine.concepts").joinpath("data")))
    inside = (folder for folder in more if _is_within(folder, folder.parent))
    own = (path for folder in inside for path in sorted(folder.glob("*.toml")) if _is_within(path, folder))
    usual = (path for folder in (built_in, user_concepts_path()) for path in sorted(folder.glob("*.toml")))
    return {_name_in(path): path for path in (*usual, *own)}


def _is_within(path: Path, folder: Path) -> bool:
    """Whether no link leads from a path in a folder to another place."""
    if not path.is_symlink():
        return True
    try:
        end = path.resolve()
        return end.is_relative_to(folder.resolve()) and not end.is_symlink()
    except (OSError, RuntimeError):  # a link to itself: before Python 3.13; since then it ends at the link
        return False


def _name_in(path: Path) -> str:
    """The concept name in a file, or the file's stem if it cannot be read.

    Loading the concept raises the error.
    """
    try:
        return str(_parse(path).get("name", path.stem))
    except (OSError, ValueError, RecursionError, RequestError):
        return path.stem


class _Reader:
    """Builds a concept from a parsed file; every error names the file and the field."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self._path = path
        self._table = table

    def concept(self) -> Concept:
        self._require_known(self._table, _FIELDS, "")
        return Concept(
            name=self._line(self._table, "name", ""),
            description=self._line(self._table, "description", ""),
            positive=self._line(self._table, "positive", ""),
            negative=self._line(self._table, "negative", ""),
            personas=tuple(self._persona(i, row) for i, row in enumerate(self._rows("personas"))),
            templates=self.templates() if "templates" in self._table else default_templates(),
            topics=tuple(self._topics()),
        )

    def templates(self) -> tuple[Template, ...]:
        return tuple(self._template(i, row) for i, row in enumerate(self._rows("templates")))

    def _persona(self, index: int, row: dict[str, Any]) -> Persona:
        where = f"personas[{index}]"
        self._require_known(row, {field.name for field in fields(Persona)}, f"{where}.")
        texts = (self._text(row, field, where) for field in ("positive", "negative"))
        persona = Persona(self._line(row, "name", where), *texts)
        if persona.positive == persona.negative:
            raise self._wrong(where, "has the same positive and negative text; there is nothing to contrast")
        return persona

    def _template(self, index: int, row: dict[str, Any]) -> Template:
        where = f"templates[{index}]"
        self._require_known(row, {field.name for field in fields(Template)}, f"{where}.")
        template = Template(
            name=self._line(row, "name", where),
            user=self._text(row, "user", where),
            system=self._text(row, "system", where) if "system" in row else "",
        )
        for placeholder in ("{persona}", "{topic}"):
            if (template.system + template.user).count(placeholder) != 1:
                raise self._wrong(where, f"must contain {placeholder} exactly once across system and user")
        return template

    def _topics(self) -> list[str]:
        topics = self._table.get("topics")
        if not isinstance(topics, list) or not topics:
            raise self._wrong("topics", "must be a non-empty list of texts")
        for index, topic in enumerate(topics):
            if problem := text_problem(topic):
                raise self._wrong(f"topics[{index}]", problem)
        if repeated := next((topic for topic in topics if topics.count(topic) > 1), None):
            raise self._wrong("topics", f"contains {repeated!r} twice")
        return topics

    def _rows(self, field: str) -> list[dict[str, Any]]:
        rows = self._table.get(field)
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise self._wrong(field, f"must be written as one or more [[{field}]] tables")
        names = [row.get("name") for row in rows]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise self._wrong(field, f"uses the name {repeated!r} twice")
        return rows

    def _require_known(self, table: dict[str, Any], known: set[str], where: str) -> None:
        if unknown := table.keys() - known:
            field = sorted(unknown)[0]
            raise self._wrong(f"{where}{field}", f"is not a known field; {nearest(field, sorted(known))}")

    def _text(self, row: dict[str, Any], field: str, where: str) -> str:
        value = row.get(field)
        if problem := "is missing" if value is None else text_problem(value):
            raise self._wrong(f"{where}.{field}" if where else field, problem)
        return str(value)

    def _line(self, row: dict[str, Any], field: str, where: str) -> str:
        """A text that lists show: no control characters, and several lines only in a description."""
        value = self._text(row, field, where)
        if visible(value) != value or (field != "description" and {"\n", "\t"} & {*value}):
            raise self._wrong(f"{where}.{field}" if where else field, "must not contain control characters")
        return value

    def _wrong(self, field: str, problem: str) -> RequestError:
        return RequestError(
            f"{self._path}: {field} {problem}",
            expected="the format of the built-in concepts",
            next_step=Remedy.SEE_CONCEPT,
        )
