"""Random directions that vary as the states of a capture do, as controls for steering."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.errors import RequestError, StoreError
from engine.records.captures import ContrastData
from engine.records.files import Direction
from engine.stats.fitting import within_classes
from engine.stats.groups import last_states
from engine.store.directions_header import path_of, read_header
from engine.store.names import locate
from engine.store.ownership import origin_of
from engine.store.read import load_contrast

if TYPE_CHECKING:
    from torch import Tensor


def random_directions(data: ContrastData, direction: Direction, count: int, seed: int = 0) -> list[Direction]:
    """Draw random directions from the covariance of a capture's states within the classes, at a direction's layer.

    Directions drawn evenly from the whole space mostly point where the states never vary, and so do less to a model.

    Args:
        data: The contrast that the direction comes from.
        direction: The direction to control for.
        count: Number of directions.
        seed: Seed for drawing.

    Returns:
        Unit vectors as directions, each with the mean projections of the classes on it. Their method and concept are
        those of `direction`.

    Example:
        >>> direction = extract_direction(data, 16)
        >>> [round(float(one["vector"].norm()), 3) for one in random_directions(data, direction, 2)]
        [1.0, 1.0]
    """
    layer = direction["layer"]
    positive, negative = last_states(data["positive"], layer), last_states(data["negative"], layer)  # (pairs, hidden)
    controls = []
    for vector in draw_from_covariance(positive, negative, count, seed, layer):
        control = direction.copy()
        control["vector"] = vector.float()
        control["negative_mean"] = float((negative @ vector).mean())
        control["positive_mean"] = float((positive @ vector).mean())
        controls.append(control)
    return controls


def draw_from_covariance(positive: Tensor, negative: Tensor, count: int, seed: int, layer: int) -> Tensor:
    """Draw unit vectors from the covariance of states within the classes, `(count, hidden)`.

    The same seed gives the same combinations of prompts at every layer.

    Args:
        positive: States of the positive prompts, `(pairs, hidden)`, float64.
        negative: States of the negative prompts.
        count: Number of vectors.
        seed: Seed for drawing.
        layer: Layer number, for the error message.

    Raises:
        RequestError: The states do not vary.
    """
    within = within_classes(positive, negative)  # (prompts, hidden)
    weights = torch.randn(
        count, len(within), generator=torch.Generator().manual_seed(seed), dtype=within.dtype
    )  # Gaussian weights of the states: their sum has the covariance of the states
    drawn = weights @ within  # (count, hidden)
    lengths = drawn.norm(dim=-1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise RequestError(
            f"the states do not vary within the classes at layer {layer}: no random direction can be drawn",
            expected="two different prompts in a class",
        )
    unit: Tensor = drawn / lengths
    return unit


def load_source(name: str | Path, *, store: str | Path | None = None) -> ContrastData | None:
    """Load the contrast that saved directions come from; None if it is not in their store any more.

    Args:
        name: A name or path, as for `find_directions`.
        store: The store folder; `name` is then a plain name.

    Raises:
        StoreError: The directions file is damaged.
    """
    paths = locate(name, store)
    header = read_header(path_of(paths)) if path_of(paths).exists() else None
    try:
        source = locate(header["capture"], paths.store) if header else paths
        if header and origin_of(header, source):  # of a file, or of a capture of that name in another store
            return None
        return load_contrast(source.name, store=source.store)
    except (StoreError, RequestError):
        return None
