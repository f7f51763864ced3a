"""Capture names and file paths; no name can lead out of the store."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from engine.errors import StoreError, visible
from engine.inputs import user_path
from engine.records.files import VECTOR_FORMATS
from engine.remedies import Advice, Remedy, option
from engine.store.files import require_inside

DEFAULT_STORE = Path("activations")

UNFINISHED = ".unfinished"
PLAN = "plan.json"
SHARD = ".safetensors"
DIRECTIONS = ".directions.safetensors"
REPLACEMENTS = ".replacements"
"""The hidden folder of a store for shards that will replace a capture when all are saved."""

_SUFFIXES = ("pt", "json")
_ANY_SUFFIX = re.compile(rf"(\.pt|\.json|{re.escape(DIRECTIONS)})+$")
_LONGEST = 128
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST - 1}}}")


@dataclass(frozen=True)
class CapturePaths:
    """Paths of one capture: the JSON record, and tensors as one file or as shards."""

    store: Path
    name: str

    @property
    def tensors(self) -> Path:
        """The `.pt` file."""
        return self.store / f"{self.name}.pt"

    @property
    def record(self) -> Path:
        """The `.json` file."""
        return self.store / f"{self.name}.json"

    @property
    def directions(self) -> Path:
        """The file of the capture's saved directions; it may be a link, see `path_of`."""
        return self.store / f"{self.name}{DIRECTIONS}"

    def vectors(self, file_format: str) -> Path:
        """The file of control vectors that were exported from the saved directions, in one format."""
        return self.store / f"{self.name}.vectors.{file_format}"

    def unlink_directions(self) -> None:
        """Delete the saved directions and the control vectors exported from them, for example if they are outdated."""
        self.directions.unlink(missing_ok=True)
        self.unlink_vectors()

    def unlink_vectors(self) -> None:
        """Delete the control vectors exported from directions that are being replaced."""
        for file_format in VECTOR_FORMATS:
            self.vectors(file_format).unlink(missing_ok=True)

    @property
    def shards(self) -> Path:
        """The folder of shards, which replaces a `.pt` that would be too large."""
        return self.store / self.name

    @property
    def plan(self) -> Path:
        """The manifest in the shard folder: what the shards will hold."""
        return self.shards / PLAN

    @property
    def causal_parts(self) -> Path:
        """The file in the user's cache folder that keeps the finished parts of a causal ranking until it is saved."""
        place = self.store.resolve() / self.record.name
        digest = hashlib.sha256(str(place).encode("utf-8", "surrogateescape")).hexdigest()
        return platformdirs.user_cache_path("layerscope") / "causal" / f"{digest[:16]}.jsonl"

    @property
    def in_shards(self) -> bool:
        """Whether the tensors are saved as shards, complete or not."""
        return is_present(self.plan) and not is_present(self.tensors)

    @property
    def unfinished(self) -> bool:
        """Whether this is an incomplete capture in shards, which can be resumed."""
        return self.in_shards and not is_present(self.record)

    @property
    def replacement(self) -> CapturePaths:
        """Where shards that will replace this capture are saved until all are; they need no other name."""
        return CapturePaths(self.store / REPLACEMENTS, self.name)

    @property
    def is_replacement(self) -> bool:
        """Whether these are the files of a replacement."""
        return self.store.name == REPLACEMENTS

    @property
    def started(self) -> CapturePaths | None:
        """The shards that can be resumed, of this capture or of its replacement; None if there are none."""
        return next((place for place in (self.replacement, self) if place.unfinished), None)

    @property
    def exist(self) -> bool:
        """Whether any file of the capture exists, complete or not."""
        return any(is_present(path) for path in (self.record, self.tensors, self.plan))

    @property
    def arguments(self) -> str:
        """What names the capture on the command line: its name, and its store unless that is the default one.

        Example:
            >>> locate("activations/mine").arguments, locate("my runs/mine").arguments
            ('mine', "mine --store 'my runs'")
        """
        return self.name + store_option(self._visible_store)

    def advice(self, remedy: Remedy) -> Advice:
        """A remedy whose commands name this capture."""
        return Advice(remedy, store_words(self._visible_store), self.name)

    @property
    def _visible_store(self) -> Path:
        return self.store.parent if self.is_replacement else self.store


def store_words(store: Path) -> str:
    """The path of a store as a command needs it; empty for the default store."""
    return "" if store == DEFAULT_STORE else str(store)


def store_option(store: Path) -> str:
    """The option that names a store on the command line, after a space; empty for the default store.

    Example:
        >>> store_option(Path("activations")), store_option(Path("my runs"))
        ('', " --store 'my runs'")
    """
    return option("--store", store_words(store))


def capture_command(store: Path) -> str:
    """A command that saves a first capture into a store.

    Example:
        >>> capture_command(Path("activations")), capture_command(Path("runs"))
        ('layerscope capture --concept honesty', 'layerscope capture --concept honesty --output runs/')
    """
    folder = store_words(store)
    return "layerscope capture --concept honesty" + option("--output", f"{folder}/" if folder else "")


def shard_files(paths: CapturePaths) -> list[Path]:
    """List the complete shards of a capture, in prompt order.

    Shards that are still being written have hidden names.
    """
    return sorted(paths.shards.glob(f"[0-9]*{SHARD}"))


def is_present(path: Path) -> bool:
    """Whether a folder has an entry of this name, even a link to nothing."""
    return os.path.lexists(path)


def locate(name: str | Path, store: str | Path | None = None) -> CapturePaths:
    """Resolve a name or path to the files of a capture, existing or not.

    Args:
        name: A plain name if `store` is given, else a path whose folder is the store. A trailing `.pt`, `.json`
            or `.directions.safetensors` is stripped.
        store: The store folder. Pass it when untrusted callers choose names, so that they cannot choose the folder.

    Raises:
        StoreError: The name contains a path, starts with a dot, is that of a folder, or leads out of the store through
            a symbolic link; or the store is in a folder that the user may not open.

    Example:
        >>> locate("activations/smollm2_honesty.pt").record.as_posix()
        'activations/smollm2_honesty.json'
    """
    given = user_path(name) if store is None else None
    folder = given.parent if given is not None else user_path(store or "")
    plain = _ANY_SUFFIX.sub("", given.name if given is not None else str(name))
    if not _NAME.fullmatch(plain):
        raise _invalid(plain)
    paths = CapturePaths(folder, plain)
    require_open(folder)
    if given is not None and str(name).endswith(("/", os.sep)) and not paths.exist:
        raise StoreError(
            f"{str(name)!r} names a folder, not a capture", expected=f"a path that ends in a name, such as {name}mine"
        )
    for path in (paths.tensors, paths.record, paths.shards, paths.replacement.store, paths.replacement.shards):
        if os.path.islink(path):  # noqa: PTH114 - `Path.is_symlink` raises an error if another user replaces the capture
            require_inside(path, folder)
    return paths


def require_open(store: Path) -> None:
    """Refuse a store in which the user may not look up files; a missing one is not refused.

    Raises:
        StoreError: It is one.
    """
    try:
        (store / PLAN).lstat()
    except PermissionError as error:
        raise unreadable_store(store, error) from error
    except OSError:  # there is no such file
        return


def unreadable_store(store: Path, error: OSError) -> StoreError:
    """Make the error for a store folder that cannot be read.

    Args:
        store: The store folder.
        error: Why not.
    """
    denied = isinstance(error, PermissionError)
    return StoreError(
        f"the store {store} cannot be read: {error.strerror}",
        expected="a folder of captures",
        next_step=Remedy.ASK_TO_READ if denied else Advice(Remedy.CHOOSE_STORE, store_words(store)),
    )


def locate_listed(name: str, store: str | Path) -> CapturePaths:
    """Resolve the name of a capture as a list of the store shows it; suffixes are not stripped.

    Raises:
        StoreError: The name is not valid, or leads out of the store through a symbolic link.
    """
    paths = locate(name, store)
    if paths.name != name:  # a file such as "mine.pt.pt"
        raise _invalid(name)
    return paths


def listed_name(folder: Path, file_name: str) -> str:
    r"""The name under which a store lists one of its entries; empty if it is not part of a capture.

    Characters that could steer a terminal or cannot be encoded are escaped. Distinct files keep distinct names.

    Args:
        folder: The store folder.
        file_name: Name of a file or folder in it.

    Example:
        >>> listed_name(Path("store"), "mine.json"), listed_name(Path("store"), "a\x1bb.pt")
        ('mine', 'a\\x1bb')
    """
    if file_name.startswith("."):
        return ""
    stem, _, suffix = file_name.rpartition(".")
    if stem and suffix in _SUFFIXES:
        return _shown(file_name if stem.endswith(tuple(f".{one}" for one in _SUFFIXES)) else stem)
    return _shown(file_name) if is_present(folder / file_name / PLAN) else ""


def _invalid(name: str) -> StoreError:
    return StoreError(
        f"{name!r} is not a valid capture name",
        expected="at most 128 letters, digits, dots, hyphens and underscores, starting with a letter or digit",
    )


def _shown(name: str) -> str:
    return visible(name.replace("\\", "\\\\")).replace("\n", "\\n").replace("\t", "\\t")


def is_folder(given: str) -> bool:
    """Whether an output names a folder to save into: it ends with a slash or exists, and is no capture in shards."""
    path = user_path(given)
    if not os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` raises an error in a folder that the user may not open
        return given.endswith(("/", os.sep))
    try:
        entries = os.listdir(path)  # noqa: PTH208 - names, not paths
    except OSError:
        return True
    started = bool(entries) and all(entry.endswith(UNFINISHED) for entry in entries)  # killed before its plan was saved
    return not (PLAN in entries or started)


def output_path(given: str, default: str) -> Path:
    """The path of an output; in a folder, the default name.

    Args:
        given: Path from the user. A folder of shards is the path of a capture.
        default: Name of the file or capture in a folder.

    Example:
        >>> output_path("runs/", "mine").as_posix(), output_path("runs/other", "mine").as_posix()
        ('runs/mine', 'runs/other')
    """
    return user_path(given) / default if is_folder(given) else user_path(given)


def default_name(model_alias: str, concept: str) -> str:
    """The default capture name: `{model}_{concept}`.

    Invalid characters are replaced by hyphens. A part with no valid characters becomes "model" or "capture".

    Example:
        >>> default_name("smollm2", "honesty"), default_name("_mine", "誠実")
        ('smollm2_honesty', 'mine_capture')
    """
    model, what = (re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._") for part in (model_alias, concept))
    return f"{model or 'model'}_{what or 'capture'}"[:_LONGEST].rstrip("-.")
