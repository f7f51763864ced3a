"""List and describe saved directions by the headers of their files; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import StoreError, visible
from engine.inputs import user_path
from engine.records.files import CaptureRecord
from engine.store.directions_header import path_of, read_header, read_header_and_width
from engine.store.names import DIRECTIONS, CapturePaths, locate, unreadable_store
from engine.store.ownership import differ, find_own_record


def list_directions(store: str | Path) -> list[str]:
    """List the names of the saved directions of a store, damaged ones too; loads no torch.

    Args:
        store: The store folder.

    Raises:
        StoreError: The folder cannot be read.

    Example:
        >>> path = save_directions({16: extract_direction(data, 16)}, "listed", store="activations")
        >>> "listed" in list_directions("activations")
        True
    """
    folder = user_path(store)
    try:
        files = [path.name for path in folder.iterdir() if path.name.endswith(DIRECTIONS)]
    except OSError as error:
        raise unreadable_store(folder, error) from error
    return sorted(name.removesuffix(DIRECTIONS) for name in files if not name.startswith("."))


@dataclass(frozen=True)
class SavedDirections:
    """Saved directions, as lists show them.

    Attributes:
        name: The name they are saved under.
        layers: Layers with a direction, ascending.
        width: Length of the vectors.
        method: How they were extracted.
        concept: Name of the concept, if any.
        num_pairs: Number of pairs.
        leading: The layer that ranks first; None without a ranking.
        capture: The capture that they come from; empty for imported ones.
        file: The file that they were imported from; empty for others.
        model: Alias of their model; "unknown" without provenance.
        model_id: Its id, or the path that it was loaded from; empty without provenance.
        problem: Why they cannot be read; empty if they can. All other fields are empty then.
    """

    name: str
    layers: list[int] = field(default_factory=list)
    width: int = 0
    method: str = ""
    concept: str | None = None
    num_pairs: int = 0
    leading: int | None = None
    capture: str = ""
    file: str = ""
    model: str = "unknown"
    model_id: str = ""
    problem: str = ""


def describe_directions(name: str | Path, *, store: str | Path | None = None) -> SavedDirections:
    """Describe saved directions by the header of their file; loads no torch.

    Args:
        name: A name or path, as for `load_directions`.
        store: The store folder; `name` is then a plain name.

    Raises:
        StoreError: The file does not exist or is damaged.

    Example:
        >>> path = save_directions({16: extract_direction(data, 16)}, "described", store="runs", capture="mine")
        >>> found = describe_directions("described", store="runs")
        >>> found.layers, found.width, found.capture
        ([16], 576, 'mine')
    """
    paths = locate(name, store)
    header, width = read_header_and_width(path_of(paths))
    imported, provenance = header.get("imported"), header["provenance"]
    model = provenance["alias"] if provenance else imported["model"] if imported else "unknown"
    return SavedDirections(
        name=paths.name,
        layers=[summary["layer"] for summary in header["layers"]],
        width=width,
        method=header["method"],
        concept=header["concept"],
        num_pairs=header["num_pairs"],
        leading=header["leading"],
        capture="" if imported else header["capture"],
        file=imported["file"] if imported else "",
        model=model,
        model_id=provenance["model"] if provenance else "",
    )


def directions_alone(
    store: str | Path, *, concept: str | None = None, model: str | None = None
) -> list[SavedDirections]:
    """List the saved directions that have no capture of their name, sorted by name; loads no torch.

    Args:
        store: The store folder.
        concept: Only directions of this concept.
        model: Only directions of this model, by alias or id.

    Raises:
        StoreError: The folder cannot be read.
    """
    folder = user_path(store)
    found = [_described(name, folder) for name in list_directions(folder) if not CapturePaths(folder, name).exist]
    wanted = [one for one in found if concept in (None, one.concept) and model in (None, one.model, one.model_id)]
    return [one for one in wanted if not one.problem or (concept is None and model is None)]


def _described(name: str, store: Path) -> SavedDirections:
    try:
        return describe_directions(name, store=store)
    except StoreError as error:
        return SavedDirections(visible(name), problem=visible(error.problem))


def derived_directions(paths: CapturePaths) -> list[str]:
    """List the directions that come from a capture but are saved under other names; loads no torch.

    Directions of a capture of the same name in another store are not among them, as far as their headers tell.

    Args:
        paths: The capture.
    """
    record = find_own_record(paths)
    return [
        other for other in list_directions(paths.store) if other != paths.name and _comes_from(other, paths, record)
    ]


def _comes_from(name: str, paths: CapturePaths, record: CaptureRecord | None) -> bool:
    """Whether saved directions come from a capture; not if their file is damaged."""
    try:
        header = read_header(path_of(locate(name, paths.store)))
    except StoreError:
        return False
    return header["capture"] == paths.name and "imported" not in header and not differ(header, record)
