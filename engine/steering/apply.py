"""Steer a model with directions, or project them out: `steer` and `ablate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch

from engine.errors import RequestError, similar
from engine.inputs import require_strength
from engine.models.description import describe_model
from engine.records.checks import require_direction
from engine.records.files import Direction
from engine.records.steering import TOKENS, UNITS, Tokens, Unit
from engine.remedies import Remedy
from engine.stats.reading import require_same_model
from engine.steering.hooks import Addition, Projection, hooked, require_uncompiled

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Directions = Direction | Mapping[int, Direction] | Sequence[Direction]
"""One direction, one per layer, or any number of them."""

_MEANING = {
    "norm": "the mean norm of the states",
    "gap": "the distance between the class means",
    "raw": "the unit vector",
}


@contextmanager
def steer(
    model: PreTrainedModel,
    directions: Directions,
    strength: float = 0.1,
    *,
    tokens: Tokens = "all",
    unit: Unit = "norm",
) -> Iterator[None]:
    """Add directions to the residual stream while the context is open.

    Each direction is added at the output of its block, in float32, to every token or to some. It acts on forward passes
    of this thread only: plain passes, `model.generate`, and captures, whose provenance records it. Nested contexts add
    up, in the order in which they were entered. A strength of 0 changes nothing, not even by rounding. On exit, also
    after an error, the model is as it was. Captures and `steer_text` notice states and predictions that are not finite;
    a plain pass returns them. In float16, whose largest number is 65,504, check that `output.logits` are finite.

    Args:
        model: Any model that passes the load check.
        directions: A direction, a dictionary of layer to direction as `load_directions` returns, or a list of
            directions. Several at one layer add up.
        strength: How much to add, in `unit`; negative to steer towards the negative class.
        tokens: `all`; `prompt`: tokens that run while the key-value cache is empty, which is the whole prompt of
            `generate`; `generated`: tokens that run after that. The first new token is chosen at the last token of the
            prompt. A model without such a cache, or a pass with `use_cache=False`, allows only `all`. In a capture, the
            tokens of responses count as generated, all others as prompt.
        unit: `norm`: the mean norm of the states that the direction was extracted from, so that 0.1 moves a state by
            10%. `gap`: the distance between the class means along the direction. `raw`: the unit vector.

    Raises:
        RequestError: An argument is invalid, the directions come from another model or site, they do not store the mean
            norm of the states, or the vector overflows in the model's dtype.
        ModelError: The model fails the load check, is compiled, or has no cache that tells the tokens apart.

    Example:
        >>> direction = extract_direction(data, 16)
        >>> ids = tokenizer("Did you take it?", return_tensors="pt")
        >>> with steer(model, direction, 0.3):
        ...     output = model.generate(**ids, max_new_tokens=3, do_sample=False)
        >>> output.shape[1] - ids["input_ids"].shape[1]
        3
    """
    require_choice("the unit", unit, UNITS)
    require_choice("tokens", tokens, TOKENS)
    amount = require_strength(strength)
    changes, alterations = {}, {}
    for layer, here in directions_by_layer(model, directions).items():
        added = torch.stack([amount * length_of(one, unit) * unit_vector(one) for one in here])  # (directions, hidden)
        vector = added.sum(dim=0).float()
        _require_room(vector, model.dtype, amount, layer)
        changes[layer] = Addition(vector)
        along = " and ".join(_named(one) for one in here)
        alterations[layer] = f"is steered by {amount:g} times {_MEANING[unit]} along {along} ({tokens} tokens)"
    if amount == 0:
        yield
        return
    with hooked(model, changes, alterations, tokens):
        yield


@contextmanager
def ablate(model: PreTrainedModel, directions: Directions) -> Iterator[None]:
    """Project directions out of the residual stream while the context is open.

    The projection of every token on each direction is 0 at the output of its block; later blocks may write along it
    again. Otherwise this acts like `steer`. Several directions at one layer are removed together.

    Args:
        model: Any model that passes the load check.
        directions: See `steer`.

    Raises:
        RequestError: The directions come from another model or site.
        ModelError: The model fails the load check, or is compiled.

    Example:
        >>> direction = extract_direction(data, 16)
        >>> with ablate(model, direction):
        ...     states = capture_activations(model, tokenizer, "I swear", layers=[16])["activations"][16]
        >>> (states @ direction["vector"]).abs().max() < 1e-3 * states.norm()
        tensor(True)
    """
    changes, alterations = {}, {}
    for layer, here in directions_by_layer(model, directions).items():
        vectors = torch.stack([unit_vector(one) for one in here])  # (directions, hidden)
        _, sizes, basis = torch.linalg.svd(vectors, full_matrices=False)
        changes[layer] = Projection(basis[sizes > 1e-6].float())  # the rest are combinations of the others
        alterations[layer] = f"has {' and '.join(_named(one) for one in here)} projected out"
    with hooked(model, changes, alterations):
        yield


def length_of(direction: Direction, unit: Unit) -> float:
    """Length of the vector that a strength of 1 adds.

    Raises:
        RequestError: The direction does not store what the unit needs.
    """
    if unit == "raw":
        return 1.0
    gap, norm = direction["positive_mean"] - direction["negative_mean"], direction.get("norm", 0.0)
    length, what = (gap, "different class means") if unit == "gap" else (norm, "the mean norm of the states")
    if not length > 0:
        raise RequestError(
            f"the direction at layer {direction['layer']} does not store {what}",
            expected="a direction extracted from a contrast by this version of layerscope",
            next_step=Remedy.EXTRACT_AGAIN,
        )
    return length


def require_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    """Require one of the known words.

    Raises:
        RequestError: It is none of them.
    """
    if given not in known:
        raise RequestError(
            f"{name} cannot be {given!r}", expected=f"one of {', '.join(known)}", next_step=similar(str(given), known)
        )


def directions_by_layer(model: PreTrainedModel, directions: Directions) -> dict[int, list[Direction]]:
    """Check directions against a model and group them by layer.

    Raises:
        RequestError: They do not fit the model, or are not read at block outputs.
        ModelError: The model fails the load check, or is compiled.
    """
    require_uncompiled(model)
    num_layers = describe_model(model).num_layers
    found: dict[int, list[Direction]] = {}
    for direction in listed(directions):
        require_same_model(model, {direction["layer"]: direction})
        layer, provenance = direction["layer"], direction["provenance"]
        if provenance and provenance["site"] != "resid_post":
            raise RequestError(
                f"the direction at layer {layer} was read at the site {provenance['site']}",
                expected="a direction of resid_post, the output of a block, where steering adds it",
                next_step="capture the contrast at the default site",
            )
        if not 0 <= layer < num_layers:
            raise RequestError(f"the model has no layer {layer}", expected=f"0 to {num_layers - 1}")
        found.setdefault(layer, []).append(direction)
    return found


def listed(directions: Directions) -> list[Direction]:
    """List the directions that a caller passed in any form.

    Raises:
        RequestError: There are none, one is not a direction, or one is given for another layer than its own.
    """
    if isinstance(directions, Mapping) and "vector" not in directions:
        by_layer = dict(directions.items())
        for layer, direction in by_layer.items():
            require_direction(direction)
            if layer != direction["layer"]:
                raise RequestError(
                    f"the direction at layer {direction['layer']} is given for layer {layer}",
                    expected="each direction at its own layer, where its norm was measured",
                )
        found = [*by_layer.values()]
    else:
        several = isinstance(directions, Sequence) and not isinstance(directions, str)
        found = [*cast("Sequence[Direction]", directions)] if several else [cast("Direction", directions)]
        for direction in found:
            require_direction(direction)
    if not found:
        raise RequestError("there are no directions to steer with", expected="at least one direction")
    return found


def unit_vector(direction: Direction) -> Tensor:
    """The vector of a direction at length 1, `(hidden,)`, float64 on the CPU.

    Raises:
        RequestError: It has no length, or is not finite.
    """
    vector = direction["vector"].double().cpu()
    length: Tensor = vector.norm()
    if not bool(torch.isfinite(length)) or length == 0:
        raise RequestError(
            f"the direction at layer {direction['layer']} has no length", expected="a finite vector other than zero"
        )
    unit: Tensor = vector / length
    return unit


class NotFiniteError(RequestError):
    """A vector or a prediction overflows in the dtype of the model."""


def not_finite(how: str, dtype: torch.dtype, *, steered: bool = True) -> NotFiniteError:
    """The error of predictions that are not finite.

    Args:
        how: Names the steering.
        dtype: Dtype of the model.
        steered: Whether a vector was added, so that a smaller strength may help.
    """
    problem = f"the predictions are not finite {how}"
    if steered:
        return NotFiniteError(problem, next_step=_steer_less(dtype))
    return NotFiniteError(
        problem,
        expected="a model whose predictions are finite",
        next_step=Remedy.LOAD_IN_FLOAT32 if dtype == torch.float16 else "use another model",
    )


def _require_room(vector: Tensor, dtype: torch.dtype, amount: float, layer: int) -> None:
    """Refuse a vector that overflows, or whose squares do when the next norm adds them up.

    An overflowing sum of squares does not show: the norm divides by infinity, and every later block reads zeros.
    """
    if not bool(vector.to(dtype).float().square().sum().isfinite()):
        raise NotFiniteError(
            f"a strength of {amount:g} at layer {layer} overflows in {str(dtype).removeprefix('torch.')}",
            next_step=_steer_less(dtype),
        )


def _steer_less(dtype: torch.dtype) -> str | Remedy:
    return Remedy.STEER_LESS if dtype == torch.float16 else "steer by less"  # bfloat16 has the range of float32


def _named(direction: Direction) -> str:
    return f"{direction['concept'] or 'custom pairs'} ({direction['method']})"
