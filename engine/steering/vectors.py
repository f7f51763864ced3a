"""Export directions as control vectors for other tools, and import theirs.

Layer i is the output of block i, counted from 0, in every file that is written. Files that are read count in the way of
their tool; `_renumbered` has one rule for each.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from engine.errors import RequestError, StoreError, first_line, nearest, similar
from engine.inputs import require_whole, user_path
from engine.models.shape import Shape, find_shape
from engine.records.checks import require_directions
from engine.records.files import (
    VECTOR_FORMATS,
    VECTOR_ORIGINS,
    Direction,
    Imported,
    VectorOrigin,
)
from engine.records.steering import UNITS
from engine.remedies import Remedy
from engine.steering.foreign_files import Found, read_vectors
from engine.steering.gguf_files import ARCHITECTURE, UNIT_KEY, gguf_bytes
from engine.store.unfinished import TakenError
from engine.store.write import write_atomically

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_STREAM = "resid_post"
_MEANING = {
    "norm": "the mean norm of the states there",
    "gap": "the distance between the class means",
    "raw": "a unit vector",
}


def export_directions(
    directions: Mapping[int, Direction],
    path: str | Path,
    format: str | None = None,  # noqa: A002 - the word of the command line
    *,
    unit: str = "norm",
    force: bool = False,
) -> Path:
    """Export directions as control vectors.

    Every format holds float32 arrays named `direction.N`, to be added to the output of block N, counted from 0.

    - `gguf`: as llama.cpp and repeng read it. llama.cpp cannot steer block 0, so layer 0 is left out with a warning.
    - `safetensors`: with metadata that says what the vectors are.
    - `npz`: for NumPy, without metadata.

    Args:
        directions: Layer to direction.
        path: The file to write, ending in `.gguf`, `.safetensors` or `.npz`.
        format: The same word; by default, that of the suffix.
        unit: What strength 1 adds in the other tool: `norm`, the mean norm of the states at each layer, so that 0.1
            there is strength 0.1 here; `gap`, the distance between the class means; `raw`, a unit vector.
        force: Replace an existing file.

    Returns:
        Path of the file.

    Raises:
        RequestError: The format or unit is unknown, the suffix is of another format, or these directions cannot be
            exported that way.
        StoreError: The file exists or cannot be written.

    Example:
        >>> contrast = capture_from_concept(model, tokenizer, "honesty", layers=[16], max_samples=24)
        >>> export_directions({16: extract_direction(contrast, 16)}, "honesty.gguf").name
        'honesty.gguf'
    """
    target = user_path(path)
    file_format = _known_format(target, format)
    require_directions(directions)
    if not directions:
        raise RequestError("there are no directions to export", expected="a direction for at least one layer")
    some = next(iter(directions.values()))
    site = some["provenance"]["site"] if some["provenance"] else _STREAM
    if site != _STREAM:
        raise RequestError(
            f"the directions come from the site {site}",
            expected="directions of the residual stream, to which other tools add control vectors",
        )
    scaled = {layer: directions[layer]["vector"] * _scale(directions[layer], unit) for layer in sorted(directions)}
    if file_format == "gguf" and scaled.pop(0, None) is not None:
        if not scaled:
            raise RequestError("llama.cpp cannot steer block 0", expected="a direction at layer 1 or above")
        log.warning("layer 0 was left out: llama.cpp cannot steer block 0")
    about = _about(some, unit)
    try:
        write_atomically(target, _encoded(scaled, file_format, about), replace=force)
    except TakenError:
        raise StoreError(f"{target} already exists", next_step=Remedy.RENAME_OR_REPLACE_DIRECTIONS) from None
    return target


def import_directions(
    source: str | Path | Mapping[int, Any],
    origin: str | None = None,
    *,
    model: str | Path | PreTrainedModel,
    own: Mapping[int, Direction] | None = None,
) -> dict[int, Direction]:
    """Import control vectors from another tool as directions.

    - `llama.cpp`: a GGUF control vector, `direction.N` for the output of block N.
    - `llama.cpp-generator`: the same from llama.cpp's cvector-generator, which read `direction.N` after block N - 1.
    - `repeng`: the same from repeng. The vector of the last block is left out: it was read after the final norm.
    - `persona-vectors`: `TRAIT_…_diff.pt`. The first row (embeddings) and the last (after the final norm) are left out.
    - `refusal-direction`: `direction.pt` with its `direction_metadata.json`, or `mean_diffs.pt`, read at the last
      position. Its layer N is the input of block N.

    Nothing in the files is run.

    Args:
        source: The file, or a dictionary from layer to vector.
        origin: The tool that counted the layers, one of those above; for a dictionary, None if its layers count as
            here.
        model: The model that the vectors belong to: loaded, or an alias, a hub id, a folder or a `.gguf` file, of which
            only the config is read.
        own: Directions extracted from a capture of the same model, whose state norms the imported ones take over, so
            that a strength means the same for both.

    Returns:
        Layer to direction: unit vectors, whose length in the file is `positive_mean`.

    Raises:
        RequestError: The origin is unknown, or the vectors do not fit the model.
        StoreError: The file does not exist, is damaged, or holds something else.

    Example:
        >>> imported = import_directions({16: [1.0] * 576}, model="smollm2")
        >>> imported[16]["vector"].shape, imported[16]["positive_mean"]
        (torch.Size([576]), 24.0)
    """
    known = _known_origin(origin, given=isinstance(source, Mapping))
    shape = find_shape(model)
    if isinstance(source, Mapping):
        file, found = "", Found({require_whole(layer, "a layer"): _tensor(source[layer]) for layer in source})
    else:
        path = user_path(source)
        file, found = path.name, read_vectors(path, known or "llama.cpp")
    if found.blocks not in (None, shape.num_layers):
        raise RequestError(
            f"{file} has vectors for a model of {found.blocks} blocks, but {shape.model_id} has {shape.num_layers}",
            expected="vectors of the same model",
        )
    _require_model(own, shape)
    layers = _renumbered(found.vectors, known, shape)
    imported = Imported(origin=known or "", file=file, model=shape.alias)
    directions: dict[int, Direction] = {}
    for layer in sorted(layers):
        vector = _checked(layers[layer], layer, shape)
        length = float(vector.norm())
        if length == 0:
            log.warning("layer %d was left out: its vector is zero", layer)
            continue
        directions[layer] = Direction(
            layer=layer,
            vector=(vector / length).float(),
            negative_mean=0.0,
            positive_mean=length,
            method="imported",
            concept=found.concept,
            num_pairs=0,
            provenance=None,
            imported=imported,
        )
        norm = own[layer].get("norm") if own and layer in own else length if found.unit == "norm" else None
        if norm is not None:
            directions[layer]["norm"] = norm
    if not directions:
        raise RequestError("none of the vectors can be used", expected="a vector other than zero at some layer")
    return directions


def direction_cosines(one: Mapping[int, Direction], other: Mapping[int, Direction]) -> dict[int, float]:
    """Cosine between two sets of directions, at each layer that both have.

    Args:
        one: Layer to direction.
        other: The same, of the same width.

    Raises:
        RequestError: They share no layer, or their widths differ.

    Example:
        >>> imported = import_directions({16: [1.0] * 576}, model="smollm2")
        >>> direction_cosines(imported, imported)
        {16: 1.0}
    """
    require_directions(one)
    require_directions(other)
    shared = sorted(set(one) & set(other))
    if not shared:
        raise RequestError(f"they share no layer: one has {sorted(one)}, the other {sorted(other)}")
    widths = {len(directions[shared[0]]["vector"]) for directions in (one, other)}
    if len(widths) > 1:
        raise RequestError(f"they have the widths {sorted(widths)}", expected="directions of the same model")
    pairs = {layer: (one[layer]["vector"].double(), other[layer]["vector"].double()) for layer in shared}
    return {layer: round(float(a @ b / (a.norm() * b.norm())), 6) for layer, (a, b) in pairs.items()}


def _known_format(path: Path, given: str | None) -> str:
    """The format that the suffix of a file names, and the caller too, if at all."""
    if given is not None and given not in VECTOR_FORMATS:
        raise RequestError(f"there is no format {given!r}; {nearest(given, VECTOR_FORMATS)}")
    named = path.suffix.lower().removeprefix(".")
    known = VECTOR_FORMATS if given is None else (given,)
    if named not in known:
        raise RequestError(
            f"{path.name!r} is not the name of a file of control vectors",
            expected=f"a name ending in {', '.join(f'.{one}' for one in known)}",
        )
    return named


def _scale(direction: Direction, unit: str) -> float:
    """Length of the exported vector of one layer."""
    if unit == "raw":
        return 1.0
    if unit == "gap":
        return direction["positive_mean"] - direction["negative_mean"]
    if unit != "norm":
        raise RequestError(f"there is no unit {unit!r}; {nearest(str(unit), UNITS)}")
    if "norm" not in direction:
        raise RequestError(
            f"the norm of the states at layer {direction['layer']} is not known",
            expected="directions that record it, or another unit: gap or raw",
            next_step="import them with directions of your own capture of the model"
            if "imported" in direction
            else Remedy.EXTRACT_AGAIN,
        )
    return direction["norm"]


def _about(direction: Direction, unit: str) -> dict[str, str]:
    """What a file says about its vectors."""
    provenance, imported = direction["provenance"], direction.get("imported")
    model = provenance["model"] if provenance else imported["model"] if imported else "unknown"
    return {
        "unit": unit,
        "model": model,
        "concept": direction["concept"] or "",
        "method": direction["method"],
        "description": f"direction.N is added to the output of block N, counted from 0; strength 1 is {_MEANING[unit]}",
    }


def _encoded(vectors: Mapping[int, Tensor], file_format: str, about: Mapping[str, str]) -> bytes:
    if file_format == "gguf":
        texts = {f"{ARCHITECTURE}.model_hint": about["model"], "general.description": about["description"]}
        texts |= {UNIT_KEY: about["unit"], "layerscope.concept": about["concept"]}
        return gguf_bytes({layer: vector.numpy() for layer, vector in vectors.items()}, texts)
    named = {f"direction.{layer}": vector.contiguous() for layer, vector in vectors.items()}
    if file_format == "safetensors":
        from safetensors.torch import save

        return save(named, metadata=dict(about) | {"layers": msgspec.json.encode([*vectors]).decode()})
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **{name: vector.numpy() for name, vector in named.items()})
    return out.getvalue()


def _known_origin(origin: str | None, *, given: bool) -> VectorOrigin | None:
    if origin is None and given:
        return None
    for known in VECTOR_ORIGINS:
        if known == origin:
            return known
    raise RequestError(
        f"there is no origin {origin!r}" if origin else "the tool that wrote the file is not named",
        expected=", ".join(VECTOR_ORIGINS),
        next_step=similar(str(origin), VECTOR_ORIGINS),
    )


def _require_model(own: Mapping[int, Direction] | None, shape: Shape) -> None:
    """Refuse directions of another model."""
    if not own:
        return
    some = next(iter(own.values()))
    if some["provenance"] and some["provenance"]["model"] != shape.model_id:
        raise RequestError(
            f"the directions to compare with come from {some['provenance']['model']}, not from {shape.model_id}",
            expected="directions of the same model",
        )


def _renumbered(found: Mapping[int, Tensor], origin: VectorOrigin | None, shape: Shape) -> dict[int, Tensor]:
    """Layer to vector, in the numbers of this package, without vectors of other places than block outputs."""
    last = shape.num_layers - 1
    shift = 1 if origin in ("llama.cpp-generator", "persona-vectors", "refusal-direction") else 0
    layers = {number - shift: vector for number, vector in found.items()}
    if beyond := sorted(layer for layer in layers if not -shift <= layer <= last):
        raise RequestError(
            f"there is a vector at layer {beyond[0]}, but {shape.model_id} has layers 0 to {last}",
            expected="vectors of the same model",
        )
    if layers.pop(-1, None) is not None:
        log.warning("the vector of the embeddings was left out: it is not the output of a block")
    if origin in ("repeng", "persona-vectors") and layers.pop(last, None) is not None:
        log.warning("the vector of the last block was left out: %s reads it after the final norm", origin)
    if not layers:
        raise RequestError("the file has no vector at the output of a block", expected="at least one")
    return layers


def _tensor(given: object) -> Tensor:
    """A vector from Python."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"a vector is not an array: {first_line(error)}") from error


def _checked(vector: Tensor, layer: int, shape: Shape) -> Tensor:
    """One vector in float64."""
    if vector.ndim != 1 or len(vector) != shape.hidden_size:
        raise RequestError(
            f"the vector of layer {layer} has the shape {tuple(vector.shape)},"
            f" but {shape.model_id} has states of width {shape.hidden_size}",
            expected="vectors of the same model",
        )
    values = vector.detach().double().cpu()
    if not bool(values.norm().isfinite()):
        raise RequestError(f"the vector of layer {layer} is not finite")
    return values
