"""What a capture is called and where its files lie. No name leads out of the store."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import Remedy, StoreError
from engine.inputs import user_path

DEFAULT_STORE = Path("activations")

UNFINISHED = ".unfinished"
PLAN = "plan.json"
SHARD = ".safetensors"

_LONGEST = 128
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST - 1}}}")


@dataclass(frozen=True)
class CapturePaths:
    """The files of one capture: tensors, in one file or a folder of shards, and the record that suffices to list it."""

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
    def shards(self) -> Path:
        """The folder of shards, in place of a `.pt` that would be too large."""
        return self.store / self.name

    @property
    def plan(self) -> Path:
        """The file in that folder that says what the shards will hold."""
        return self.shards / PLAN

    @property
    def in_shards(self) -> bool:
        """Whether the tensors lie in that folder, all of them or so far."""
        return self.plan.exists() and not self.tensors.exists()

    @property
    def unfinished(self) -> bool:
        """Whether it is a capture in shards that can be gone on with."""
        return self.in_shards and not self.record.exists()

    @property
    def exist(self) -> bool:
        """Whether there is anything of the capture, whole or not."""
        return any(path.exists() for path in (self.record, self.tensors, self.plan))


def locate(name: str | Path, store: str | Path | None = None) -> CapturePaths:
    """Where a capture lies or will lie.

    Args:
        name: With a store, a plain name; without one, a path whose folder is the store. `.pt` or `.json` at the end is
            not part of the name.
        store: The folder, when names come from someone who must not choose it.

    Raises:
        StoreError: The name holds a path, begins with a dot, or leads out of the store through a link.

    Example:
        >>> locate("activations/smollm2_honesty.pt").record.as_posix()
        'activations/smollm2_honesty.json'
    """
    given = user_path(name) if store is None else None
    folder = given.parent if given is not None else user_path(store or "")
    plain = re.sub(r"(\.(pt|json))+$", "", given.name if given is not None else str(name))
    if not _NAME.fullmatch(plain):
        raise StoreError(
            f"{plain!r} cannot be the name of a capture",
            expected="letters, digits, dots, hyphens and underscores, a letter or digit first, 128 at most",
        )
    paths = CapturePaths(folder, plain)
    for path in (paths.tensors, paths.record, paths.shards):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise StoreError(f"{path} is a link that leads out of the store", next_step="remove the link")
    return paths


def require_free(paths: CapturePaths, *, force: bool, resume: bool = False) -> None:
    """Refuse a name that is taken, before minutes are spent on what could not be saved.

    Args:
        paths: Where the capture shall lie.
        force: Whether an earlier capture may be replaced.
        resume: Whether an unfinished capture in shards is no obstacle, because it may be gone on with.

    Raises:
        StoreError: It is taken and `force` is off, or nothing can be saved there.
    """
    folder = paths.store.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise StoreError(f"{existing} is not a folder that can be written", next_step=Remedy.CHOOSE_FOLDER)
    kept = (paths.tensors, paths.record) if resume else (paths.tensors, paths.record, paths.plan)
    taken = [str(path) for path in kept if path.exists()]
    if taken and not force:
        raise StoreError(
            f"there is already a capture called {paths.name} ({', '.join(taken)})",
            next_step=Remedy.RENAME_OR_REPLACE,
        )


def default_name(model_alias: str, concept: str) -> str:
    """The name a capture gets unless told: `{model}_{concept}`, other characters replaced by hyphens.

    What nothing is left of, because no name may hold its letters, is called "model" or "capture".

    Example:
        >>> default_name("smollm2", "honesty"), default_name("_mine", "誠実")
        ('smollm2_honesty', 'mine_capture')
    """
    model, what = (re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._") for part in (model_alias, concept))
    return f"{model or 'model'}_{what or 'capture'}"[:_LONGEST].rstrip("-.")
