"""Save and load directions as safetensors files, with metadata in the header; `directions_catalog` lists them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

import msgspec

from engine.errors import StoreError
from engine.inputs import require_whole
from engine.records.checks import require_directions
from engine.records.files import AUTO_METHOD, Direction, DirectionsHeader, DirectionSummary
from engine.remedies import Remedy
from engine.store.catalog import show_capture
from engine.store.directions_header import SCHEMA, directions_advice, path_of, read_header
from engine.store.locks import folder_lock
from engine.store.names import DIRECTIONS, CapturePaths, locate
from engine.store.ownership import require_own_name, require_writable
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
        RequestError: They are not directions but vectors.
        StoreError: There are no directions, the name is invalid, taken, or that of another capture, or the file cannot
            be written.

    Example:
        >>> save_directions({16: extract_direction(data, 16)}, "mine").name
        'mine.directions.safetensors'
    """
    require_directions(directions)
    if not directions:
        raise StoreError("there are no directions to save", expected="a direction for at least one layer")
    paths = locate(name, store)
    source = None if capture is None else _find_source(capture, paths)
    header = _header(directions, leading, source.name if source else paths.name)
    require_writable(paths)
    with folder_lock(paths.store):  # no other process may give a capture the name meanwhile
        target = path_of(paths)
        require_own_name(header, paths, source)
        if target.exists() and not force:
            advice = directions_advice(Remedy.RENAME_OR_REPLACE_DIRECTIONS, target, source.name if source else None)
            raise StoreError(f"{target} already exists", next_step=advice)
        replaces = target.exists()
        write_directions(directions, header, paths, replace=force)
        if replaces:
            paths.unlink_vectors()  # they are of the directions that were replaced
    return target


def _find_source(capture: str | Path, paths: CapturePaths) -> CapturePaths:
    """The capture that directions come from: a plain name is one in their store."""
    return locate(capture) if isinstance(capture, Path) or "/" in capture else locate(capture, paths.store)


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
        replace: Replace directions of that name.

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
    vectors = {str(layer): direction["vector"].contiguous() for layer, direction in directions.items()}
    content = save(vectors, metadata=with_checksums(vectors, {"layerscope": msgspec.json.encode(header).decode()}))
    write_atomically(target, content, replace=replace)
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
