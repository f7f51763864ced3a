"""Check captures, factors and directions that callers pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.errors import CaptureError, RequestError
from engine.inputs import plain_text
from engine.records.captures import Factors

_DIRECTION = ("layer", "vector", "negative_mean", "positive_mean", "method", "concept", "num_pairs", "provenance")


def require_capture(data: object) -> None:
    """Require a capture: of prompts, or of pairs.

    Raises:
        RequestError: It is something else.
    """
    if not isinstance(data, Mapping) or not {"positive", "activations"} & data.keys():
        raise RequestError(
            f"this is not a capture but {type(data).__name__}",
            expected="the result of a capture function or of load_activations",
        )


def plain_factors(factors: Iterable[Factors], pairs: int) -> list[Factors]:
    """Validate the factors of each pair and convert them to plain dictionaries.

    Args:
        factors: Persona, template and topic of each pair.
        pairs: Number of pairs.

    Raises:
        CaptureError: A pair lacks a factor or has an unknown one, or there are not as many sets of factors as pairs.

    Example:
        >>> plain_factors([{"persona": "nurse", "template": "plain", "topic": "tea"}], pairs=1)
        [{'template': 'plain', 'persona': 'nurse', 'topic': 'tea'}]
    """
    plain = []
    for number, known in enumerate(factors):
        if not isinstance(known, Mapping) or known.keys() != Factors.__annotations__.keys():
            raise CaptureError(
                f"the factors of pair {number} are {known!r}",
                expected=f"a dictionary with {', '.join(Factors.__annotations__)}",
            )
        values = {key: plain_text(value, f"the {key} of pair {number}") for key, value in known.items()}
        plain.append(Factors(template=values["template"], persona=values["persona"], topic=values["topic"]))
    if len(plain) != pairs:
        raise CaptureError(f"there are {pairs} pairs and {len(plain)} sets of factors", expected="one set per pair")
    return plain


def require_direction(given: object) -> None:
    """Require a direction with all of its fields; a plain vector is not one.

    Raises:
        RequestError: It is something else.
    """
    missing = [field for field in _DIRECTION if field not in given] if isinstance(given, Mapping) else [*_DIRECTION]
    if not missing:
        return
    kind = type(given).__name__
    lacks = f"a {kind} without {', '.join(missing)}" if isinstance(given, Mapping) else f"a {kind}"
    raise RequestError(
        f"{lacks} is not a direction",
        expected="what extract_direction, extract_directions, load_directions or import_directions returns",
        next_step="turn vectors into directions with import_directions({layer: vector}, model=model)",
    )


def require_directions(given: object) -> None:
    """Require a dictionary of layer to direction; it may be empty.

    Raises:
        RequestError: It is something else.
    """
    if not isinstance(given, Mapping) or "vector" in given:
        raise RequestError(
            f"a {type(given).__name__} is not a dictionary of layer to direction",
            expected="what extract_directions, load_directions or import_directions returns",
        )
    for direction in given.values():
        require_direction(direction)
