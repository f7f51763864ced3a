"""Check that what a `.pt` file holds is a capture: types, shapes and layers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor

from engine.errors import StoreError
from engine.records.captures import ActivationData, CaptureData, ContrastData

_PROMPTS = ("activations", "input_ids", "tokens", "prompt", "num_layers", "captured_layers")
_CONTRAST = ("positive", "negative", "num_pairs", "concept", "layers")
_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}


class _NotCaptureError(Exception):
    """The reason why an object is not a capture."""


def require_capture(found: object, path: Path) -> CaptureData:
    """Check an object from a file, and return it with the fields of a capture only.

    Args:
        found: The object.
        path: The file, for the error message.

    Raises:
        StoreError: It is not a capture; the message says why.
    """
    try:
        if isinstance(found, dict) and "positive" in found:
            return _contrast(found)
        return _prompts(found, "it")
    except _NotCaptureError as error:
        raise StoreError(
            f"{path} is not a capture: {error}", expected="the dictionaries that the capture functions return"
        ) from error


def _contrast(found: dict[Any, Any]) -> ContrastData:
    fields = _fields(found, _CONTRAST, "it")
    layers = _layers(fields["layers"], "it")
    count = fields["num_pairs"]
    _require(_is_count(count) and count > 0, "it has no pairs")
    _require(fields["concept"] is None or isinstance(fields["concept"], str), "its concept is not a text")
    for name in ("positive", "negative"):
        prompts = fields[name]
        _require(isinstance(prompts, list) and len(prompts) == count, f"it does not have {count} {name} prompts")
        fields[name] = [_prompts(one, f"{name} prompt {number}") for number, one in enumerate(prompts)]
        for number, one in enumerate(fields[name]):
            where = f"{name} prompt {number}"
            _require(one["captured_layers"] == layers, f"{where} has other layers")
            _require(len(one["input_ids"]) == 1, f"{where} is a batch of several")
    return cast("ContrastData", fields)


def _prompts(found: object, where: str) -> ActivationData:
    fields = _fields(found, _PROMPTS, where)
    layers = _layers(fields["captured_layers"], where)
    _require(_is_count(fields["num_layers"]) and fields["num_layers"] > layers[-1], f"{where} has no number of layers")
    states = fields["activations"]
    _require(isinstance(states, dict) and all(map(_is_count, states)), f"{where} has no states by layer")
    _require(sorted(states) == layers, f"the states of {where} are not those of its layers")
    batch, kept, _ = shape = _shape(states[layers[0]])
    _require(all(_are_states(one) and one.shape == shape for one in states.values()), f"{where} has unusable states")
    ids = fields["input_ids"]
    _require(
        _is_whole(ids) and ids.ndim == 2 and len(ids) == batch, f"the token ids of {where} do not match its states"
    )
    if "attention_mask" in cast("dict[Any, Any]", found):
        mask = fields["attention_mask"] = cast("dict[Any, Any]", found)["attention_mask"]
        _require(_is_whole(mask) and mask.shape == (batch, kept), f"the mask of {where} does not match its states")
    _require_texts(fields["prompt"], fields["tokens"], batch, where)
    return cast("ActivationData", fields)


def _require_texts(prompt: object, tokens: object, batch: int, where: str) -> None:
    if isinstance(prompt, str):
        _require(batch == 1 and _are_texts(tokens), f"the tokens of {where} do not match its states")
        return
    _require(_are_texts(prompt) and len(cast("list[str]", prompt)) == batch, f"{where} has no text for each state")
    rows = isinstance(tokens, list) and len(tokens) == batch and all(map(_are_texts, tokens))
    _require(rows, f"the tokens of {where} do not match its states")


def _fields(found: object, names: tuple[str, ...], where: str) -> dict[str, Any]:
    _require(isinstance(found, dict), f"{where} is not a dictionary")
    table = cast("dict[Any, Any]", found)
    missing = [name for name in names if name not in table]
    _require(not missing, f"{where} has no {', '.join(missing)}")
    return {name: table[name] for name in names}


def _layers(found: object, where: str) -> list[int]:
    right = isinstance(found, list) and bool(found) and all(map(_is_count, found))
    _require(right and all(one < two for one, two in pairwise(cast("list[int]", found))), f"{where} has no layers")
    return cast("list[int]", found)


def _shape(found: object) -> torch.Size:
    return found.shape if isinstance(found, Tensor) and found.ndim == 3 else torch.Size((0, 0, 0))


def _are_states(found: object) -> bool:
    return _is_plain(found) and found.is_floating_point() and found.ndim == 3 and found.numel() > 0


def _is_whole(found: object) -> bool:
    return _is_plain(found) and found.dtype in _INTEGERS


def _is_plain(found: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor in memory with a number of its own at each place, so not expanded."""
    if type(found) is not Tensor or found.layout != torch.strided or found.device.type != "cpu":
        return False
    return found.untyped_storage().nbytes() >= found.numel() * found.element_size()


def _is_count(found: object) -> bool:
    return type(found) is int and found >= 0


def _are_texts(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(one, str) for one in found)


def _require(right: object, problem: str) -> None:
    if not right:
        raise _NotCaptureError(problem)
