"""Save and load directions as safetensors files, with metadata in the header."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engine.errors import StoreError, visible
from engine.inputs import require_whole, user_path
from engine.records.files import AUTO_METHOD, Direction, DirectionsHeader, DirectionSummary
from engine.remedies import Advice, Remedy
from engine.store.catalog import show_capture
from engine.store.names import DIRECTIONS, CapturePaths, locate, store_words
from engine.store.ownership import SCHEMA, directions_advice, path_of, read_header, require_own_name, width_of
from engine.store.tensor_files import read_tensors, with_checksums


def save_directions(
    directions: Mapping[int, Direction],
    name: str | Path,
    *,
    store: str | Path | None = None,
    leading: int | None = None,
    capture: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Save directions as `NAME.directions.safetensors`, next to their capture.

    The name of a capture is only for directions of that capture, whatever `force` says.

    Args:
        directions: Layer to direction; all from one capture and method.
        name: The capture's name, or a path without suffix; a plain name when `store` is given.
        store: The store folder.
        leading: The layer that ranks first.
        capture: Their capture, if they are saved under another name: its name, or its path if it is in another store.
        force: Replace directions already saved under that name.

    Returns:
        Path of the file.

    Raises:
        StoreError: There are no directions, the name is invalid, taken, or that of another capture, or the file cannot
            be written.

    Example:
        >>> save_directions({16: extract_direction(data, 16)}, "mine").name
        'mine.directions.safetensors'
    """
    from engine.store.unfinished import TakenError

    if not directions:
        raise StoreError("there are no directions to save", expected="a direction for at least one layer")
    paths = locate(name, store)
    target, source = path_of(paths), locate(capture) if isinstance(capture, Path) else None
    header = _header(directions, leading, source.name if source else str(capture or paths.name))
    require_own_name(header, paths, source)
    advice = directions_advice(Remedy.RENAME_OR_REPLACE_DIRECTIONS, target, header["capture"] if capture else None)
    taken = StoreError(f"{target} already exists", next_step=advice)
    if target.exists() and not force:
        raise taken
    try:
        return write_directions(directions, header, paths, replace=force)
    except TakenError:  # by another process, since it was checked
        raise taken from None


def _header(directions: Mapping[int, Direction], leading: int | None, capture: str) -> DirectionsHeader:
    some = next(iter(directions.values()))
    header = DirectionsHeader(
        schema=SCHEMA,
        layers=[_summary(directions[layer]) for layer in sorted(directions)],
        leading=None if leading is None else require_whole(leading, "the leading layer"),
        capture=capture,
        method=some["method"],
        concept=some["concept"],
        num_pairs=some["num_pairs"],
        provenance=some["provenance"],
    )
    if "methods" in some:
        header["methods"] = some["methods"]
    if "imported" in some:
        header["imported"] = some["imported"]
    return header


def write_directions(
    directions: Mapping[int, Direction], header: DirectionsHeader, paths: CapturePaths, *, replace: bool
) -> Path:
    """Write a file of directions, without asking whose the name is.

    Args:
        directions: Layer to direction.
        header: Their header.
        paths: The name.
        replace: Replace directions of that name; the control vectors exported from them are deleted.

    Returns:
        Path of the file.

    Raises:
        StoreError: The file cannot be written.
        TakenError: There are directions of that name, and `replace` is off.
    """
    from safetensors.torch import save

    from engine.store.unfinished import clear_leftovers
    from engine.store.write import write_atomically

    target = path_of(paths)
    replaces = target.exists()
    vectors = {str(layer): direction["vector"].contiguous() for layer, direction in directions.items()}
    content = save(vectors, metadata=with_checksums(vectors, {"layerscope": msgspec.json.encode(header).decode()}))
    write_atomically(target, content, replace=replace)
    if replaces:
        paths.unlink_vectors()  # they are of the directions that were replaced
    clear_leftovers(target)
    return target


def load_directions(name: str | Path, *, store: str | Path | None = None) -> tuple[dict[int, Direction], int | None]:
    """Load saved directions and the layer that ranks first.

    Args:
        name: The name they were saved under, or a path with or without suffix; a plain name when `store` is given.
        store: The store folder.

    Returns:
        Layer to direction, each vector of shape `(hidden,)`, and the layer that ranked first in their capture (None
        without a ranking).

    Raises:
        StoreError: The file does not exist or is damaged.

    Example:
        >>> path = save_directions({16: extract_direction(data, 16)}, "other", leading=16)
        >>> directions, leading = load_directions("other")
        >>> directions[16]["vector"].shape, leading
        (torch.Size([576]), 16)
    """
    target = path_of(locate(name, store))
    header = read_header(target)
    layers = [summary["layer"] for summary in header["layers"]]
    again = directions_advice(Remedy.EXTRACT_AGAIN, target)
    read = read_tensors(target, [*map(str, layers)], store=target.parent, remedy=again)
    vectors = dict(zip(layers, read, strict=True))
    if any(vector.ndim != 1 or len(vector) != len(read[0]) for vector in read):
        raise StoreError(f"{target} is damaged: its vectors have different shapes", next_step=again)
    if not all(vector.is_floating_point() and bool(vector.isfinite().all()) for vector in read):
        raise StoreError(f"{target} is damaged: its vectors are not finite numbers", next_step=again)
    found = {
        summary["layer"]: Direction(
            vector=vectors[summary["layer"]].clone(),  # sums in a file's memory depend on where it begins
            method=header["method"],
            concept=header["concept"],
            num_pairs=header["num_pairs"],
            provenance=header["provenance"],
            layer=summary["layer"],
            negative_mean=summary["negative_mean"],
            positive_mean=summary["positive_mean"],
        )
        for summary in header["layers"]
    }
    for summary in header["layers"]:
        direction = found[summary["layer"]]
        if "norm" in summary:
            direction["norm"] = summary["norm"]
        if "methods" in header:
            direction["methods"] = header["methods"]
        if "imported" in header:
            direction["imported"] = header["imported"]
    return found, header["leading"]


def find_directions(
    name: str | Path, *, store: str | Path | None = None, method: str = AUTO_METHOD
) -> tuple[dict[int, Direction], int | None, str | None]:
    """Load saved directions, or extract them from the capture.

    Args:
        name: A name or path, as for `load_directions` or `load_activations`.
        store: The store folder; `name` is then a plain name.
        method: Method of extraction; by default the one that separates held-out pairs best.

    Returns:
        Layer to direction; the layer that ranks first, or None without a ranking; the capture's name if the directions
        were extracted from it, else None.

    Raises:
        StoreError: Neither directions nor a capture exist under that name.
        RequestError: The capture is not a contrast, or its classes do not differ.
    """
    paths = locate(name, store)
    if str(name).endswith(DIRECTIONS) or path_of(paths).exists():
        return *load_directions(paths.store / paths.name), None
    return *extract_captured(paths.store / paths.name, method), paths.name


def extract_captured(path: Path, method: str) -> tuple[dict[int, Direction], int | None]:
    """Extract the directions of a saved contrast; with `auto`, the methods are compared at the top-ranked layer.

    Args:
        path: The capture, without suffix.
        method: See `extract_directions`.

    Returns:
        Layer to direction, and the top-ranked layer; None without a ranking or direction.

    Raises:
        StoreError: There is no such capture, or it is damaged.
        RequestError: The method is unknown, the capture is not a contrast, or its classes do not differ.
    """
    from engine.stats.direction import extract_directions
    from engine.store.read import load_contrast

    data = load_contrast(path)
    found = extract_directions(data, method, leading=leading_layer(path, data["layers"]))
    return found, leading_layer(path, found)


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
        raise StoreError(
            f"the store {folder} cannot be read: {error.strerror}",
            next_step=Advice(Remedy.CHOOSE_STORE, store_words(folder)),
        ) from error
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
    header = read_header(path_of(paths))
    imported, provenance = header.get("imported"), header["provenance"]
    model = provenance["alias"] if provenance else imported["model"] if imported else "unknown"
    return SavedDirections(
        name=paths.name,
        layers=[summary["layer"] for summary in header["layers"]],
        width=width_of(path_of(paths)),
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
    found = [_described(name, store) for name in list_directions(store) if not CapturePaths(Path(store), name).exist]
    wanted = [one for one in found if concept in (None, one.concept) and model in (None, one.model, one.model_id)]
    return [one for one in wanted if not one.problem or (concept is None and model is None)]


def _described(name: str, store: str | Path) -> SavedDirections:
    try:
        return describe_directions(name, store=store)
    except StoreError as error:
        return SavedDirections(visible(name), problem=visible(error.problem))


def derived_directions(name: str, store: Path) -> list[str]:
    """List the directions that come from a capture but are saved under other names; loads no torch.

    Args:
        name: Name of the capture.
        store: The store folder.
    """
    return [other for other in list_directions(store) if other != name and _capture_of(other, store) == name]


def _capture_of(name: str, store: Path) -> str:
    """Name of the capture that directions come from; empty if their file is damaged."""
    try:
        return read_header(path_of(locate(name, store)))["capture"]
    except StoreError:
        return ""


def leading_layer(name: Path, among: Container[int]) -> int | None:
    """The top-ranked layer of a capture; None without a ranking or direction."""
    ranking = show_capture(name)["ranking"] if locate(name).record.exists() else None
    first = ranking["layers"][0]["layer"] if ranking else None
    return first if first in among else None


def _summary(direction: Direction) -> DirectionSummary:
    summary = DirectionSummary(
        layer=direction["layer"],
        negative_mean=direction["negative_mean"],
        positive_mean=direction["positive_mean"],
    )
    if "norm" in direction:
        summary["norm"] = direction["norm"]
    return summary
