"""`layerscope verify`, `layerscope rename` and `layerscope delete`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from engine.cli.console import Command, Narrator, print_json, print_lines
from engine.cli.store import AsJson, Store, capture_path, is_path, with_output
from engine.errors import RequestError, StoreError, visible
from engine.remedies import Remedy
from engine.store.names import DEFAULT_STORE, DIRECTIONS, locate, store_option
from engine.store.ownership import origin_note
from engine.store.unfinished import clean_store
from engine.store.verify import verify_capture, verify_store

VERIFY_HELP = """Check every byte of a store against its checksums.

[bold]Examples[/bold]

  layerscope verify
  layerscope verify smollm2_honesty
  layerscope verify --store runs --clean
"""

RENAME_HELP = """Rename a capture: record, tensors and directions together.

[bold]Examples[/bold]

  layerscope rename smollm2_honesty honesty_1
  layerscope rename runs/mine final
"""

DELETE_HELP = """Delete a capture: record, tensors and directions together.

[bold]Examples[/bold]

  layerscope delete smollm2_honesty
  layerscope delete smollm2_honesty --yes
"""

Name = Annotated[str, typer.Argument(help="Name of a capture, or path of one of its files.")]


def verify(
    name: Annotated[str | None, typer.Argument(help="Name or path of a capture; all of the store if omitted.")] = None,
    store: Store = DEFAULT_STORE,
    clean: Annotated[bool, typer.Option("--clean", help="Delete temporary files of killed saves.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a store against its checksums."""
    path = capture_path(name, store) if name else None
    found = [verify_capture(path)] if path else verify_store(store)
    if as_json:
        print_json(msgspec.json.format(msgspec.json.encode(found)))
    else:
        folder = path.parent if path else store
        for one in found:
            problem = with_output(one.problem, one.name, folder)
            print_lines(visible(f"{one.name}: {one.status}{': ' if problem else ''}{problem}") + "\n")
    if clean:
        narrator = Narrator(quiet=False)
        removed = clean_store(path.parent if path else store)
        for leftover in removed:
            narrator.say(visible(f"deleted {leftover}, left by a killed save"))
        if not removed:
            narrator.say("no temporary files of killed saves")
    damaged = [one.name for one in found if one.status == "damaged"]
    unreadable = sum(one.status == "unreadable" for one in found)
    if unreadable and not damaged:
        raise StoreError(f"{unreadable} of {len(found)} captures cannot be read", next_step=Remedy.ASK_TO_READ)
    if damaged:
        others = f", and {unreadable} cannot be read" if unreadable else ""
        raise StoreError(
            f"{len(damaged)} of {len(found)} captures {'is' if len(damaged) == 1 else 'are'} damaged{others}",
            next_step=f"capture again with --force, or layerscope delete {_named(damaged, store, path)}",
        )


def _named(damaged: list[str], store: Path, path: Path | None) -> str:
    """Arguments that name a damaged capture: the only one, else a placeholder."""
    folder = path.parent if path else store
    return (shlex.quote(damaged[0]) if len(damaged) == 1 else "NAME") + store_option(folder)


def rename(
    name: Name,
    new: Annotated[str, typer.Argument(help="The new name, in the same store.")],
    store: Store = DEFAULT_STORE,
) -> None:
    """Rename a capture: record, tensors and directions together."""
    from engine.store.manage import rename_capture

    path = capture_path(name, store)
    target = rename_capture(path, new)
    narrator = Narrator(quiet=False)
    narrator.say(f"renamed {path.name} to {target.name} in {target.store}")
    if note := origin_note(path):
        narrator.say(f"kept {path.name}{DIRECTIONS}: {note}")


def delete(
    name: Name,
    store: Store = DEFAULT_STORE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """Delete a capture: record, tensors and directions together."""
    from engine.store.delete import delete_capture, kept_directions

    narrator = Narrator(quiet=False)
    if not yes:
        _ask(name if is_path(name) else str(store / name))
    # Damaged files may have names that no capture can have, so the name is left to the engine.
    folder = None if is_path(name) else store
    kept = kept_directions(name, store=folder)
    own = locate(name, folder) if kept else None
    for deleted in delete_capture(name, store=folder):
        narrator.say(visible(f"deleted {deleted}"))
    for other in kept:
        note = origin_note(own.store / own.name) if own and other == own.directions.name else ""
        narrator.say(visible(f"kept {other}: {note or 'directions of this capture, saved under another name'}"))


def _ask(path: str) -> None:
    if not sys.stdin.isatty():
        raise RequestError(
            f"{path} would be deleted without a question, as there is no terminal to ask on",
            expected="--yes, or a terminal",
            next_step="add --yes to delete it",
        )
    what = "" if path.endswith(DIRECTIONS) else " with its tensors and directions"
    if not typer.confirm(visible(f"Delete {path}{what}?"), err=True):
        raise typer.Exit


COMMANDS = {
    "verify": Command("verify", verify, VERIFY_HELP),
    "rename": Command("rename", rename, RENAME_HELP, needs_arguments=True),
    "delete": Command("delete", delete, DELETE_HELP, needs_arguments=True),
}
