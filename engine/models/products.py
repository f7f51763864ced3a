"""float32 matrix products through oneDNN while states are read, where that is no less exact.

PyTorch sends float32 products on a CPU through oneDNN when it may use less than float32 for them, and oneDNN then uses
float32 all the same on a processor without units for anything less; on some it is twice as fast as what PyTorch uses
else. Where there are such units (AMX), oneDNN rounds in products above a certain size and not in smaller ones. Whether
a machine is of that kind is for `engine.models.shortcuts` to measure. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch.nn.functional import linear

_TOKENS = 512  # in a pass on a CPU
_LARGEST = 4096  # rows and columns of a weight: what rounds larger ones rounds these

_lock = Lock()
_inside = 0
_found = ""


def _setting() -> Any | None:  # noqa: ANN401 - a module of settings, which older versions of torch lack
    backend = getattr(torch.backends.mkldnn, "matmul", None)
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return backend if available and hasattr(backend, "fp32_precision") else None


def onednn_possible() -> bool:
    """Whether this build of PyTorch has oneDNN, and the setting that leads products there."""
    return _setting() is not None


def product_error(shapes: Iterable[tuple[int, int]]) -> float:
    """How far products move, relative to their norm, that go through oneDNN in place of PyTorch's own.

    Largest over weights, for as many tokens as a pass on a CPU has: as much as oneDNN will be given.

    Args:
        shapes: Those of weights, `(outputs, inputs)`; only so much of one is multiplied as shows what oneDNN does.

    Example:
        >>> product_error([(64, 64)]) < 1e-2
        True
    """
    generator, errors = torch.Generator().manual_seed(0), [0.0]
    for rows, columns in {(min(rows, _LARGEST), min(columns, _LARGEST)) for rows, columns in shapes}:
        weight = torch.empty(rows, columns).uniform_(-1, 1, generator=generator)
        states = torch.empty(_TOKENS, columns).uniform_(-1, 1, generator=generator)
        expected = linear(states, weight)
        with onednn_products(wanted=True):
            found = linear(states, weight)
        errors.append(float((found - expected).norm() / expected.norm()))
    return max(errors)


@contextmanager
def onednn_products(*, wanted: bool) -> Iterator[None]:
    """Send float32 products through oneDNN, for the whole process, until the last who asked for it is done.

    Args:
        wanted: Whether to; nothing is touched otherwise.

    Example:
        >>> with onednn_products(wanted=True):
        ...     product = torch.ones(2, 2) @ torch.ones(2, 2)
        >>> product.tolist()
        [[2.0, 2.0], [2.0, 2.0]]
    """
    global _inside, _found
    setting = _setting()
    if setting is None or not wanted:
        yield
        return
    with _lock:
        if not _inside:
            _found = setting.fp32_precision
            setting.fp32_precision = "bf16"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                setting.fp32_precision = _found
